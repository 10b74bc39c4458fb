//! The `mounts` of the specification, carried out inside the new root before pivot_root.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount, mount_change, mount_remount, move_mount,
    open_tree,
};

use crate::container::paths::{self, Wanted};
use crate::container::spec::{Device, Mount};
use crate::container::userns::Mappings;
use crate::container::{devices, image, rootfs, userns};
use crate::fault::{Code, Doing, Fault, Outcome};
use crate::volumes::VOLUMES;

const SHARE: &str = "/run/thaw/share";
const IDENTITY: &str = "/run/thaw/identity";
/// The shared memory of the pod's IPC namespace, which is the guest's.
const SHM: &str = "/dev/shm";
/// The kernel's limit for a mount's option string is one page.
const MAX_DATA: usize = 4095;

#[derive(Debug)]
pub(crate) struct Options {
    flags: MountFlags,
    propagation: Option<MountPropagationFlags>,
    recursive: bool,
    recursive_read_only: bool,
    data: Vec<String>,
}

pub(crate) fn parse(options: &[String]) -> Outcome<Options> {
    let mut parsed = Options {
        flags: MountFlags::empty(),
        propagation: None,
        recursive: false,
        recursive_read_only: false,
        data: Vec::new(),
    };
    for option in options {
        let (set, clear) = match option.as_str() {
            "ro" => (MountFlags::RDONLY, MountFlags::empty()),
            "rw" => (MountFlags::empty(), MountFlags::RDONLY),
            "nosuid" => (MountFlags::NOSUID, MountFlags::empty()),
            "suid" => (MountFlags::empty(), MountFlags::NOSUID),
            "nodev" => (MountFlags::NODEV, MountFlags::empty()),
            "dev" => (MountFlags::empty(), MountFlags::NODEV),
            "noexec" => (MountFlags::NOEXEC, MountFlags::empty()),
            "exec" => (MountFlags::empty(), MountFlags::NOEXEC),
            "sync" => (MountFlags::SYNCHRONOUS, MountFlags::empty()),
            "relatime" => (MountFlags::RELATIME, MountFlags::empty()),
            "noatime" => (MountFlags::NOATIME, MountFlags::empty()),
            "strictatime" => (MountFlags::STRICTATIME, MountFlags::empty()),
            "nodiratime" => (MountFlags::NODIRATIME, MountFlags::empty()),
            "nosymfollow" => (MountFlags::NOSYMFOLLOW, MountFlags::empty()),
            "defaults" | "async" | "atime" | "norelatime" | "diratime" | "bind" => continue,
            "rbind" => {
                parsed.recursive = true;
                continue;
            }
            "rro" => {
                parsed.recursive_read_only = true;
                (MountFlags::RDONLY, MountFlags::empty())
            }
            other => {
                match propagation(other) {
                    Some(flags) => parsed.propagation = Some(flags),
                    None => parsed.data.push(other.to_owned()),
                }
                continue;
            }
        };
        parsed.flags = parsed.flags.union(set).difference(clear);
    }
    Ok(parsed)
}

pub fn propagation(name: &str) -> Option<MountPropagationFlags> {
    let recursive = MountPropagationFlags::REC;
    Some(match name {
        "private" => MountPropagationFlags::PRIVATE,
        "rprivate" => MountPropagationFlags::PRIVATE | recursive,
        "slave" => MountPropagationFlags::DOWNSTREAM,
        "rslave" => MountPropagationFlags::DOWNSTREAM | recursive,
        "shared" => MountPropagationFlags::SHARED,
        "rshared" => MountPropagationFlags::SHARED | recursive,
        "unbindable" => MountPropagationFlags::UNBINDABLE,
        "runbindable" => MountPropagationFlags::UNBINDABLE | recursive,
        _ => return None,
    })
}

/// The user namespace in which a container sees its files.
pub struct Users<'a> {
    pub user: BorrowedFd<'a>,
    pub mappings: &'a Mappings,
}

/// Where the source of a bind mount is, and so how the owners of its files come to be as the container sees them.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// The host's, by 9p, which takes no mapping: the host has mapped what it shares.
    Share,
    /// Mapped where it is asked for.
    Volume,
    /// The pod's own files, mapped for each container that is in a user namespace.
    Pod,
}

