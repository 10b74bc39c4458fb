//! The container's root: an overlay of squashfs layers, its mounts, and pivot_root into it.
//!
//! First all that it is made of is got ready, as detached mounts, where the whole guest can be reached; then it is put
//! together. In between, what is in a user namespace enters it, and can reach nothing any more but what it was given.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags, StatVfsMountFlags, makedev};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_bind_recursive, mount_change,
    mount_remount, unmount,
};

use crate::container::mounts::Users;
use crate::container::spec::Spec;
use crate::container::{devices, mounts, paths, userns};
use crate::fault::{Doing, Fault, Outcome};
use crate::{storage, sys};

pub const LAYERS: &str = "/run/thaw/layers";
pub const SCRATCH: &str = "/run/thaw/scratch";
pub const ROOTFS: &str = "/run/thaw/rootfs";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Makes the writable folders of a container, in the agent, so that their removal is the agent's too. Without a
/// mounted scratch disk they lie on the tmpfs below its mount point. `owner`, user and group, is who root is inside. True
/// when what is written there is counted for the project.
pub fn make_upper(id: &str, project: u32, owner: (u32, u32)) -> Outcome<bool> {
    let folder = format!("{SCRATCH}/{id}");
    std::fs::create_dir_all(&folder).doing(|| format!("create {folder}"))?;
    // Before there is anything in it: all that is made below inherits the project.
    let counted = std::fs::File::open(&folder).and_then(|opened| sys::set_project(&opened, project)).is_ok();
    for folder in ["upper", "work"] {
        let path = format!("{SCRATCH}/{id}/{folder}");
        std::fs::create_dir_all(&path).doing(|| format!("create {path}"))?;
    }
    if owner != (0, 0) {
        let upper = format!("{folder}/upper");
        std::os::unix::fs::chown(&upper, Some(owner.0), Some(owner.1)).doing(|| format!("owner of {upper}"))?;
    }
    Ok(counted)
}

/// Takes a container's writable folders out of the way, to be emptied.
pub fn discard_upper(id: &str) -> std::io::Result<Option<PathBuf>> {
    let trash = PathBuf::from(format!("{SCRATCH}/.trash-{id}"));
    match std::fs::rename(format!("{SCRATCH}/{id}"), &trash) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        result => result.map(|()| Some(trash)),
    }
}

/// Mounts the overlay; the names are relative to the layers' folder, since all options share one page.
fn overlay(id: &str, layers: &[String]) -> Outcome<OwnedFd> {
    rustix::process::chdir(LAYERS).doing(|| format!("chdir {LAYERS}"))?;
    let lower: Vec<&str> = layers.iter().rev().map(String::as_str).collect();
    // volatile: the scratch disk is the VM's, and gone with it, so nobody waits until its writes are on it.
    let data =
        format!("volatile,lowerdir={},upperdir=../scratch/{id}/upper,workdir=../scratch/{id}/work", lower.join(":"));
    if data.len() > 4095 {
        return Err(Fault::invalid("layers: their names are longer than a page"));
    }
    let data = CString::new(data).map_err(|_| Fault::invalid("layers: a name contains a NUL byte"))?;
    // nodev: a device node in an image or made by the container reaches no device; /dev is a tmpfs of ours.
    mount("overlay", ROOTFS, "overlay", MountFlags::NODEV, data.as_c_str()).doing(|| "mount the overlay".to_owned())?;
    open_root()
}

fn open_root() -> Outcome<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
    rustix::fs::open(ROOTFS, flags, Mode::empty()).doing(|| format!("open {ROOTFS}"))
}

/// Covers the layers by mounts of their own whose files have the owners that the user namespace gives them; overlayfs
/// itself cannot be mounted so.
fn map_layers<'a>(layers: impl Iterator<Item = &'a str>, users: &Users<'_>) -> Outcome<()> {
    let mut seen = std::collections::HashSet::new();
    for layer in layers.filter(|layer| seen.insert(*layer)) {
        storage::check_name(layer)?;
        let path = format!("{LAYERS}/{layer}");
        let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
        let mounted = rustix::fs::open(&path, flags, Mode::empty()).doing(|| format!("open {path}"))?;
        let tree = mounts::clone_tree(&mounted, false, &path)?;
        userns::map_tree(tree.as_fd(), users.user, &path)?;
        mounts::attach(&tree, &mounted, &path)?;
    }
    Ok(())
}

