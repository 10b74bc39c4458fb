//! Starting processes: a container's init, held before its exec until it is released, and further processes in it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::agent::Container;
use crate::container::caps::Sets;
use crate::container::cgroup::Cgroup;
use crate::container::mounts::Users;
use crate::container::namespaces::Own;
use crate::container::seccomp::Filter;
use crate::container::spec::{Process, Spec};
use crate::container::user::{self, Identity};
use crate::container::userns::{self, Mappings, Space};
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
    pub filter: Option<&'a Filter>,
    /// The process whose PID namespace it joins instead of having one of its own.
    pub pid_space: Option<u32>,
    pub cgroup: &'a Cgroup,
    /// Of the pod's user namespace, where it is in that.
    pub space: Option<&'a Mappings>,
}

/// Runs `body` in a forked child; what it returns is reported as its failure.
fn child<'a>(
    stdio: &Stdio,
    socket: &OwnedFd,
    extra: Option<BorrowedFd<'_>>,
    body: impl FnOnce(BorrowedFd<'_>) -> Outcome<exec::Ready<'a>>,
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

fn console(process: &Process, user: Option<&Identity>, status: BorrowedFd<'_>) -> Outcome<()> {
    let (master, slave) = tty::open(process.console_size.as_ref())?;
    tty::become_console(&slave)?;
    status::say_ready(status, Some(&master), user)
}

fn who(process: &Process) -> Outcome<Identity> {
    let has_home = process.env.iter().any(|text| text.starts_with("HOME="));
    user::resolve(&process.user, !has_home)
}

fn init<'a>(plan: &Plan<'a>, caps: &Sets, status: BorrowedFd<'_>) -> Outcome<exec::Ready<'a>> {
    let process = &plan.spec.process;
    exec::set_oom_score(process)?;
    match plan.space {
        None => {
            sys::new_session_keyring();
            own_namespaces(plan, 0)?;
            rootfs::isolate()?;
            let parts = rootfs::prepare(plan.id, plan.layers, plan.spec, None)?;
            rootfs::assemble(plan.spec, parts, false)?;
        }
        Some(mappings) => enter_space(plan, mappings, status)?,
    }
    rootfs::seal(plan.spec)?;
    let identity = who(process)?;
    if let Some(mappings) = plan.space {
        mappings.check_user(&identity)?;
    }
    if plan.terminal {
        console(process, Some(&identity), status)?;
    } else {
        status::say_ready(status, None, Some(&identity))?;
    }
    if !status::wait_for_start(status) {
        sys::exit_now(0);
    }
    if plan.space.is_none() {
        exec::set_limits(process)?;
    }
    let settled = exec::settle(process, caps, &identity, plan.filter)?;
    exec::Ready::find(process, settled)
}

/// Makes the namespaces that are left to be made by the process that is in them, `flags` and the cgroup's.
fn own_namespaces(plan: &Plan<'_>, flags: i32) -> Outcome<()> {
    let flags = flags | if plan.own.cgroup { libc::CLONE_NEWCGROUP } else { 0 };
    if flags != 0 {
        sys::unshare(flags).doing(|| "make namespaces".to_owned())?;
    }
    if let Some(hostname) = plan.spec.hostname.as_ref().filter(|_| plan.own.uts()) {
        rustix::system::sethostname(hostname.as_bytes()).doing(|| format!("set the hostname {hostname:?}"))?;
    }
    Ok(())
}

/// Enters the pod's user namespace, so that the namespaces made from then on belong to it. The calling process gets ready
/// all that takes rights outside, and ends here: a sibling that it forks inside goes on, in a PID namespace of the user
/// namespace's. That one tells the agent of itself first of all, and its maker waits for this, so that no end of either
/// is taken for the other's.
fn enter_space(plan: &Plan<'_>, mappings: &Mappings, status: BorrowedFd<'_>) -> Outcome<()> {
    let user = sys::inherited_fd(exec::EXTRA);
    rustix::io::fcntl_setfd(&user, rustix::io::FdFlags::CLOEXEC).doing(|| "keep the user namespace".to_owned())?;
    rootfs::isolate()?;
    let users = Users { user: user.as_fd(), mappings };
    let parts = rootfs::prepare(plan.id, plan.layers, plan.spec, Some(&users))?;
    let cgroup = plan.cgroup.open()?;
    exec::set_limits(&plan.spec.process)?;
    let (uid, gid) = mappings.root()?;
    exec::own_streams(uid, Some(gid));
    let (told, tell) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).doing(|| "make a pipe".to_owned())?;
    enter_user(user.as_fd())?;
    let forked = sys::fork_sibling(plan.own.flags & libc::CLONE_NEWPID, Some(cgroup.as_fd()));
    if forked.doing(|| "fork a process of the container".to_owned())?.is_some() {
        drop(tell);
        let _ = rustix::io::read(&told, &mut [0]);
        sys::exit_now(0);
    }
    status::say_replaced(status)?;
    drop((told, tell));
    let _ = rustix::process::setsid();
    userns::become_root()?;
    sys::new_session_keyring();
    own_namespaces(plan, plan.own.flags & !libc::CLONE_NEWPID)?;
    rootfs::assemble(plan.spec, parts, true)
}

fn enter_user(user: BorrowedFd<'_>) -> Outcome<()> {
    sys::setns(user, libc::CLONE_NEWUSER).doing(|| "enter the pod's user namespace".to_owned())
}

