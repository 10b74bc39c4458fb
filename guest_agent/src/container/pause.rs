//! The holder of the PID namespace that a pod's containers share: its PID 1, which does nothing but reap.
//!
//! Containers see it, so it has nothing to see: the agent's program executed anew, so without the agent's memory, in an
//! empty read-only root, as a user of its own without rights.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};

use crate::container::caps::Sets;
use crate::container::create::Stdio;
use crate::container::rootfs;
use crate::fault::{Doing, Fault, Outcome};
use crate::sys;

/// The option by which the agent's program is told to be the holder.
pub const OPTION: &str = "--pause";
const ARGUMENTS: [&std::ffi::CStr; 2] = [c"pause", c"--pause"];
/// User and group, those of Kubernetes' pause image.
const ID: u32 = 65_535;

/// Forks the holder into a new PID namespace; its pid.
pub fn launch(stdio: &Stdio) -> Outcome<u32> {
    match sys::fork_into(libc::CLONE_NEWPID | libc::CLONE_NEWNS, None).doing(|| "fork the pod's init".to_owned())? {
        Some(pid) => Ok(pid),
        None => {
            sys::ignore_children();
            sys::reset_signals();
            if let Err(fault) = become_holder([stdio.stdin.as_fd(), stdio.stdout.as_fd(), stdio.stderr.as_fd()]) {
                crate::boot::complain(&format!("the pod's init: {fault}"));
            }
            sys::exit_now(127)
        }
    }
}

fn become_holder(stdio: [BorrowedFd<'_>; 3]) -> Outcome<()> {
    const PROGRAM: i32 = 3;
    let program = rustix::fs::open("/proc/self/exe", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .doing(|| "open its program".to_owned())?;
    for (number, fd) in (0..).zip(stdio).chain([(PROGRAM, program.as_fd())]) {
        sys::place_fd(fd, number).doing(|| "place its descriptors".to_owned())?;
    }
    sys::close_from(PROGRAM.unsigned_abs() + 1).doing(|| "close descriptors".to_owned())?;
    std::mem::forget(program);
    let program = sys::inherited_fd(PROGRAM);
    rustix::io::fcntl_setfd(&program, rustix::io::FdFlags::CLOEXEC).doing(|| "place its program".to_owned())?;
    let _ = rustix::process::setsid();
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .doing(|| "make / private".to_owned())?;
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("tmpfs", rootfs::ROOTFS, "tmpfs", flags, c"size=0k,nr_inodes=2,mode=0555")
        .doing(|| "mount its root".to_owned())?;
    let root = rustix::fs::open(rootfs::ROOTFS, OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .doing(|| "open its root".to_owned())?;
    rootfs::pivot(&root)?;
    drop(root);
    sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0).doing(|| "set no_new_privs".to_owned())?;
    let none = Sets::default();
    none.drop_bounding()?;
    sys::set_groups(&[]).doing(|| "setgroups".to_owned())?;
    sys::set_gid(ID).doing(|| "setgid".to_owned())?;
    sys::set_uid(ID).doing(|| "setuid".to_owned())?;
    none.apply(false)?;
    let error = sys::exec_fd(program.as_fd(), &ARGUMENTS.map(ToOwned::to_owned));
    Err(Fault::internal(format!("execute its program: {error}")))
}
