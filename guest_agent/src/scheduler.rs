//! The scheduler's fair server: what keeps a twentieth of each processor for ordinary tasks beside real-time ones.

use std::fs;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::fault::{Doing, Outcome};

const DEBUGFS: &str = "/sys/kernel/debug";
const ADMISSION: &str = "/proc/sys/kernel/sched_rt_runtime_us";
/// Nanoseconds in each period; written in this order, since the kernel refuses a runtime above the period.
const SERVER: [(&str, &str); 2] = [("runtime", "200000000"), ("period", "4000000000")];

/// Has the fair server run for 200 ms of four seconds instead of 50 ms of one, the same share.
///
/// Its timer wakes a processor once in each period after an ordinary task has run. Deferrable work that is due runs
/// then, which is a task again: with the kernel's period of a second, half of an idle guest's wake-ups came of it.
/// Four seconds are nearly the kernel's longest; the setting is in debugfs alone (Linux: sched/sched-deadline.rst).
pub fn serve_seldom() -> Outcome<()> {
    let sealed = MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::NODEV;
    mount("debugfs", DEBUGFS, "debugfs", sealed, None).doing(|| "mount debugfs".to_owned())?;
    let done = set();
    unmount(DEBUGFS, UnmountFlags::empty()).doing(|| "unmount debugfs".to_owned())?;
    done
}

fn set() -> Outcome<()> {
    // Linux 6.12 counts the server's share when it changes, and not before: a smaller one would be less than nothing,
    // which it refuses (EBUSY). It counts nothing while deadline tasks are admitted without a limit.
    let limit = fs::read_to_string(ADMISSION).doing(|| format!("read {ADMISSION}"))?;
    fs::write(ADMISSION, "-1").doing(|| format!("write {ADMISSION}"))?;
    let done = set_all();
    fs::write(ADMISSION, limit.trim()).doing(|| format!("write {ADMISSION}"))?;
    done
}

fn set_all() -> Outcome<()> {
    let servers = format!("{DEBUGFS}/sched/fair_server");
    for cpu in fs::read_dir(&servers).doing(|| format!("list {servers}"))?.filter_map(Result::ok) {
        for (name, nanoseconds) in SERVER {
            let path = cpu.path().join(name);
            fs::write(&path, nanoseconds).doing(|| format!("write {}", path.display()))?;
        }
    }
    Ok(())
}
