//! Layers, the scratch disk and the 9p share: what the host binds into a running guest.

use std::collections::HashMap;
use std::fs;

use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::container::rootfs::{LAYERS, SCRATCH};
use crate::fault::{Code, Doing, Fault, Outcome};
use crate::scsi;

const SHARE: &str = "/run/thaw/share";
/// Bytes in one 9p message.
const SHARE_OPTIONS: &std::ffi::CStr = c"trans=virtio,version=9p2000.L,msize=262144";

/// Nothing that a thread of the kernel does later: every VM restored from the snapshot would do it again.
const SCRATCH_OPTIONS: &std::ffi::CStr = c"no_prefetch_block_bitmaps,noinit_itable";

#[derive(Default)]
pub struct Storage {
    /// Layer names and the slots they were mounted from.
    layers: HashMap<String, u32>,
    scratch: Option<u32>,
    share: bool,
}

pub fn check_name(name: &str) -> Outcome<()> {
    let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    if name.is_empty() || name.len() > 64 || !name.bytes().all(good) {
        return Err(Fault::invalid(format!("layer {name:?}: names are 1 to 64 of a-z and 0-9")));
    }
    Ok(())
}

impl Storage {
    pub fn has(&self, layer: &str) -> bool {
        self.layers.contains_key(layer)
    }

    pub fn mount_layer(&mut self, slot: u32, layer: &str) -> Outcome<()> {
        check_name(layer)?;
        if let Some(mounted) = self.layers.get(layer) {
            if *mounted == slot {
                return Ok(());
            }
            let text = format!("layer {layer} is mounted from slot {mounted}");
            return Err(Fault::new(Code::AlreadyExists, text));
        }
        let device = scsi::device(slot)?;
        let path = format!("{LAYERS}/{layer}");
        fs::create_dir_all(&path).doing(|| format!("create {path}"))?;
        let flags = MountFlags::RDONLY | MountFlags::NODEV;
        if let Err(error) = mount(device, path.as_str(), "squashfs", flags, None) {
            let _ = fs::remove_dir(&path);
            return Err(error).doing(|| format!("slot {slot}: mount {device} as layer {layer}"));
        }
        self.layers.insert(layer.to_owned(), slot);
        Ok(())
    }

    pub fn unmount_layer(&mut self, layer: &str) -> Outcome<()> {
        check_name(layer)?;
        if !self.layers.contains_key(layer) {
            return Ok(());
        }
        let path = format!("{LAYERS}/{layer}");
        unmount(path.as_str(), UnmountFlags::NOFOLLOW).doing(|| format!("unmount layer {layer}"))?;
        self.layers.remove(layer);
        fs::remove_dir(&path).doing(|| format!("remove {path}"))
    }

    pub fn mount_scratch(&mut self, slot: u32) -> Outcome<()> {
        if let Some(mounted) = self.scratch {
            if mounted == slot {
                return Ok(());
            }
            return Err(Fault::new(Code::AlreadyExists, format!("scratch is mounted from slot {mounted}")));
        }
        scsi::rescan(slot)?;
        let device = scsi::device(slot)?;
        let flags = MountFlags::NODEV | MountFlags::NOATIME;
        mount(device, SCRATCH, "ext4", flags, Some(SCRATCH_OPTIONS))
            .doing(|| format!("slot {slot}: mount {device} as scratch"))?;
        self.scratch = Some(slot);
        Ok(())
    }

    pub fn mount_share(&mut self) -> Outcome<()> {
        if self.share {
            return Ok(());
        }
        mount("share", SHARE, "9p", MountFlags::NODEV, SHARE_OPTIONS).doing(|| "mount the share".to_owned())?;
        self.share = true;
        Ok(())
    }

    pub fn unmount_share(&mut self) -> Outcome<()> {
        match unmount(SHARE, UnmountFlags::NOFOLLOW) {
            Ok(()) | Err(Errno::INVAL) => {
                self.share = false;
                Ok(())
            }
            Err(error) => Err(error).doing(|| "unmount the share".to_owned()),
        }
    }
}
