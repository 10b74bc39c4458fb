//! Images as volumes: the layers of an image, or one path inside it, mounted read-only in a container.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::container::paths;
use crate::container::rootfs::LAYERS;
use crate::container::spec::Mount;
use crate::fault::{Code, Doing, Fault, Outcome};
use crate::storage;

/// Where an image is put together before it is bound; in the child's own mount namespace alone.
const STAGE: &str = "/run/thaw/image";
const SUB_PATH: &str = "subpath=";

/// Gives `bind` what is to be mounted: the image whose layers the entry's source names, lowest first, or its sub path.
pub fn with_source<T>(entry: &Mount, bind: impl FnOnce(&OwnedFd) -> Outcome<T>) -> Outcome<T> {
    let layers: Vec<&str> = entry.source.split(':').collect();
    for layer in &layers {
        storage::check_name(layer)?;
    }
    let staged = layers.len() > 1;
    let base = if staged {
        stage(&layers)?;
        STAGE.to_owned()
    } else {
        format!("{LAYERS}/{}", entry.source)
    };
    let result = open(&base, entry).and_then(|source| bind(&source));
    if staged {
        unmount(STAGE, UnmountFlags::DETACH).doing(|| format!("unmount {STAGE}"))?;
    }
    result
}

fn stage(layers: &[&str]) -> Outcome<()> {
    std::fs::create_dir_all(STAGE).doing(|| format!("create {STAGE}"))?;
    rustix::process::chdir(LAYERS).doing(|| format!("chdir {LAYERS}"))?;
    let lower: Vec<&str> = layers.iter().rev().copied().collect();
    let data = format!("lowerdir={}", lower.join(":"));
    if data.len() > 4095 {
        return Err(Fault::invalid("mounts: the names of an image's layers are longer than a page"));
    }
    let data = CString::new(data).map_err(|_| Fault::invalid("mounts: a layer's name contains a NUL byte"))?;
    let flags = MountFlags::RDONLY | MountFlags::NODEV;
    mount("overlay", STAGE, "overlay", flags, data.as_c_str()).doing(|| "mount an image's layers".to_owned())
}

/// Links of the image are followed as if the image were the root: none leads out of it.
fn open(base: &str, entry: &Mount) -> Outcome<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
    let root = rustix::fs::open(base, flags, Mode::empty()).doing(|| format!("open the layers {}", entry.source))?;
    let Some(path) = entry.options.iter().find_map(|option| option.strip_prefix(SUB_PATH)) else { return Ok(root) };
    paths::open_inside(root.as_fd(), path).map_err(|error| {
        let code = match error {
            Errno::NOENT | Errno::NOTDIR => Code::NotFound,
            _ => Code::FailedPrecondition,
        };
        let why = crate::fault::words(&std::io::Error::from(error));
        Fault::new(code, format!("mount at {}: sub path {path:?} of the image: {why}", entry.destination))
    })
}