/// Opens the source of a bind mount: the pod's share, a volume or a file that `identity` wrote, and nothing else of the guest.
fn bind_source(source: &str) -> Outcome<(OwnedFd, Place)> {
    let refused = || {
        Fault::invalid(format!(
            "mounts: bind source {source:?} is neither in {SHARE} or {VOLUMES} nor a file of {IDENTITY} nor {SHM}"
        ))
    };
    let beneath = |base: &str| source.strip_prefix(base).filter(|rest| rest.is_empty() || rest.starts_with('/'));
    let (base, rest, place) = match (beneath(SHARE), beneath(IDENTITY), beneath(VOLUMES)) {
        (Some(rest), _, _) => (SHARE, rest, Place::Share),
        (None, Some(rest), _) if rest.len() > 1 => (IDENTITY, rest, Place::Pod),
        (None, None, Some(rest)) if rest.len() > 1 => (VOLUMES, rest, Place::Volume),
        _ if source == SHM => (SHM, "", Place::Pod),
        _ => return Err(refused()),
    };
    let opened = paths::open_beneath(base, rest.trim_start_matches('/')).map_err(|error| {
        let error = std::io::Error::from(error);
        let code = if error.kind() == std::io::ErrorKind::NotFound { Code::NotFound } else { Code::Internal };
        Fault::new(code, format!("mounts: open source {source}: {}", crate::fault::words(&error)))
    })?;
    Ok((opened, place))
}

/// A detached mount of what is at `from`.
pub fn clone_tree(from: &OwnedFd, recursive: bool, what: &str) -> Outcome<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(from, "", flags).doing(|| format!("clone the mount of {what}"))
}

/// Mounts a detached mount at `target`.
pub fn attach(tree: &OwnedFd, target: &OwnedFd, what: &str) -> Outcome<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(tree, "", target, "", flags).doing(|| format!("mount {what}"))
}

/// A detached mount of a file that `identity` wrote.
pub fn identity(name: &str, users: Option<&Users<'_>>) -> Outcome<OwnedFd> {
    source(&format!("{IDENTITY}/{name}"), false, None, users)
}

fn source(path: &str, recursive: bool, wanted: Option<&Mappings>, users: Option<&Users<'_>>) -> Outcome<OwnedFd> {
    let (opened, place) = bind_source(path)?;
    let tree = clone_tree(&opened, recursive, path)?;
    match (place, users, wanted) {
        (Place::Pod, Some(users), _) => userns::map_tree(tree.as_fd(), users.user, path)?,
        (Place::Volume, Some(users), Some(wanted)) if users.mappings == wanted => {
            userns::map_tree(tree.as_fd(), users.user, path)?;
        }
        (Place::Volume, _, Some(wanted)) => {
            userns::map_tree(tree.as_fd(), userns::for_mounts(wanted)?.as_fd(), path)?;
        }
        (Place::Share, ..) | (Place::Pod, None, _) | (Place::Volume, _, None) => {}
    }
    Ok(tree)
}

fn is_bind(entry: &Mount) -> bool {
    entry.kind == "bind" || entry.options.iter().any(|option| option == "bind" || option == "rbind")
}

/// Gets ready what a mount takes of the guest's, as a detached mount; None for what is a file system of its own. In a user
/// namespace nobody makes device nodes that work: there a /dev is got ready, too.
pub fn prepare(entry: &Mount, wanted: &[Device], users: Option<&Users<'_>>) -> Outcome<Option<OwnedFd>> {
    let options = parse(&entry.options)?;
    if entry.kind == "image" {
        return image::with_source(entry, |source| clone_tree(source, options.recursive, "an image")).map(Some);
    }
    if is_bind(entry) {
        return source(&entry.source, options.recursive, entry.mappings().as_ref(), users).map(Some);
    }
    match users {
        Some(users) if devices::is_dev(entry) => {
            devices::stage(wanted, users, |at| mount_kind(entry, "tmpfs", &options, at)).map(Some)
        }
        _ => Ok(None),
    }
}

