//! Paths inside a container's root, resolved so that no symbolic link leads out of it.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

use crate::fault::{Doing, Fault, Outcome};

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    Directory,
    File,
}

fn open(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)
}

fn is_directory(fd: &OwnedFd) -> bool {
    rustix::fs::fstat(fd).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

/// Opens (O_PATH) what is at `path` under `root`, making what is missing.
pub fn ensure(root: BorrowedFd<'_>, path: &str, wanted: Wanted) -> Outcome<OwnedFd> {
    let relative = Path::new(path.trim_start_matches('/'));
    let relative = if relative.as_os_str().is_empty() { Path::new(".") } else { relative };
    if relative.components().any(|part| part == std::path::Component::ParentDir) {
        return Err(Fault::invalid(format!("path {path:?} contains \"..\"")));
    }
    let fd = match open(root, relative) {
        Err(Errno::NOENT) => make(root, relative, wanted).doing(|| format!("create {path} in the container"))?,
        result => result.doing(|| format!("open {path} in the container"))?,
    };
    if is_directory(&fd) != (wanted == Wanted::Directory) {
        let (is, other) = if wanted == Wanted::Directory { ("not a", "is") } else { ("a", "is not") };
        return Err(Fault::invalid(format!(
            "{path} in the container is {is} directory, what is mounted there {other}"
        )));
    }
    Ok(fd)
}

fn make(root: BorrowedFd<'_>, path: &Path, wanted: Wanted) -> Result<OwnedFd, Errno> {
    let parent_path = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = match parent_path.map(|parent| open(root, parent)) {
        None => open(root, Path::new("."))?,
        Some(Err(Errno::NOENT)) => make(root, parent_path.unwrap_or(path), Wanted::Directory)?,
        Some(result) => result?,
    };
    let name = path.file_name().ok_or(Errno::INVAL)?;
    match wanted {
        Wanted::Directory => rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755))?,
        Wanted::File => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            drop(rustix::fs::openat(&parent, name, flags, Mode::from_raw_mode(0o644))?);
        }
    }
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(&parent, name, flags, Mode::empty())
}

/// Opens what is at `path` under `base` without leaving it by any link.
pub fn open_beneath(base: &str, path: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
    let base = rustix::fs::open(base, flags, Mode::empty())?;
    let path = if path.is_empty() { "." } else { path };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    openat2(&base, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)
}

/// A path by which mount(2) reaches an open descriptor.
pub fn by_fd(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

pub fn wanted_for(fd: &OwnedFd) -> Wanted {
    if is_directory(fd) { Wanted::Directory } else { Wanted::File }
}

/// True when `path` exists in the calling process's root, without following a last link.
pub fn exists(path: &str) -> bool {
    rustix::fs::statat(rustix::fs::CWD, path, AtFlags::SYMLINK_NOFOLLOW).is_ok()
}
