//! Capability names and sets.

use std::io;

use crate::container::spec::Capabilities;
use crate::fault::{Doing, Fault, Outcome};
use crate::sys;

/// In the order of their numbers, include/uapi/linux/capability.h.
const NAMES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

const SYS_ADMIN: u64 = 1 << 21;

/// Capability sets as bit masks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sets {
    pub bounding: u64,
    pub effective: u64,
    pub inheritable: u64,
    pub permitted: u64,
    pub ambient: u64,
}

fn mask(names: &[String]) -> Outcome<u64> {
    names.iter().try_fold(0, |mask, name| match NAMES.iter().position(|known| known == name) {
        Some(number) => Ok(mask | 1 << number),
        None => Err(Fault::invalid(format!("process.capabilities: unknown capability {name:?}"))),
    })
}

impl Sets {
    /// No `capabilities` in the specification means none at all.
    pub fn parse(capabilities: Option<&Capabilities>) -> Outcome<Self> {
        let Some(given) = capabilities else { return Ok(Self::default()) };
        Ok(Self {
            bounding: mask(&given.bounding)?,
            effective: mask(&given.effective)?,
            inheritable: mask(&given.inheritable)?,
            permitted: mask(&given.permitted)?,
            ambient: mask(&given.ambient)?,
        })
    }

    /// First half, before the change of user: drops from the bounding set, keeps the rest across the change.
    pub fn drop_bounding(&self) -> Outcome<()> {
        for (number, name) in NAMES.iter().enumerate() {
            if self.bounding & 1 << number == 0 {
                let dropped = sys::prctl(libc::PR_CAPBSET_DROP, number as u64, 0);
                // EINVAL: a kernel older than this capability.
                if let Err(error) = dropped
                    && error.raw_os_error() != Some(libc::EINVAL)
                {
                    return Err(error).doing(|| format!("drop {name} from the bounding set"));
                }
            }
        }
        sys::prctl(libc::PR_SET_KEEPCAPS, 1, 0).doing(|| "keep capabilities".to_owned())
    }

    /// Whether CAP_SYS_ADMIN is in effect.
    pub fn may_administrate(&self) -> bool {
        self.effective & self.permitted & SYS_ADMIN != 0
    }

    /// Second half, after the change of user. With `keep_admin` CAP_SYS_ADMIN stays until `set`.
    pub fn apply(&self, keep_admin: bool) -> Outcome<()> {
        sys::prctl(libc::PR_SET_KEEPCAPS, 0, 0).doing(|| "clear keep-capabilities".to_owned())?;
        let more = if keep_admin { SYS_ADMIN } else { 0 };
        sys::set_capabilities(self.effective | more, self.permitted | more, self.inheritable)
            .doing(|| "set capabilities".to_owned())?;
        for (number, name) in NAMES.iter().enumerate() {
            if self.ambient & 1 << number != 0 {
                sys::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE as u64, number as u64)
                    .doing(|| format!("raise ambient {name}"))?;
            }
        }
        Ok(())
    }

    /// One system call: what `apply` kept goes.
    pub fn set(&self) -> io::Result<()> {
        sys::set_capabilities(self.effective, self.permitted, self.inheritable)
    }
}