/// What is bound, or an image's.
fn bind(root: &OwnedFd, entry: &Mount, options: &Options, tree: &OwnedFd) -> Outcome<()> {
    let wanted = paths::wanted_for(tree);
    let target = paths::ensure(root.as_fd(), &entry.destination, wanted)?;
    attach(tree, &target, &format!("{} at {}", entry.source, entry.destination))?;
    // The new mount covers what `target` still refers to: it is opened again.
    let mounted = paths::ensure(root.as_fd(), &entry.destination, wanted)?;
    if !options.flags.is_empty() {
        let at = paths::by_fd(&mounted);
        let flags = options.flags | MountFlags::BIND | rootfs::present_flags(&at)?;
        mount_remount(paths::by_fd(&mounted), flags, c"").doing(|| format!("remount {}", entry.destination))?;
        if options.recursive_read_only {
            crate::sys::read_only_tree(mounted.as_fd())
                .doing(|| format!("make {} recursively read-only", entry.destination))?;
        }
    }
    if let Some(flags) = options.propagation {
        mount_change(paths::by_fd(&mounted), flags).doing(|| format!("propagation of {}", entry.destination))?;
    }
    Ok(())
}

/// A folder of the container's own, bound to itself: it can be written to where the root is read-only. What another mount
/// has at that path is that one's to say: neither a volume nor a part of /proc is to escape what is closed there.
fn volume(root: &OwnedFd, path: &str) -> Outcome<()> {
    let folder = paths::ensure(root.as_fd(), path, Wanted::Directory)?;
    let device = |fd| rustix::fs::fstat(fd).map(|stat| stat.st_dev).doing(|| format!("stat {path} in the container"));
    if device(&folder)? != device(root)? {
        return Ok(());
    }
    attach(&clone_tree(&folder, false, path)?, &folder, path)
}

fn mount_kind(entry: &Mount, kind: &str, options: &Options, at: &str) -> Outcome<()> {
    let data = options.data.join(",");
    if data.len() > MAX_DATA {
        return Err(Fault::invalid(format!("mounts: options of {} are longer than a page", entry.destination)));
    }
    let data = CString::new(data).map_err(|_| Fault::invalid("mounts: an option contains a NUL byte"))?;
    let source = if entry.source.is_empty() { kind } else { entry.source.as_str() };
    mount(source, at, kind, options.flags, data.as_c_str()).doing(|| format!("mount {kind} at {}", entry.destination))
}

/// Carries out one mount under `root`; `tree` is what was got ready for it.
pub fn carry_out(root: &OwnedFd, entry: &Mount, tree: Option<&OwnedFd>) -> Outcome<()> {
    let options = parse(&entry.options)?;
    if let Some(tree) = tree
        && (entry.kind == "image" || is_bind(entry))
    {
        return bind(root, entry, &options, tree);
    }
    if entry.kind == "volume" {
        return volume(root, &entry.destination);
    }
    let kind = match entry.kind.as_str() {
        "cgroup" | "cgroup2" => "cgroup2",
        known @ ("proc" | "tmpfs" | "sysfs" | "devpts" | "mqueue") => known,
        other => {
            return Err(Fault::invalid(format!("mounts: type {other:?} of {} is not supported", entry.destination)));
        }
    };
    // As runc has it: through an image's link /proc and /sys would be elsewhere than their masks.
    if matches!(kind, "proc" | "sysfs") && paths::is_link(root.as_fd(), &entry.destination) {
        return Err(Fault::invalid(format!("mounts: {} of the image is a symbolic link", entry.destination)));
    }
    let target = paths::ensure(root.as_fd(), &entry.destination, Wanted::Directory)?;
    match tree {
        Some(tree) => attach(tree, &target, &entry.destination)?,
        None => mount_kind(entry, kind, &options, &paths::by_fd(&target))?,
    }
    if let Some(flags) = options.propagation {
        let mounted = paths::ensure(root.as_fd(), &entry.destination, Wanted::Directory)?;
        mount_change(paths::by_fd(&mounted), flags).doing(|| format!("propagation of {}", entry.destination))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_become_flags_and_data() {
        let words = ["nosuid", "ro", "rw", "mode=755", "rbind", "rslave"].map(str::to_owned);
        let parsed = parse(&words).unwrap();
        assert_eq!(parsed.flags, MountFlags::NOSUID);
        assert_eq!(parsed.data, ["mode=755"]);
        assert!(parsed.recursive && parsed.propagation.is_some());
    }

    #[test]
    fn bind_sources_outside_the_share_are_refused() {
        for source in
            ["/", "/etc", "/run/thaw/shared", "/run/thaw/identity", "/run/thaw/identity/", "/run/thaw/scratch/x"]
        {
            assert!(bind_source(source).is_err(), "{source}");
        }
        assert_eq!(bind_source("/etc").err().unwrap().code, Code::InvalidArgument);
    }
}
