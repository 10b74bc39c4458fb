//! From the kernel's hand-over to a guest that can be baked: file systems, modules, a root that pivot_root accepts.

use std::ffi::CStr;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, symlinkat};
use rustix::mount::{MountFlags, mount, mount_move};
use rustix::process::{chdir, chroot};

use crate::container::cgroup;
use crate::fault::{Doing, Fault, Outcome};

/// Folders of the agent under /run/thaw.
const FOLDERS: [&str; 7] = ["layers", "scratch", "share", "volumes", "identity", "rootfs", "state"];
/// Files that the steps `identity` and `generation` fill; empty from boot on, so that they can be bound.
pub const IDENTITY_FILES: [&str; 6] = ["hostname", "hosts", "resolv.conf", "machine-id", "boot_id", "generation"];

fn attach(kind: &str, at: &str, flags: MountFlags, data: &CStr) -> Outcome<()> {
    fs::create_dir_all(at).doing(|| format!("create {at}"))?;
    mount(kind, at, kind, flags, data).doing(|| format!("mount {kind} at {at}"))
}

fn load_modules() -> Outcome<()> {
    let order = fs::read_to_string("/modules/order").unwrap_or_default();
    for path in order.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let file = File::open(path).doing(|| format!("open module {path}"))?;
        match rustix::system::finit_module(file.as_fd(), c"", 0) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error).doing(|| format!("load module {path}")),
        }
    }
    Ok(())
}

/// Makes a tmpfs the root in place of the initramfs, whose files are freed: the initramfs cannot be left by pivot_root.
fn switch_root() -> Outcome<()> {
    attach("tmpfs", "/newroot", MountFlags::empty(), c"mode=0755")?;
    for folder in ["proc", "sys", "dev", "run", "tmp", "etc", "bin"] {
        let path = format!("/newroot/{folder}");
        fs::create_dir_all(&path).doing(|| format!("create {path}"))?;
    }
    let stale = fs::read_dir("/").doing(|| "list the initramfs".to_owned())?;
    for entry in stale.filter_map(Result::ok) {
        let name = entry.file_name();
        if ["newroot", "proc", "sys", "dev", "run"].iter().any(|kept| name == *kept) {
            continue;
        }
        let path = entry.path();
        let _ = fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path));
    }
    for folder in ["proc", "sys", "dev", "run"] {
        let from = format!("/{folder}");
        mount_move(from.as_str(), format!("/newroot/{folder}").as_str()).doing(|| format!("move {from}"))?;
    }
    chdir("/newroot").doing(|| "enter the new root".to_owned())?;
    mount_move(".", "/").doing(|| "move the new root".to_owned())?;
    chroot(".").doing(|| "change root".to_owned())?;
    chdir("/").doing(|| "chdir /".to_owned())
}

/// Folders and files under /run/thaw.
pub fn make_folders() -> Outcome<()> {
    for folder in FOLDERS {
        let path = format!("/run/thaw/{folder}");
        fs::create_dir_all(&path).doing(|| format!("create {path}"))?;
    }
    for file in IDENTITY_FILES {
        let path = format!("/run/thaw/identity/{file}");
        File::options().append(true).create(true).open(&path).doing(|| format!("create {path}"))?;
    }
    Ok(())
}

/// Writes to the console, where there is one.
pub fn complain(text: &str) {
    if let Ok(mut console) = File::options().write(true).open("/dev/console") {
        let _ = writeln!(console, "thaw-agent: {text}");
    }
}

/// Gives the process standard streams when the kernel found no console for it.
fn open_standard_streams() {
    while let Ok(fd) = rustix::fs::open("/dev/null", OFlags::RDWR, Mode::empty()) {
        if std::os::fd::AsRawFd::as_raw_fd(&fd) > 2 {
            break;
        }
        std::mem::forget(fd);
    }
}

/// Brings the guest up; PID 1 only.
pub fn boot() -> Outcome<()> {
    let sealed = MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::NODEV;
    attach("devtmpfs", "/dev", MountFlags::NOSUID, c"mode=0755")?;
    open_standard_streams();
    attach("proc", "/proc", sealed, c"")?;
    attach("sysfs", "/sys", sealed, c"")?;
    attach("tmpfs", "/run", MountFlags::NOSUID | MountFlags::NODEV, c"mode=0755")?;
    load_modules()?;
    switch_root()?;
    attach("devpts", "/dev/pts", MountFlags::NOSUID | MountFlags::NOEXEC, c"mode=0620,ptmxmode=0666")?;
    attach("tmpfs", "/dev/shm", sealed, c"mode=1777,size=65536k")?;
    for (target, name) in [("/proc/self/fd", "/dev/fd"), ("/proc/self/fd/0", "/dev/stdin")] {
        let _ = symlinkat(target, CWD, name);
    }
    mount("cgroup2", "/sys/fs/cgroup", "cgroup2", sealed, None).doing(|| "mount cgroup2".to_owned())?;
    cgroup::prepare().doing(|| "prepare the cgroups".to_owned())?;
    make_folders()?;
    // The kernel speaks on the console when it must stop, and else not: console output costs a VM exit for each byte.
    let _ = fs::write("/proc/sys/kernel/printk", "1");
    Ok(())
}

/// Opens the virtio-serial port of this name, found without udev.
fn serial_port(wanted: &str) -> Outcome<OwnedFd> {
    let entries = fs::read_dir("/sys/class/virtio-ports").doing(|| "list the virtio ports".to_owned())?;
    for entry in entries.filter_map(Result::ok) {
        if fs::read_to_string(entry.path().join("name")).is_ok_and(|name| name.trim_end() == wanted) {
            let path = format!("/dev/{}", entry.file_name().to_string_lossy());
            let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
            return rustix::fs::open(&path, flags, Mode::empty()).doing(|| format!("open {path}"));
        }
    }
    Err(Fault::internal(format!("no virtio port {wanted}")))
}

pub enum Channel {
    Port(OwnedFd),
    Listener(OwnedFd),
}

/// vsock when the kernel's command line says so, else virtio-serial.
pub fn channel() -> Outcome<Channel> {
    let line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    if line.split_whitespace().any(|word| word == "thaw.channel=vsock") {
        return crate::sys::vsock_listener(1024)
            .doing(|| "listen on vsock port 1024".to_owned())
            .map(Channel::Listener);
    }
    serial_port("thaw.agent.0").map(Channel::Port)
}