pub fn pivot(root: &OwnedFd) -> Outcome<()> {
    let old = rustix::fs::open("/", OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .doing(|| "open the old root".to_owned())?;
    rustix::process::fchdir(root).doing(|| "enter the new root".to_owned())?;
    rustix::process::pivot_root(".", ".").doing(|| "pivot_root".to_owned())?;
    rustix::process::fchdir(&old).doing(|| "enter the old root".to_owned())?;
    unmount(".", UnmountFlags::DETACH).doing(|| "detach the old root".to_owned())?;
    rustix::process::chdir("/").doing(|| "chdir /".to_owned())
}

/// What a root is made of.
pub struct Parts {
    /// The overlay, mounted, or detached for who is in a user namespace.
    root: OwnedFd,
    /// What is mounted of the guest's, beside each of the specification's mounts that takes something.
    trees: Vec<Option<OwnedFd>>,
    boot_id: Option<OwnedFd>,
}

/// Cuts the calling process's own mount namespace off, and clears its umask: device nodes are made with the very modes
/// asked for.
pub fn isolate() -> Outcome<()> {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .doing(|| "make / private".to_owned())?;
    rustix::process::umask(Mode::empty());
    Ok(())
}

/// Gets ready what the root is made of, in the calling process's own mount namespace. `users` says how the files'
/// owners are mapped, where they are.
pub fn prepare(id: &str, layers: &[String], spec: &Spec, users: Option<&Users<'_>>) -> Outcome<Parts> {
    let mut root = None;
    if let Some(users) = users {
        // Where anything covers a part of /proc, no user namespace may mount one.
        let _ = unmount(BOOT_ID, UnmountFlags::DETACH);
        let images = spec.mounts.iter().filter(|entry| entry.kind == "image");
        let wanted = layers.iter().map(String::as_str).chain(images.flat_map(|entry| entry.source.split(':')));
        map_layers(wanted, users)?;
        root = Some(mounts::clone_tree(&overlay(id, layers)?, false, ROOTFS)?);
    }
    let root = root.map_or_else(|| overlay(id, layers), Ok)?;
    let trees = spec
        .mounts
        .iter()
        .map(|entry| mounts::prepare(entry, &spec.linux.devices, users))
        .collect::<Outcome<Vec<_>>>()?;
    let mut boot_id = None;
    if spec.mounts.iter().any(|entry| entry.kind == "proc") {
        let path = "/run/thaw/identity/boot_id";
        if std::fs::metadata(path).is_ok_and(|data| data.len() > 0) {
            boot_id = Some(mounts::identity("boot_id", users)?);
        }
    }
    Ok(Parts { root, trees, boot_id })
}

/// Builds the root and moves the calling process into it, which has its own mount namespace; `within` says whether this
/// is a user namespace's.
pub fn assemble(spec: &Spec, parts: Parts, within: bool) -> Outcome<()> {
    let mut root = parts.root;
    if within {
        mounts::attach(&root, &open_root()?, ROOTFS)?;
        root = open_root()?;
    }
    for (entry, tree) in spec.mounts.iter().zip(parts.trees) {
        mounts::carry_out(&root, entry, tree.as_ref())?;
    }
    devices::make(&root, &spec.linux.devices, spec.mounts.iter().any(devices::is_dev), within)?;
    if let Some(tree) = parts.boot_id {
        let target = paths::ensure(root.as_fd(), BOOT_ID, paths::Wanted::File)?;
        mounts::attach(&tree, &target, "the boot id")?;
    }
    pivot(&root)
}

/// What is closed once the root is entered: kernel settings, propagation, read-only and masked paths.
pub fn seal(spec: &Spec) -> Outcome<()> {
    for (name, value) in &spec.linux.sysctl {
        crate::sysctl::set(name, value)?;
    }
    for path in &spec.linux.readonly_paths {
        if paths::exists(path) {
            // Recursive: what is mounted below, the boot id among it, stays seen.
            mount_bind_recursive(path.as_str(), path.as_str()).doing(|| format!("bind {path}"))?;
            let flags = MountFlags::BIND | MountFlags::RDONLY | present_flags(path)?;
            mount_remount(path.as_str(), flags, c"").doing(|| format!("make {path} read-only"))?;
        }
    }
    for path in &spec.linux.masked_paths {
        mask(path)?;
    }
    if !spec.linux.rootfs_propagation.is_empty() {
        let name = &spec.linux.rootfs_propagation;
        let flags = mounts::propagation(name)
            .ok_or_else(|| Fault::invalid(format!("linux.rootfsPropagation: {name:?} is unknown")))?;
        mount_change("/", flags).doing(|| "propagation of /".to_owned())?;
    }
    if spec.root.readonly {
        let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NODEV;
        mount_remount("/", flags, c"").doing(|| "make / read-only".to_owned())?;
    }
    Ok(())
}

/// A remount replaces these flags, so those that a mount has are named again.
pub fn present_flags(path: &str) -> Outcome<MountFlags> {
    let present = rustix::fs::statvfs(path).doing(|| format!("stat the file system of {path}"))?.f_flag;
    let pairs = [
        (StatVfsMountFlags::NOSUID, MountFlags::NOSUID),
        (StatVfsMountFlags::NODEV, MountFlags::NODEV),
        (StatVfsMountFlags::NOEXEC, MountFlags::NOEXEC),
    ];
    let kept = pairs.into_iter().filter(|(flag, _)| present.contains(*flag)).map(|(_, flag)| flag);
    Ok(kept.fold(MountFlags::empty(), MountFlags::union))
}

fn mask(path: &str) -> Outcome<()> {
    let Ok(data) = std::fs::metadata(path) else { return Ok(()) };
    if data.is_dir() {
        mount("tmpfs", path, "tmpfs", MountFlags::RDONLY, c"size=0k,nr_inodes=2").doing(|| format!("mask {path}"))
    } else {
        // The /dev may be a volume: what another container put there would be seen at the masked path, and bound again
        // be free of read-only paths.
        let null = rustix::fs::open("/dev/null", OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
            .and_then(|null| Ok((rustix::fs::fstat(&null)?, null)));
        match null {
            Ok((stat, null)) if stat.st_rdev == makedev(1, 3) => mount_bind(paths::by_fd(&null), path),
            Ok(_) => return Err(Fault::invalid(format!("mask {path}: the container's /dev/null is another file"))),
            Err(error) => Err(error),
        }
        .doing(|| format!("mask {path}"))
    }
}
