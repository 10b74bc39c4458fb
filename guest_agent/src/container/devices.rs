//! Device nodes and the usual links in the container's /dev.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FileType, Gid, Mode, OFlags, Uid, chownat, makedev, mknodat, symlinkat};
use rustix::io::Errno;

use crate::container::mounts::{self, Users};
use crate::container::paths::{self, Wanted};
use crate::container::spec::{Device, DeviceRule, Linux, Mount};
use crate::container::userns;
use crate::fault::{Code, Doing, Fault, Outcome};
use crate::scsi;

/// Those the runtime specification demands, config-linux.md "Default Devices".
const DEFAULTS: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];
const LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("pts/ptmx", "ptmx"),
];

/// The root below which a /dev is made ready; in the mount namespace of the process that does it alone.
const STAGE: &str = "/run/thaw/stage";

fn present_is_fine(result: Result<(), Errno>) -> Result<(), Errno> {
    match result {
        Err(Errno::EXIST) => Ok(()),
        other => other,
    }
}

/// Finds the numbers of the devices that the guest's kernel has, disks among them, and lets the container use the disks.
pub fn find(linux: &mut Linux) -> Outcome<()> {
    for device in &mut linux.devices {
        if let Some(slot) = device.slot {
            let number = scsi::fresh(slot)?;
            (device.major, device.minor) = (rustix::fs::major(number), rustix::fs::minor(number));
            // No rules are no filter.
            if !linux.resources.devices.is_empty() {
                linux.resources.devices.push(DeviceRule {
                    allow: true,
                    kind: "b".to_owned(),
                    major: Some(device.major.into()),
                    minor: Some(device.minor.into()),
                    access: device.access.clone(),
                });
            }
        } else if matches!(device.kind.as_str(), "c" | "u") {
            let (path, major, minor) = (&device.path, device.major, device.minor);
            if !paths::exists(&format!("/sys/dev/char/{major}:{minor}")) {
                let text = format!("device {path}: the guest's kernel has no character device {major}:{minor}");
                return Err(Fault::new(Code::FailedPrecondition, text));
            }
        }
    }
    Ok(())
}

/// Whether it is the mount of a /dev of the container's own.
pub fn is_dev(entry: &Mount) -> bool {
    entry.destination.trim_end_matches('/') == "/dev" && entry.kind == "tmpfs"
}

/// A detached /dev with its nodes for a container in a user namespace; `mount` mounts its tmpfs. The nodes' owners are
/// the user namespace's, by the numbers that they would have without.
pub fn stage(wanted: &[Device], users: &Users<'_>, mount: impl FnOnce(&str) -> Outcome<()>) -> Outcome<OwnedFd> {
    let path = format!("{STAGE}/dev");
    std::fs::create_dir_all(&path).doing(|| format!("create {path}"))?;
    mount(&path)?;
    let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
    let open = |path: &str| rustix::fs::open(path, flags, Mode::empty()).doing(|| format!("open {path}"));
    let dev = open(&path)?;
    nodes(&open(STAGE)?, &dev, wanted)?;
    let tree = mounts::clone_tree(&dev, false, &path)?;
    userns::map_tree(tree.as_fd(), users.user, &path)?;
    Ok(tree)
}

/// Fills /dev. Without a tmpfs of its own there, nodes would lie on the overlay, where none works: only links are made.
/// `staged` says that its nodes are there.
pub fn make(root: &OwnedFd, wanted: &[Device], own_dev: bool, staged: bool) -> Outcome<()> {
    let dev = paths::ensure(root.as_fd(), "/dev", Wanted::Directory)?;
    for (target, name) in LINKS {
        present_is_fine(symlinkat(target, &dev, name)).doing(|| format!("link /dev/{name}"))?;
    }
    if !own_dev {
        if wanted.is_empty() {
            return Ok(());
        }
        return Err(Fault::invalid("linux.devices: they need a tmpfs at /dev"));
    }
    if staged { Ok(()) } else { nodes(root, &dev, wanted) }
}

fn nodes(root: &OwnedFd, dev: &OwnedFd, wanted: &[Device]) -> Outcome<()> {
    for (name, major, minor) in DEFAULTS {
        let mode = Mode::from_raw_mode(0o666);
        present_is_fine(mknodat(dev, name, FileType::CharacterDevice, mode, makedev(major, minor)))
            .doing(|| format!("make /dev/{name}"))?;
    }
    for device in wanted {
        one(root, device)?;
    }
    Ok(())
}

fn one(root: &OwnedFd, device: &Device) -> Outcome<()> {
    let kind = match device.kind.as_str() {
        "c" | "u" => FileType::CharacterDevice,
        "b" => FileType::BlockDevice,
        "p" => FileType::Fifo,
        other => return Err(Fault::invalid(format!("linux.devices: {}: unknown type {other:?}", device.path))),
    };
    let (folder, name) = device
        .path
        .rsplit_once('/')
        .filter(|(folder, name)| folder.starts_with("/dev") && !name.is_empty())
        .ok_or_else(|| Fault::invalid(format!("linux.devices: {:?} is not below /dev", device.path)))?;
    let folder = paths::ensure(root.as_fd(), folder, Wanted::Directory)?;
    let mode = Mode::from_raw_mode(device.file_mode.unwrap_or(0o666) & 0o7777);
    present_is_fine(mknodat(&folder, name, kind, mode, makedev(device.major, device.minor)))
        .doing(|| format!("make {}", device.path))?;
    let owner = (Some(Uid::from_raw(device.uid)), Some(Gid::from_raw(device.gid)));
    chownat(&folder, name, owner.0, owner.1, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)
        .doing(|| format!("owner of {}", device.path))
}
