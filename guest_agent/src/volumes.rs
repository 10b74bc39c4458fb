//! Volumes that live in the guest: copies of what the host publishes, and folders that the pod's containers share.
//!
//! 9p tells nobody in the guest what changes on the host. So what the kubelet publishes by swapping a link is copied here,
//! in the order in which it was published: a program that waits by inotify is woken as it would be on the host.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::fs;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_bind};

use crate::container::rootfs::SCRATCH;
use crate::fault::{Doing, Fault, Outcome};
use crate::request::{Entry, Kind, VolumeMake};

pub const VOLUMES: &str = "/run/thaw/volumes";
/// The link that the kubelet swaps; the others lead through it.
const DATA: &str = "..data";
const TEMPORARY: &str = ".thaw";

fn folder(name: &str) -> Outcome<String> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    if name.is_empty() || name.len() > 64 || !name.bytes().all(good) {
        return Err(Fault::invalid(format!("volume {name:?}: names are 1 to 64 of a-z, A-Z, 0-9 and -")));
    }
    Ok(format!("{VOLUMES}/{name}"))
}

/// A relative path of names alone.
fn plain(path: &str) -> Outcome<&Path> {
    let path = Path::new(path);
    if path.components().any(|part| !matches!(part, Component::Normal(_))) {
        return Err(Fault::invalid(format!("volume: {} is no plain path", path.display())));
    }
    Ok(path)
}

fn open_folder(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, Errno> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::openat2(root, path, flags, Mode::empty(), resolve)
}

/// Makes the volume hold these entries and nothing else. Links change last, the swapped one first.
pub fn write(name: &str, entries: &[Entry]) -> Outcome<()> {
    let base = folder(name)?;
    fs::create_dir_all(&base).doing(|| format!("create {base}"))?;
    fill(&base, entries)
}

fn fill(base: &str, entries: &[Entry]) -> Outcome<()> {
    let root = rustix::fs::open(base, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .doing(|| format!("open {base}"))?;
    let mut wanted = BTreeMap::new();
    for entry in entries {
        wanted.insert(if entry.path.is_empty() { Path::new("") } else { plain(&entry.path)? }, entry);
    }
    let doing = |entry: &Entry| format!("{base}: write {}", entry.path);
    // A folder sorts before what is in it.
    for (path, entry) in wanted.iter().filter(|(_, entry)| entry.kind != Kind::Link) {
        put(&root, path, entry).doing(|| doing(entry))?;
    }
    let links = |first: bool| {
        wanted.iter().filter(move |(path, entry)| entry.kind == Kind::Link && (path.as_os_str() == DATA) == first)
    };
    for (path, entry) in links(true).chain(links(false)) {
        put(&root, path, entry).doing(|| doing(entry))?;
    }
    let kept: BTreeSet<&Path> = wanted.keys().copied().collect();
    sweep(Path::new(base), Path::new(""), &kept).doing(|| format!("{base}: remove what is gone"))
}

fn put(root: &OwnedFd, path: &Path, entry: &Entry) -> std::io::Result<()> {
    let (mode, owner) =
        (Mode::from_raw_mode(entry.mode & 0o7777), (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid)));
    let Some(name) = path.file_name() else {
        rustix::fs::fchown(root, Some(owner.0), Some(owner.1))?;
        return Ok(rustix::fs::fchmod(root, mode)?);
    };
    let parent = open_folder(root.as_fd(), path.parent().unwrap_or(Path::new("")))?;
    match entry.kind {
        Kind::Folder => {
            match rustix::fs::mkdirat(&parent, name, Mode::RWXU) {
                Err(error) if error != Errno::EXIST => return Err(error.into()),
                _ => {}
            }
            let made = open_folder(parent.as_fd(), Path::new(name))?;
            rustix::fs::fchown(&made, Some(owner.0), Some(owner.1))?;
            rustix::fs::fchmod(&made, mode)?;
        }
        Kind::File => {
            let data = STANDARD.decode(&entry.data).map_err(|_| std::io::ErrorKind::InvalidData)?;
            if same(&parent, Path::new(name), entry, &data) {
                return Ok(());
            }
            let flags = OFlags::CREATE | OFlags::TRUNC | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = rustix::fs::openat(&parent, TEMPORARY, flags, Mode::RUSR)?;
            fs::File::from(file.try_clone()?).write_all(&data)?;
            rustix::fs::fchown(&file, Some(owner.0), Some(owner.1))?;
            rustix::fs::fchmod(&file, mode)?;
            rustix::fs::renameat(&parent, TEMPORARY, &parent, name)?;
        }
        Kind::Link => {
            let target = rustix::fs::readlinkat(&parent, name, Vec::new());
            if target.is_ok_and(|target| target.as_bytes() == entry.data.as_bytes()) {
                return Ok(());
            }
            let temporary = format!("{}_tmp", name.to_string_lossy());
            let _ = rustix::fs::unlinkat(&parent, &temporary, AtFlags::empty());
            rustix::fs::symlinkat(&entry.data, &parent, &temporary)?;
            rustix::fs::chownat(&parent, &temporary, Some(owner.0), Some(owner.1), AtFlags::SYMLINK_NOFOLLOW)?;
            rustix::fs::renameat(&parent, &temporary, &parent, name)?;
        }
    }
    Ok(())
}

