//! Starting processes: a container's init, held before its exec until it is released, and further processes in it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::container::caps::Sets;
use crate::container::cgroup::Cgroup;
use crate::container::namespaces::Own;
use crate::container::spec::{Process, Spec};
use crate::container::{exec, hooks, rootfs, tty};
use crate::fault::{Code, Doing, Fault, Outcome};
use crate::hooks::Phase;
use crate::{status, sys};

/// The child's ends of its standard streams; a process with a terminal has none.
pub struct Stdio {
    pub stdin: OwnedFd,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

pub struct Child {
    pub pid: u32,
    pub status: OwnedFd,
}

/// What a container's init is made from.
pub struct Plan<'a> {
    pub id: &'a str,
    pub spec: &'a Spec,
    pub layers: &'a [String],
    pub own: Own,
    pub terminal: bool,
}

/// Runs `body` in a forked child; what it returns is reported as its failure.
fn child(
    stdio: &Stdio,
    socket: &OwnedFd,
    extra: Option<BorrowedFd<'_>>,
    body: impl FnOnce(BorrowedFd<'_>) -> Outcome<exec::Ready>,
) -> ! {
    sys::reset_signals();
    let streams = [stdio.stdin.as_fd(), stdio.stdout.as_fd(), stdio.stderr.as_fd()];
    if exec::take_descriptors(streams, socket.as_fd(), extra).is_ok() {
        let _ = rustix::process::setsid();
        let status = sys::inherited_fd(exec::STATUS);
        let fault = match body(status.as_fd()) {
            Ok(ready) => ready.go(),
            Err(fault) => fault,
        };
        status::say_failed(status.as_fd(), &fault);
    }
    // What shells say of a program that is missing (127) or cannot be run; containerd does the same.
    sys::exit_now(127)
}

fn console(process: &Process, status: BorrowedFd<'_>) -> Outcome<()> {
    let (master, slave) = tty::open(process.console_size.as_ref())?;
    tty::become_console(&slave)?;
    status::say_ready(status, Some(&master))
}

fn init(plan: &Plan<'_>, caps: &Sets, status: BorrowedFd<'_>) -> Outcome<exec::Ready> {
    sys::new_session_keyring();
    exec::set_oom_score(&plan.spec.process)?;
    if plan.own.cgroup {
        sys::unshare(libc::CLONE_NEWCGROUP).doing(|| "make a cgroup namespace".to_owned())?;
    }
    if let Some(hostname) = plan.spec.hostname.as_ref().filter(|_| plan.own.uts()) {
        rustix::system::sethostname(hostname.as_bytes()).doing(|| format!("set the hostname {hostname:?}"))?;
    }
    rootfs::enter(plan.id, plan.layers, plan.spec)?;
    rootfs::seal(plan.spec)?;
    if plan.terminal {
        console(&plan.spec.process, status)?;
    } else {
        status::say_ready(status, None)?;
    }
    if !status::wait_for_start(status) {
        sys::exit_now(0);
    }
    let env = exec::settle(&plan.spec.process, caps)?;
    exec::Ready::find(&plan.spec.process, env)
}

/// Forks a container's init; it reports ready once its root is entered.
pub fn launch(plan: &Plan<'_>, stdio: &Stdio, cgroup: &Cgroup) -> Outcome<Child> {
    let caps = Sets::parse(plan.spec.process.capabilities.as_ref())?;
    let (ours, theirs) = status::pair()?;
    let cgroup = cgroup.open()?;
    let forked =
        sys::fork_into(plan.own.flags, Some(cgroup.as_fd())).doing(|| "fork the container's init".to_owned())?;
    let Some(pid) = forked else { child(stdio, &theirs, None, |status| init(plan, &caps, status)) };
    Ok(Child { pid, status: ours })
}

fn join_namespaces(process: &Process) -> Outcome<()> {
    sys::new_session_keyring();
    exec::set_oom_score(process)?;
    let target = sys::inherited_fd(exec::EXTRA);
    let kinds = libc::CLONE_NEWNS | libc::CLONE_NEWUTS | libc::CLONE_NEWIPC | libc::CLONE_NEWCGROUP;
    enter(target.as_fd(), kinds, "namespaces")
}

/// Joins namespaces of a container's init, which may be ending: its namespaces admit nobody then, at first with an
/// error of their own each, before the kernel tells that it has ended.
fn enter(init: BorrowedFd<'_>, kinds: i32, what: &str) -> Outcome<()> {
    let joined = sys::setns(init, kinds);
    match joined.as_ref().map_err(io::Error::raw_os_error) {
        Err(Some(libc::ESRCH)) => Err(ended()),
        _ => joined.doing(|| format!("join the container's {what}")),
    }
}

fn ended() -> Fault {
    Fault::new(Code::FailedPrecondition, "the container has ended")
}

fn join(process: &Process, caps: &Sets, terminal: bool, status: BorrowedFd<'_>) -> Outcome<exec::Ready> {
    join_namespaces(process)?;
    if terminal {
        console(process, status)?;
    }
    let env = exec::settle(process, caps)?;
    exec::Ready::find(process, env)
}

/// Forks a further process into the container whose init has this pid.
pub fn launch_exec(process: &Process, init: u32, cgroup: &Cgroup, stdio: &Stdio, terminal: bool) -> Outcome<Child> {
    let caps = Sets::parse(process.capabilities.as_ref())?;
    launch_into(init, cgroup, stdio, |status| join(process, &caps, terminal, status))
}

/// Forks a child into the container whose init has this pid, which runs the hooks as the container's own user.
pub fn launch_hooks(process: &Process, init: u32, cgroup: &Cgroup, stdio: &Stdio, phase: Phase) -> Outcome<Child> {
    let caps = Sets::parse(process.capabilities.as_ref())?;
    launch_into(init, cgroup, stdio, |status| {
        join_namespaces(process)?;
        let env = exec::settle(process, &caps)?;
        hooks::run(phase, &env, status)?;
        sys::exit_now(0)
    })
}

fn launch_into(
    init: u32,
    cgroup: &Cgroup,
    stdio: &Stdio,
    body: impl FnOnce(BorrowedFd<'_>) -> Outcome<exec::Ready>,
) -> Outcome<Child> {
    let (ours, theirs) = status::pair()?;
    let cgroup = cgroup.open()?;
    let init = i32::try_from(init).ok().and_then(Pid::from_raw).ok_or_else(|| Fault::internal("no init"))?;
    let target = match pidfd_open(init, PidfdFlags::empty()) {
        Err(Errno::SRCH) => return Err(ended()),
        opened => opened.doing(|| "open the container's init".to_owned())?,
    };
    // The pid namespace counts for children alone: it is joined before the fork, and left again after it.
    let home = File::open("/proc/self/ns/pid").doing(|| "open the pid namespace".to_owned())?;
    enter(target.as_fd(), libc::CLONE_NEWPID, "pid namespace")?;
    let forked = sys::fork_into(0, Some(cgroup.as_fd()));
    if let Ok(None) = forked {
        child(stdio, &theirs, Some(target.as_fd()), body);
    }
    sys::setns(home.as_fd(), libc::CLONE_NEWPID).doing(|| "leave the container's pid namespace".to_owned())?;
    // A pid namespace whose init has ended has no room.
    let pid = match forked {
        Err(error) if error.raw_os_error() == Some(libc::ENOMEM) => return Err(ended()),
        forked => forked.doing(|| "fork into the container".to_owned())?.unwrap_or_default(),
    };
    Ok(Child { pid, status: ours })
}
