//! The holder of the PID namespace that a pod's containers share: its PID 1, which does nothing but reap.
//!
//! Containers see it, so it has nothing to see: the agent's program executed anew, so without the agent's memory, in an
//! empty read-only root, as a user of its own without rights.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::pipe::PipeFlags;

use crate::container::caps::Sets;
use crate::container::create::Stdio;
use crate::container::userns::Space;
use crate::container::{rootfs, userns};
use crate::fault::{Doing, Fault, Outcome};
use crate::sys;

/// The option by which the agent's program is told to be the holder.
pub const OPTION: &str = "--pause";
const ARGUMENTS: [&std::ffi::CStr; 2] = [c"pause", c"--pause"];
/// User and group, those of Kubernetes' pause image.
const ID: u32 = 65_535;

const FORK: &str = "fork the pod's init";

/// Forks the holder into a new PID namespace, the user namespace's where there is one; its pid.
pub fn launch(stdio: &Stdio, space: Option<&Space>) -> Outcome<u32> {
    if let Some(space) = space {
        return launch_inside(stdio, space);
    }
    let forked = sys::fork_into(libc::CLONE_NEWPID | libc::CLONE_NEWNS, None).doing(|| FORK.to_owned())?;
    let Some(pid) = forked else { hold(stdio, || Ok(())) };
    Ok(pid)
}

/// By a child that enters the user namespace, forks the holder as the agent's child, tells its pid and ends: the agent
/// waits for a few system calls.
fn launch_inside(stdio: &Stdio, space: &Space) -> Outcome<u32> {
    let (told, tell) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).doing(|| "make a pipe".to_owned())?;
    let Some(maker) = sys::fork_into(0, None).doing(|| FORK.to_owned())? else {
        let forked = sys::setns(space.user.as_fd(), libc::CLONE_NEWUSER)
            .and_then(|()| sys::fork_sibling(libc::CLONE_NEWPID, None));
        match forked {
            Ok(None) => hold(stdio, || {
                userns::become_root()?;
                sys::unshare(libc::CLONE_NEWNS).doing(|| "make a mount namespace".to_owned())
            }),
            Ok(Some(pid)) => {
                let _ = rustix::io::write(&tell, &pid.to_ne_bytes());
                sys::exit_now(0)
            }
            Err(_) => sys::exit_now(1),
        }
    };
    drop(tell);
    let mut pid = [0; 4];
    let read = rustix::io::read(&told, &mut pid);
    let _ = sys::wait(maker);
    match read {
        Ok(4) => Ok(u32::from_ne_bytes(pid)),
        _ => Err(Fault::internal(format!("{FORK} in the pod's user namespace"))),
    }
}

/// Becomes the holder, once it is where it has to be.
fn hold(stdio: &Stdio, arrive: impl FnOnce() -> Outcome<()>) -> ! {
    sys::ignore_children();
    sys::reset_signals();
    let stdio = [stdio.stdin.as_fd(), stdio.stdout.as_fd(), stdio.stderr.as_fd()];
    if let Err(fault) = arrive().and_then(|()| become_holder(stdio)) {
        crate::boot::complain(&format!("the pod's init: {fault}"));
    }
    sys::exit_now(127)
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
