//! The empty virtio-scsi slots that the host fills: LUN n of target 0 on the only controller.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::fault::{Code, Doing, Fault, Outcome};

const DEVICES: &str = "/sys/bus/scsi/devices";

struct Slot {
    folder: PathBuf,
    device: String,
}

/// `H:C:T:L` as a LUN of the controller's first target. The host's number is not always 0.
fn lun_of(address: &str) -> Option<u32> {
    let mut numbers = address.split(':').map(str::parse);
    match (numbers.next()?, numbers.next()?, numbers.next()?, numbers.next()?, numbers.next()) {
        (Ok(_host), Ok(0), Ok(0), Ok(lun), None) => Some(lun),
        _ => None,
    }
}

fn device_in(folder: &Path) -> io::Result<String> {
    let entry = fs::read_dir(folder.join("block"))?.find_map(Result::ok).ok_or(io::ErrorKind::NotFound)?;
    // The host's page cache is behind it: there is nothing to gain by reordering.
    let _ = fs::write(entry.path().join("queue/scheduler"), "none");
    Ok(format!("/dev/{}", entry.file_name().to_string_lossy()))
}

fn find() -> io::Result<HashMap<u32, Slot>> {
    let mut found = HashMap::new();
    for entry in fs::read_dir(DEVICES)?.filter_map(Result::ok) {
        if let Some(lun) = entry.file_name().to_str().and_then(lun_of) {
            let folder = entry.path();
            let device = device_in(&folder)?;
            found.insert(lun, Slot { folder, device });
        }
    }
    Ok(found)
}

/// The machine has all its slots from boot on, so they are looked for once: before the bake.
fn slot(lun: u32) -> Outcome<&'static Slot> {
    static SLOTS: OnceLock<HashMap<u32, Slot>> = OnceLock::new();
    let slots = match SLOTS.get() {
        Some(slots) => slots,
        None => {
            let found = find().doing(|| format!("list the slots in {DEVICES}"))?;
            SLOTS.get_or_init(|| found)
        }
    };
    slots.get(&lun).ok_or_else(|| Fault::new(Code::NotFound, format!("slot {lun}: the guest has no such LUN")))
}

/// The block device of a LUN.
pub fn device(lun: u32) -> Outcome<&'static str> {
    Ok(&slot(lun)?.device)
}

/// Makes the kernel read the LUN's size again; needed where the size matters, and costly (11 ms).
pub fn rescan(lun: u32) -> Outcome<()> {
    let path = slot(lun)?.folder.join("rescan");
    fs::write(&path, "1").doing(|| format!("rescan {}", path.display()))
}

/// The number of the block device of a LUN that was filled just now, with the size that it has now.
pub fn fresh(lun: u32) -> Outcome<u64> {
    rescan(lun)?;
    let device = device(lun)?;
    Ok(rustix::fs::stat(device).doing(|| format!("stat {device}"))?.st_rdev)
}

/// Writes out and forgets what the kernel holds of a LUN that is to be emptied; `FailedPrecondition` while it is mounted.
pub fn release(lun: u32) -> Outcome<()> {
    let device = device(lun)?;
    // Exclusively, for block devices: not while a file system is mounted from it.
    let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC;
    let disk = rustix::fs::open(device, flags, Mode::empty()).map_err(|error| {
        let code = if error == Errno::BUSY { Code::FailedPrecondition } else { Code::Internal };
        let why = crate::fault::words(&io::Error::from(error));
        Fault::new(code, format!("slot {lun}: open {device}: {why}"))
    })?;
    rustix::fs::fsync(&disk).doing(|| format!("write out {device}"))?;
    crate::sys::forget_buffers(disk.as_fd()).doing(|| format!("forget {device}"))
}

#[cfg(test)]
mod tests {
    use super::lun_of;

    #[test]
    fn only_luns_of_the_first_target_are_slots() {
        assert_eq!(lun_of("0:0:0:13"), Some(13));
        assert_eq!(lun_of("6:0:0:0"), Some(0));
        for other in ["host0", "target0:0:0", "0:0:1:0", "0:1:0:0", "0:0:0", "0:0:0:0:0", "0:0:0:x", ""] {
            assert_eq!(lun_of(other), None, "{other}");
        }
    }
}