/// Forks a container's init; it reports ready once its root is entered.
pub fn launch(plan: &Plan<'_>, space: Option<&Space>, stdio: &Stdio) -> Outcome<Child> {
    let caps = Sets::parse(plan.spec.process.capabilities.as_ref())?;
    let (ours, theirs) = status::pair()?;
    let target = plan.pid_space.map(process_fd).transpose()?;
    // What is forked for a user namespace is none of the container's processes yet.
    let (flags, cgroup) = match space {
        None => (plan.own.flags, Some(plan.cgroup.open()?)),
        Some(_) => (libc::CLONE_NEWNS, None),
    };
    let forked = fork_beside(target.as_ref().map(AsFd::as_fd), flags, cgroup.as_ref())?;
    let Some(pid) = forked else {
        child(stdio, &theirs, space.map(|space| space.user.as_fd()), |status| init(plan, &caps, status))
    };
    Ok(Child { pid, status: ours })
}

fn process_fd(pid: u32) -> Outcome<OwnedFd> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(|| Fault::internal("no init"))?;
    match pidfd_open(pid, PidfdFlags::empty()) {
        Err(Errno::SRCH) => Err(ended()),
        opened => opened.doing(|| "open the container's init".to_owned()),
    }
}

/// Forks into the PID namespace of a process, if one is given. None is the child.
fn fork_beside(target: Option<BorrowedFd<'_>>, flags: i32, cgroup: Option<&OwnedFd>) -> Outcome<Option<u32>> {
    // The pid namespace counts for children alone: it is joined before the fork, and left again after it.
    let home = match target {
        Some(target) => {
            let home = File::open("/proc/self/ns/pid").doing(|| "open the pid namespace".to_owned())?;
            enter(target, libc::CLONE_NEWPID, "pid namespace")?;
            Some(home)
        }
        None => None,
    };
    let forked = sys::fork_into(flags, cgroup.map(AsFd::as_fd));
    if let (Some(home), false) = (home, matches!(forked, Ok(None))) {
        sys::setns(home.as_fd(), libc::CLONE_NEWPID).doing(|| "leave the container's pid namespace".to_owned())?;
    }
    match forked {
        // A pid namespace whose init has ended has no room.
        Err(error) if target.is_some() && error.raw_os_error() == Some(libc::ENOMEM) => Err(ended()),
        forked => forked.doing(|| "fork a process of the container".to_owned()),
    }
}

fn join_namespaces(process: &Process, space: Option<&Mappings>) -> Outcome<()> {
    exec::set_oom_score(process)?;
    exec::set_limits(process)?;
    let target = sys::inherited_fd(exec::EXTRA);
    let kinds = libc::CLONE_NEWNS | libc::CLONE_NEWUTS | libc::CLONE_NEWIPC | libc::CLONE_NEWCGROUP;
    match space {
        None => enter(target.as_fd(), kinds, "namespaces")?,
        Some(mappings) => {
            let (uid, gid) = mappings.root()?;
            exec::own_streams(uid, Some(gid));
            enter(target.as_fd(), kinds | libc::CLONE_NEWUSER, "namespaces")?;
            userns::become_root()?;
        }
    }
    sys::new_session_keyring();
    Ok(())
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

fn join<'a>(
    process: &Process,
    space: Option<&Mappings>,
    caps: &Sets,
    container: &'a Container,
    terminal: Option<BorrowedFd<'_>>,
) -> Outcome<exec::Ready<'a>> {
    join_namespaces(process, space)?;
    if let Some(status) = terminal {
        console(process, None, status)?;
    }
    let settled = exec::settle(process, caps, &who(process)?, container.filter.as_ref())?;
    exec::Ready::find(process, settled)
}

/// Forks a further process into the container.
pub fn launch_exec(
    process: &Process,
    container: &Container,
    space: Option<&Mappings>,
    stdio: &Stdio,
    terminal: bool,
) -> Outcome<Child> {
    let caps = Sets::parse(process.capabilities.as_ref())?;
    launch_into(container, stdio, |status| join(process, space, &caps, container, terminal.then_some(status)))
}

/// Forks a child into the container, which runs the hooks as the container's own user.
pub fn launch_hooks(container: &Container, space: Option<&Mappings>, stdio: &Stdio, phase: Phase) -> Outcome<Child> {
    let process = &container.process;
    let caps = Sets::parse(process.capabilities.as_ref())?;
    launch_into(container, stdio, |status| {
        join_namespaces(process, space)?;
        let (env, seal) = exec::settle(process, &caps, &who(process)?, container.filter.as_ref())?;
        hooks::run(phase, &env, &seal, status)?;
        sys::exit_now(0)
    })
}

fn launch_into<'a>(
    container: &Container,
    stdio: &Stdio,
    body: impl FnOnce(BorrowedFd<'_>) -> Outcome<exec::Ready<'a>>,
) -> Outcome<Child> {
    let (ours, theirs) = status::pair()?;
    let cgroup = container.cgroup.open()?;
    let target = process_fd(container.pid)?;
    let forked = fork_beside(Some(target.as_fd()), 0, Some(&cgroup))?;
    let Some(pid) = forked else { child(stdio, &theirs, Some(target.as_fd()), body) };
    Ok(Child { pid, status: ours })
}
