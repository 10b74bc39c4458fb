//! The empty virtio-scsi slots that the host fills: LUN n of target 0 on the only controller.

use std::fs;
use std::path::PathBuf;

use crate::fault::{Code, Doing, Fault, Outcome};

const DEVICES: &str = "/sys/bus/scsi/devices";

/// The folder of a LUN. The host's number is not always 0: SATA controllers of the machine come first.
fn folder(lun: u32) -> Outcome<PathBuf> {
    let wanted = format!(":0:0:{lun}");
    let entries = fs::read_dir(DEVICES).doing(|| format!("list {DEVICES}"))?;
    entries
        .filter_map(Result::ok)
        .find(|entry| {
            entry
                .file_name()
                .to_string_lossy()
                .strip_suffix(&wanted)
                .is_some_and(|host| !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_digit()))
        })
        .map(|entry| entry.path())
        .ok_or_else(|| Fault::new(Code::NotFound, format!("slot {lun}: the guest has no such LUN")))
}

/// The block device of a LUN.
pub fn device(lun: u32) -> Outcome<String> {
    let block = folder(lun)?.join("block");
    let mut entries = fs::read_dir(&block).doing(|| format!("list {}", block.display()))?;
    let name = entries.find_map(Result::ok).map(|entry| entry.file_name().to_string_lossy().into_owned());
    name.map(|name| format!("/dev/{name}"))
        .ok_or_else(|| Fault::new(Code::NotFound, format!("slot {lun}: it has no block device")))
}

/// Makes the kernel read the LUN's size again; needed where the size matters, and costly (11 ms).
pub fn rescan(lun: u32) -> Outcome<()> {
    let path = folder(lun)?.join("rescan");
    fs::write(&path, "1").doing(|| format!("rescan {}", path.display()))
}