/// Whether the file is as it should be: then nobody is woken.
fn same(parent: &OwnedFd, name: &Path, entry: &Entry, data: &[u8]) -> bool {
    let Ok(file) = rustix::fs::openat(parent, name, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
    else {
        return false;
    };
    let Ok(stat) = rustix::fs::fstat(&file) else { return false };
    let mut found = Vec::new();
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
        && (stat.st_mode & 0o7777, stat.st_uid, stat.st_gid) == (entry.mode & 0o7777, entry.uid, entry.gid)
        && std::io::Read::read_to_end(&mut fs::File::from(file), &mut found).is_ok()
        && found == data
}

fn sweep(base: &Path, within: &Path, kept: &BTreeSet<&Path>) -> std::io::Result<()> {
    for entry in fs::read_dir(base.join(within))? {
        let entry = entry?;
        let path = within.join(entry.file_name());
        let is_folder = entry.file_type()?.is_dir();
        match (kept.contains(path.as_path()), is_folder) {
            (true, true) => sweep(base, &path, kept)?,
            (true, false) => {}
            (false, true) => fs::remove_dir_all(entry.path())?,
            (false, false) => fs::remove_file(entry.path())?,
        }
    }
    Ok(())
}

/// Makes a volume of the guest's own, once: huge pages, a tmpfs, or without a size a folder of the scratch disk. Then the
/// folder `path` in it, once. Its mode and owner are those it began with on the host.
pub fn make(wanted: &VolumeMake) -> Outcome<()> {
    let base = folder(&wanted.volume)?;
    if fs::create_dir_all(VOLUMES).and_then(|()| fs::create_dir(&base)).is_ok() {
        if let Err(fault) = mount_own(&base, wanted) {
            let _ = fs::remove_dir(&base);
            return Err(fault);
        }
        own(&base, wanted)?;
    }
    let path = plain(&wanted.path)?;
    let mut place = base.clone();
    for part in path.components() {
        place = format!("{place}/{}", part.as_os_str().to_string_lossy());
        match fs::symlink_metadata(&place) {
            Ok(found) if found.is_dir() => {}
            // The host, which does not see it, took it for missing.
            Ok(found) if found.is_file() && Path::new(&place) == Path::new(&base).join(path) => {}
            Ok(_) => return Err(Fault::invalid(format!("volume: {place} is no folder"))),
            Err(_) => {
                fs::create_dir(&place).doing(|| format!("create {place}"))?;
                own(&place, wanted)?;
            }
        }
    }
    Ok(())
}

fn mount_own(base: &str, wanted: &VolumeMake) -> Outcome<()> {
    let flags = MountFlags::NODEV | MountFlags::NOSUID;
    if wanted.huge {
        let size = if wanted.size > 0 { format!(",size={}", wanted.size) } else { String::new() };
        let options = CString::new(format!("pagesize=2M{size}")).unwrap_or_default();
        return mount("hugetlbfs", base, "hugetlbfs", flags, options.as_c_str())
            .doing(|| format!("mount huge pages at {base}"));
    }
    if wanted.size == 0 {
        let place = format!("{SCRATCH}/.volumes/{}", wanted.volume);
        fs::create_dir_all(&place).doing(|| format!("create {place}"))?;
        return mount_bind(place.as_str(), base).doing(|| format!("bind {place}"));
    }
    let options = CString::new(format!("size={}", wanted.size)).unwrap_or_default();
    mount("tmpfs", base, "tmpfs", flags, options.as_c_str()).doing(|| format!("mount a tmpfs at {base}"))
}

fn own(path: &str, wanted: &VolumeMake) -> Outcome<()> {
    std::os::unix::fs::chown(path, Some(wanted.uid), Some(wanted.gid)).doing(|| format!("owner of {path}"))?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(wanted.mode & 0o7777);
    fs::set_permissions(path, mode).doing(|| format!("mode of {path}"))
}

/// Forgets a copy.
pub fn remove(name: &str) -> Outcome<()> {
    let base = folder(name)?;
    match fs::remove_dir_all(&base) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).doing(|| format!("remove {base}")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn entry(path: &str, kind: Kind, data: &str) -> Entry {
        let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        let data = if kind == Kind::File { STANDARD.encode(data) } else { data.to_owned() };
        Entry { path: path.to_owned(), kind, mode: 0o750, uid, gid, data }
    }

    fn published(payload: &str, files: &[(&str, &str)]) -> Vec<Entry> {
        let mut entries = vec![entry("", Kind::Folder, ""), entry(payload, Kind::Folder, "")];
        entries.push(entry("..data", Kind::Link, payload));
        for (name, data) in files {
            entries.push(entry(&format!("{payload}/{name}"), Kind::File, data));
            entries.push(entry(name, Kind::Link, &format!("..data/{name}")));
        }
        entries
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut found: Vec<_> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        found.sort();
        found
    }

    #[test]
    fn a_volume_is_what_was_published_last() {
        let base = std::env::temp_dir().join(format!("thaw-volume-{}", std::process::id()));
        fs::create_dir_all(&base).unwrap();
        let path = base.to_str().unwrap();
        fill(path, &published("..1", &[("key", "one"), ("gone", "x")])).unwrap();
        assert_eq!(fs::read_to_string(base.join("key")).unwrap(), "one");
        assert_eq!(fs::metadata(base.join("key")).unwrap().permissions().mode() & 0o7777, 0o750);
        let held = fs::symlink_metadata(base.join("key")).unwrap();
        fill(path, &published("..2", &[("key", "two"), ("new", "y")])).unwrap();
        assert_eq!(fs::read_to_string(base.join("key")).unwrap(), "two");
        assert_eq!(names(&base), ["..2", "..data", "key", "new"]);
        // What has not changed is not touched: nobody is woken for it.
        let after = fs::symlink_metadata(base.join("key")).unwrap();
        assert_eq!(std::os::unix::fs::MetadataExt::ino(&held), std::os::unix::fs::MetadataExt::ino(&after));
        // A link that a container left is not followed, and goes.
        let elsewhere = base.with_extension("elsewhere");
        fs::create_dir_all(&elsewhere).unwrap();
        symlink(&elsewhere, base.join("..3")).unwrap();
        assert!(fill(path, &published("..3", &[("key", "three")])).is_err());
        fill(path, &published("..2", &[("key", "two")])).unwrap();
        assert_eq!(names(&base), ["..2", "..data", "key"]);
        assert!(names(&elsewhere).is_empty());
        for bad in ["../x", "/x", "a/../../x", "a/./.."] {
            assert!(fill(path, &[entry(bad, Kind::File, "")]).is_err(), "{bad}");
        }
        assert!(fill(path, &[Entry { data: "?".to_owned(), ..entry("x", Kind::File, "") }]).is_err());
        fs::remove_dir_all(&base).unwrap();
        fs::remove_dir_all(&elsewhere).unwrap();
    }

    #[test]
    fn names_of_volumes_are_plain() {
        for bad in ["", ".", "..", "a/b", "a.b", &"a".repeat(65)] {
            assert!(folder(bad).is_err(), "{bad}");
        }
        assert_eq!(folder("own-0f").unwrap(), "/run/thaw/volumes/own-0f");
    }
}
