//! Paths inside a container's root, resolved so that no symbolic link leads out of it.

use std::ffi::OsString;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, openat2, readlinkat};
use rustix::io::Errno;

use crate::fault::{Doing, Fault, Outcome};

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    Directory,
    File,
}

/// Links followed on one way, as the kernel counts.
const MAX_LINKS: usize = 40;

fn open_with(root: BorrowedFd<'_>, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    openat2(root, path, OFlags::PATH | OFlags::CLOEXEC | flags, Mode::empty(), resolve)
}

fn open(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, Errno> {
    open_with(root, path, OFlags::empty())
}

fn open_itself(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, Errno> {
    open_with(root, path, OFlags::NOFOLLOW)
}

fn has_type(fd: &OwnedFd, kind: FileType) -> bool {
    rustix::fs::fstat(fd).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == kind)
}

fn is_directory(fd: &OwnedFd) -> bool {
    has_type(fd, FileType::Directory)
}

/// Opens (O_PATH) what is at `path` under `root`, which must be there.
pub fn open_inside(root: BorrowedFd<'_>, path: &str) -> Result<OwnedFd, Errno> {
    let relative = path.trim_start_matches('/');
    open(root, Path::new(if relative.is_empty() { "." } else { relative }))
}

/// Opens (O_PATH) what is at `path` under `root`, making what is missing.
pub fn ensure(root: BorrowedFd<'_>, path: &str, wanted: Wanted) -> Outcome<OwnedFd> {
    let relative = Path::new(path.trim_start_matches('/'));
    let relative = if relative.as_os_str().is_empty() { Path::new(".") } else { relative };
    if relative.components().any(|part| part == Component::ParentDir) {
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

fn names(path: &Path) -> impl Iterator<Item = OsString> {
    let parts = path.components().rev().filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir));
    parts.map(|part| part.as_os_str().to_owned())
}

/// Makes what is missing on the way, also where a link of the image leads to nothing: /etc/resolv.conf often does.
fn make(root: BorrowedFd<'_>, path: &Path, wanted: Wanted) -> Result<OwnedFd, Errno> {
    // What is left to walk, last name first, and the way so far, which holds no links.
    let (mut todo, mut way): (Vec<OsString>, _) = (names(path).collect(), PathBuf::from("."));
    let mut links = 0;
    while let Some(name) = todo.pop() {
        if name == ".." {
            if way != Path::new(".") {
                way.pop();
            }
            continue;
        }
        let next = way.join(&name);
        match open_itself(root, &next) {
            Ok(fd) if has_type(&fd, FileType::Symlink) => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(Errno::LOOP);
                }
                let target = PathBuf::from(OsString::from_vec(readlinkat(&fd, "", Vec::new())?.into_bytes()));
                if target.is_absolute() {
                    way = PathBuf::from(".");
                }
                todo.extend(names(&target));
            }
            Ok(_) => way = next,
            Err(Errno::NOENT) => {
                let parent = open(root, &way)?;
                if wanted == Wanted::File && todo.is_empty() {
                    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    drop(rustix::fs::openat(&parent, &name, flags, Mode::from_raw_mode(0o644))?);
                } else {
                    rustix::fs::mkdirat(&parent, &name, Mode::from_raw_mode(0o755))?;
                }
                way = next;
            }
            Err(error) => return Err(error),
        }
    }
    open(root, &way)
}

/// Whether what is at `path` under `root` is itself a symbolic link.
pub fn is_link(root: BorrowedFd<'_>, path: &str) -> bool {
    open_itself(root, Path::new(path.trim_matches('/'))).is_ok_and(|fd| has_type(&fd, FileType::Symlink))
}

/// Opens what is at `path` under `base`, with no link on the way.
pub fn open_beneath(base: &str, path: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
    let base = rustix::fs::open(base, flags, Mode::empty())?;
    let path = if path.is_empty() { "." } else { path };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::AsFd;
    use std::os::unix::fs::symlink;

    use super::*;

    fn with_root(name: &str, body: impl FnOnce(&Path, BorrowedFd<'_>)) {
        let base = std::env::temp_dir().join(format!("thaw-paths-{name}-{}", std::process::id()));
        let root = base.join("root");
        fs::create_dir_all(&root).unwrap();
        let fd = rustix::fs::open(&root, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        body(&root, fd.as_fd());
        let outside: Vec<_> = fs::read_dir(&base).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(outside, ["root"]);
        fs::remove_dir_all(&base).unwrap();
    }

    #[test]
    fn what_is_missing_is_made_inside() {
        with_root("made", |root, fd| {
            fs::create_dir(root.join("etc")).unwrap();
            for (link, target, made) in [
                ("etc/one", "../run/systemd/one", "run/systemd/one"),
                ("etc/two", "/var/lib/two", "var/lib/two"),
                ("etc/three", "../../../../three", "three"),
                ("etc/four", "/etc/five", "six"),
                ("etc/five", "../../six", "six"),
            ] {
                symlink(target, root.join(link)).unwrap();
                if link != "etc/four" {
                    ensure(fd, link, Wanted::File).unwrap();
                    assert!(root.join(made).is_file(), "{link}");
                }
            }
            ensure(fd, "/etc/four", Wanted::File).unwrap();
            symlink("/elsewhere", root.join("folder")).unwrap();
            ensure(fd, "/folder/below/it", Wanted::Directory).unwrap();
            assert!(root.join("elsewhere/below/it").is_dir());
            assert!(is_link(fd, "/folder") && !is_link(fd, "/etc"));
            assert!(ensure(fd, "/etc/one", Wanted::Directory).is_err());
        });
    }

    #[test]
    fn loops_and_ways_out_are_refused() {
        with_root("refused", |root, fd| {
            symlink("b", root.join("a")).unwrap();
            symlink("a/x", root.join("b")).unwrap();
            assert!(ensure(fd, "/a/y", Wanted::File).is_err());
            assert!(ensure(fd, "/x/../../y", Wanted::File).is_err());
            assert_eq!(open_inside(fd, "a").unwrap_err(), Errno::LOOP);
            assert_eq!(open_inside(fd, "none").unwrap_err(), Errno::NOENT);
            fs::write(root.join("file"), "").unwrap();
            assert!(ensure(fd, "/file/below", Wanted::File).is_err());
        });
    }
}
