//! The life of containers and their further processes, as the event loop sees it.

use std::os::fd::{AsFd, OwnedFd};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::fs::{Mode, OFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use serde_json::{Value, json};

use crate::agent::{Agent, ChildState, Container, Exec, Reply, State, Who, now_ns};
use crate::container::cgroup::Cgroup;
use crate::container::create::{Plan, Stdio, launch, launch_exec};
use crate::container::namespaces::{Own, PidSpace};
use crate::container::seccomp::Filter;
use crate::container::user::Identity;
use crate::container::{devices, pause, rootfs, signals, trash};
use crate::fault::{Code, Doing, Fault, Outcome};
use crate::request::{Create, ExecParams, StreamIds};
use crate::rpc::Given;
use crate::source::Source;
use crate::status::{self, Heard, Report};
use crate::streams::End;
use crate::{hooks, limits, sys};

/// The agent's ends of a process's pipes, by stream.
#[derive(Default)]
struct Ends {
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
}

fn null() -> Outcome<OwnedFd> {
    rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).doing(|| "open /dev/null".to_owned())
}

/// Bytes that a process may be ahead of the agent.
const OUTPUT_PIPE: usize = 256 * 1024;

/// The reading and the writing end; the agent's is nonblocking.
fn pipe(ours_reads: bool) -> Outcome<(OwnedFd, OwnedFd)> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).doing(|| "make a pipe".to_owned())?;
    let ours = if ours_reads { &reader } else { &writer };
    rustix::io::ioctl_fionbio(ours.as_fd(), true).doing(|| "make a pipe".to_owned())?;
    if ours_reads {
        // A writer that seldom has to wait: each wait costs two changes of the process.
        let _ = rustix::pipe::fcntl_setpipe_size(&reader, OUTPUT_PIPE);
    }
    Ok((reader, writer))
}

/// Streams that lead nowhere.
pub fn null_streams() -> Outcome<Stdio> {
    Ok(Stdio { stdin: null()?, stdout: null()?, stderr: null()? })
}

fn stdio(ids: StreamIds, terminal: bool) -> Outcome<(Stdio, Ends)> {
    let mut ends = Ends::default();
    if terminal {
        return Ok((null_streams()?, ends));
    }
    let stdin = match ids.stdin {
        0 => null()?,
        _ => {
            let (reader, writer) = pipe(false)?;
            ends.stdin = Some(writer);
            reader
        }
    };
    let output = |id: u32, end: &mut Option<OwnedFd>| -> Outcome<OwnedFd> {
        if id == 0 {
            return null();
        }
        let (reader, writer) = pipe(true)?;
        *end = Some(reader);
        Ok(writer)
    };
    let stdout = output(ids.stdout, &mut ends.stdout)?;
    let stderr = output(ids.stderr, &mut ends.stderr)?;
    Ok((Stdio { stdin, stdout, stderr }, ends))
}

fn check_streams(agent: &Agent, ids: StreamIds, terminal: bool) -> Outcome<()> {
    let mut used: Vec<u32> = [ids.stdin, ids.stdout, ids.stderr].into_iter().filter(|id| *id != 0).collect();
    let count = used.len();
    used.sort_unstable();
    used.dedup();
    if used.len() != count || used.iter().any(|id| agent.streams.knows(*id)) {
        return Err(Fault::invalid("streams: an id is already in use"));
    }
    if terminal && ids.stderr != 0 {
        return Err(Fault::invalid("streams: a terminal has no stderr of its own"));
    }
    Ok(())
}

fn attach(agent: &mut Agent, ids: StreamIds, ends: Ends, kind: End) {
    if let Some(fd) = ends.stdin {
        agent.streams.add_input(&agent.poll, ids.stdin, fd, kind);
    }
    for (id, end) in [(ids.stdout, ends.stdout), (ids.stderr, ends.stderr)] {
        if let Some(fd) = end {
            agent.streams.add_output(&agent.poll, id, fd, kind);
        }
    }
}

fn check_id(id: &str) -> Outcome<()> {
    let good = id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    if good { Ok(()) } else { Err(Fault::invalid(format!("container id {id:?} is not 64 hexadecimal digits"))) }
}

pub fn create(agent: &mut Agent, reply: Reply, mut wanted: Create) -> Outcome<()> {
    check_id(&wanted.id)?;
    wanted.spec.check()?;
    let own = Own::parse(&wanted.spec.linux.namespaces)?;
    check_streams(agent, wanted.streams, wanted.terminal)?;
    if agent.containers.contains_key(&wanted.id) {
        return Err(Fault::new(Code::AlreadyExists, format!("container {} exists", wanted.id)));
    }
    if wanted.layers.is_empty() {
        return Err(Fault::invalid("layers: none"));
    }
    if let Some(layer) = wanted.layers.iter().find(|layer| !agent.storage.has(layer)) {
        return Err(Fault::new(Code::NotFound, format!("layer {layer} is not mounted")));
    }
    devices::find(&mut wanted.spec.linux)?;
    let filter = wanted.spec.linux.seccomp.as_ref().map(Filter::parse).transpose()?;
    if own.user != agent.space.is_some() {
        let has = if own.user { "the pod has none" } else { "the pod has one, which is its containers' too" };
        return Err(Fault::new(Code::FailedPrecondition, format!("linux.namespaces: user: {has}")));
    }
    let root = agent.space.as_ref().map_or(Ok((0, 0)), |space| space.mappings.root())?;
    let pid_space = pid_space(agent, &own.pid)?;
    let (child_ends, ends) = stdio(wanted.streams, wanted.terminal)?;
    let cgroup = Cgroup::create(&wanted.id, &wanted.spec.linux.resources)?;
    let huge = cgroup.huge_pages();
    let plan = Plan {
        id: &wanted.id,
        spec: &wanted.spec,
        layers: &wanted.layers,
        own,
        terminal: wanted.terminal,
        filter: filter.as_ref(),
        pid_space,
        cgroup: &cgroup,
        space: agent.space.as_ref().map(|space| &space.mappings),
    };
    // Never one that was used: what a removed container wrote goes by and by.
    let project = agent.next_project;
    agent.next_project = project.wrapping_add(1).max(1);
    let launched = agent
        .filters
        .attach(&cgroup, &wanted.spec.linux.resources.devices)
        .and_then(|()| if wanted.spec.writes_cgroup() { cgroup.delegate(root) } else { Ok(()) })
        .and_then(|()| rootfs::make_upper(&wanted.id, project, root))
        .and_then(|counted| Ok((launch(&plan, agent.space.as_ref(), &child_ends)?, counted)));
    let (child, counted) = match launched {
        Ok(child) => child,
        Err(fault) => {
            let _ = cgroup.remove();
            let _ = clean(agent, &wanted.id);
            return Err(fault);
        }
    };
    agent.watch(&child.status, Source::Status(child.pid), EventFlags::IN)?;
    attach(agent, wanted.streams, ends, End::Pipe);
    agent.children.insert(
        child.pid,
        ChildState {
            who: Who::Init(wanted.id.clone()),
            status: Some(child.status),
            waiting: Some(reply),
            streams: wanted.streams,
            nonce: reply.nonce,
            executed: false,
        },
    );
    let container = Container {
        pid: child.pid,
        state: State::Creating,
        exit_code: 0,
        oom_killed: false,
        cgroup,
        project: if counted { project } else { 0 },
        process: wanted.spec.process,
        filter,
        terminal: None,
        deleting: None,
    };
    agent.containers.insert(wanted.id, container);
    if huge > 0 {
        limits::allow_huge_pages(agent);
    }
    Ok(())
}

/// A child that tells nothing.
fn nameless(who: Who) -> ChildState {
    ChildState { who, status: None, waiting: None, streams: StreamIds::default(), nonce: 0, executed: false }
}

/// The process whose PID namespace is meant; None for one of the container's own.
fn pid_space(agent: &mut Agent, wanted: &PidSpace) -> Outcome<Option<u32>> {
    match wanted {
        PidSpace::Own => Ok(None),
        PidSpace::Of(id) => {
            let container = find(agent, id)?;
            in_state(container, id, State::Running)?;
            Ok(Some(container.pid))
        }
        PidSpace::Pod => {
            if agent.pause.is_none() {
                let pid = pause::launch(&null_streams()?, agent.space.as_ref())?;
                agent.children.insert(pid, nameless(Who::Pause));
                agent.pause = Some(pid);
            }
            Ok(agent.pause)
        }
    }
}

fn find<'a>(agent: &'a mut Agent, id: &str) -> Outcome<&'a mut Container> {
    agent.containers.get_mut(id).ok_or_else(|| Fault::new(Code::NotFound, format!("container {id} does not exist")))
}

fn in_state(container: &Container, id: &str, wanted: State) -> Outcome<()> {
    if container.state == wanted {
        return Ok(());
    }
    let text = format!("container {id} is {}, not {}", container.state.name(), wanted.name());
    Err(Fault::new(Code::FailedPrecondition, text))
}

pub fn start(agent: &mut Agent, reply: Reply, id: &str) -> Outcome<()> {
    let container = find(agent, id)?;
    in_state(container, id, State::Created)?;
    let pid = container.pid;
    container.state = State::Starting;
    let child = agent.children.get_mut(&pid).ok_or_else(|| Fault::internal("the container's init is gone"))?;
    let socket = child.status.as_ref().ok_or_else(|| Fault::internal("the container's init is gone"))?;
    status::say_start(socket)?;
    child.waiting = Some(reply);
    Ok(())
}

/// Sends a signal; false when the container's first process does not hear it yet: it was not sent then.
pub fn kill(container: &Container, id: &str, signal: i32, all: bool) -> Outcome<bool> {
    if container.state == State::Exited {
        return Err(Fault::new(Code::FailedPrecondition, format!("container {id} has ended")));
    }
    if !(0..=64).contains(&signal) {
        return Err(Fault::invalid(format!("signal {signal} is not 0 to 64")));
    }
    if all && signal == libc::SIGKILL {
        container.cgroup.kill();
        return Ok(true);
    }
    if !all && !signals::hears(container.pid, signal) {
        return Ok(false);
    }
    let pids = if all { container.cgroup.processes() } else { vec![container.pid] };
    for pid in pids {
        match sys::kill(pid.cast_signed(), signal) {
            // It ended in the meantime.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
            result => result.doing(|| format!("send signal {signal} to container {id}"))?,
        }
    }
    Ok(true)
}

pub fn delete(agent: &mut Agent, reply: Reply, id: &str, force: bool) -> Given {
    let Some(container) = agent.containers.get_mut(id) else { return Ok(Some(json!({}))) };
    if container.state == State::Exited {
        remove(agent, id)?;
        return Ok(Some(json!({})));
    }
    if !force {
        let text = format!("container {id} is {}; it is deleted only by force", container.state.name());
        return Err(Fault::new(Code::FailedPrecondition, text));
    }
    if container.deleting.is_some() {
        return Err(Fault::new(Code::FailedPrecondition, format!("container {id} is being deleted")));
    }
    container.deleting = Some(reply);
    if container.state == State::Creating {
        // In a pod's user namespace it may be what makes its init, outside of its cgroup.
        let _ = sys::kill(container.pid.cast_signed(), libc::SIGKILL);
    }
    container.cgroup.kill();
    Ok(None)
}

/// Forgets an ended container: its cgroup, its writable folders.
fn remove(agent: &mut Agent, id: &str) -> Outcome<()> {
    let Some(container) = agent.containers.get(id) else { return Ok(()) };
    container.cgroup.remove().doing(|| format!("remove the cgroup of container {id}"))?;
    agent.containers.remove(id);
    clean(agent, id).doing(|| format!("remove the files of container {id}"))
}

/// Removes what a container wrote: at once where it is little, else by a child, since the agent must not wait.
fn clean(agent: &mut Agent, id: &str) -> std::io::Result<()> {
    const AT_ONCE: usize = 256;
    let Some(trash) = rootfs::discard_upper(id)? else { return Ok(()) };
    if matches!(trash::empty(&trash, AT_ONCE), Ok(true)) {
        return Ok(());
    }
    let Some(pid) = sys::fork_into(0, None)? else {
        // Pipes of containers among them: their readers wait for the end.
        let _ = sys::close_from(3);
        sys::exit_now(i32::from(trash::empty(&trash, usize::MAX).is_err()));
    };
    agent.children.insert(pid, nameless(Who::Cleaner));
    Ok(())
}

pub fn exec(agent: &mut Agent, reply: Reply, wanted: &ExecParams) -> Outcome<()> {
    wanted.process.check()?;
    check_streams(agent, wanted.streams, wanted.terminal)?;
    let container = find(agent, &wanted.container)?;
    in_state(container, &wanted.container, State::Running)?;
    let (child_ends, ends) = stdio(wanted.streams, wanted.terminal)?;
    let space = agent.space.as_ref().map(|space| &space.mappings);
    let child =
        launch_exec(&wanted.process, &agent.containers[&wanted.container], space, &child_ends, wanted.terminal)?;
    agent.watch(&child.status, Source::Status(child.pid), EventFlags::IN)?;
    attach(agent, wanted.streams, ends, End::Pipe);
    let id = agent.next_exec.to_string();
    agent.next_exec += 1;
    agent.execs.insert(id.clone(), Exec { pid: child.pid, terminal: None });
    agent.children.insert(
        child.pid,
        ChildState {
            who: Who::Exec(id),
            status: Some(child.status),
            waiting: Some(reply),
            streams: wanted.streams,
            nonce: reply.nonce,
            executed: false,
        },
    );
    Ok(())
}

fn attach_terminal(agent: &mut Agent, pid: u32, master: OwnedFd) {
    let Some(child) = agent.children.get(&pid) else { return };
    let ids = child.streams;
    if child.nonce == agent.session.nonce {
        let duplicate = || rustix::io::fcntl_dupfd_cloexec(&master, 5).ok();
        let stdin = duplicate().filter(|_| ids.stdin != 0);
        let stdout = duplicate().filter(|_| ids.stdout != 0);
        let ends = Ends { stdin, stdout, stderr: None };
        match &child.who {
            Who::Init(id) => {
                if let Some(container) = agent.containers.get_mut(id) {
                    container.terminal = Some(master);
                }
            }
            Who::Exec(id) => {
                if let Some(exec) = agent.execs.get_mut(id) {
                    exec.terminal = Some(master);
                }
            }
            Who::Hooks | Who::Cleaner | Who::Pause => {}
        }
        attach(agent, ids, ends, End::Terminal);
    }
}

/// Nobody follows this output any more: an exec whose terminal it was is hung up on, as by a line that went dead.
pub fn hang_up(agent: &mut Agent, output: u32) {
    let whose =
        agent.children.values().find(|child| child.streams.stdout == output && child.nonce == agent.session.nonce);
    let Some(ChildState { who: Who::Exec(id), streams, .. }) = whose else { return };
    if let Some(exec) = agent.execs.get_mut(id)
        && exec.terminal.take().is_some()
    {
        agent.streams.reset(&agent.poll, streams.stdin);
    }
}

/// Takes one message of a child that has not executed its program yet; true when there may be another.
pub fn hear_child(agent: &mut Agent, pid: u32) -> bool {
    let Some(child) = agent.children.get_mut(&pid) else { return false };
    let Some(socket) = &child.status else { return false };
    match status::hear(socket) {
        Heard::Other(Report::Nothing) => false,
        Heard::Replaced(other) => {
            replace(agent, pid, other);
            while hear_child(agent, other) {}
            false
        }
        Heard::Ready(master, user) => {
            if let Some(master) = master {
                attach_terminal(agent, pid, master);
            }
            on_ready(agent, pid, user);
            true
        }
        Heard::Hook(name, code) => {
            hooks::heard(agent, pid, name, code);
            true
        }
        Heard::Other(report) => {
            child.status = None;
            on_report(agent, pid, report);
            false
        }
    }
}

/// The init that another process made goes on in its place; what made it has nothing more to tell.
fn replace(agent: &mut Agent, maker: u32, init: u32) {
    let Some(child) = agent.children.remove(&maker) else { return };
    if let Some(status) = &child.status {
        let token = EventData::new_u64(Source::Status(init).token());
        let _ = epoll::modify(&agent.poll, status, token, EventFlags::IN);
    }
    if let Who::Init(id) = &child.who
        && let Some(container) = agent.containers.get_mut(id)
    {
        container.pid = init;
    }
    agent.children.insert(init, child);
    agent.children.insert(maker, nameless(Who::Cleaner));
}

/// Hears those whose inits may have been replaced: a process has ended that is none of the known.
pub fn hear_siblings(agent: &mut Agent) {
    let is_init = |child: &ChildState| matches!(child.who, Who::Init(_)) && child.status.is_some();
    let inits: Vec<u32> = agent.children.iter().filter(|(_, child)| is_init(child)).map(|(pid, _)| *pid).collect();
    for pid in inits {
        while hear_child(agent, pid) {}
    }
}

fn on_ready(agent: &mut Agent, pid: u32, user: Option<Identity>) {
    let Some(ChildState { who: Who::Init(id), waiting, .. }) = agent.children.get_mut(&pid) else { return };
    if let Some(container) = agent.containers.get_mut(id) {
        container.state = State::Created;
    }
    if let Some(reply) = waiting.take() {
        let mut result = json!({"pid": pid});
        if let Some(user) = user {
            result["user"] = json!({"uid": user.uid, "gid": user.gid, "additionalGids": user.groups});
        }
        agent.answer(reply, Ok(result));
    }
}

fn on_report(agent: &mut Agent, pid: u32, report: Report) {
    let Some(child) = agent.children.get_mut(&pid) else { return };
    let waiting = child.waiting.take();
    let mut result = json!({"pid": pid});
    let mut starved = false;
    let early = match &child.who {
        Who::Init(id) => match agent.containers.get_mut(id) {
            Some(container) if container.state == State::Starting => {
                if report == Report::Executed {
                    container.state = State::Running;
                }
                result["started_at"] = Value::from(now_ns());
                false
            }
            container => {
                starved = container.is_some_and(|container| container.cgroup.oom_kills() > 0);
                true
            }
        },
        Who::Exec(id) => {
            result["exec"] = Value::from(id.as_str());
            false
        }
        Who::Hooks => {
            if let Report::Failed(fault) = report {
                hooks::failed(agent, pid, &fault);
            }
            return;
        }
        Who::Cleaner | Who::Pause => return,
    };
    let outcome = match report {
        Report::Failed(fault) => Err(fault),
        _ if starved => Err(Fault::new(Code::FailedPrecondition, "the memory limit is too low for a process to start")),
        _ if early => Err(Fault::internal("the process ended before its program was executed")),
        _ => Ok(result),
    };
    child.executed = outcome.is_ok();
    if outcome.is_err() && child.nonce == agent.session.nonce {
        let ids = child.streams;
        for id in [ids.stdin, ids.stdout, ids.stderr] {
            agent.streams.reset(&agent.poll, id);
        }
    }
    if let Some(reply) = waiting {
        agent.answer(reply, outcome);
    }
}

pub fn child_ended(agent: &mut Agent, pid: u32, code: i32) {
    // A process of a container that lost its parent is the container's init's to reap, or ours with nothing to tell.
    let Some(child) = agent.children.remove(&pid) else { return };
    match child.who {
        Who::Exec(id) => {
            agent.execs.remove(&id);
            if child.executed {
                agent.event(&json!({"event": "process.exit", "exec": id, "exit_code": code, "exited_at": now_ns()}));
            }
        }
        Who::Hooks => hooks::ended(agent, pid, code),
        Who::Cleaner => {}
        Who::Pause => agent.pause = None,
        Who::Init(id) => init_ended(agent, &id, code),
    }
}

fn init_ended(agent: &mut Agent, id: &str, code: i32) {
    let Some(container) = agent.containers.get_mut(id) else { return };
    // What does not share its pid namespace does not die with it.
    container.cgroup.kill();
    let never_created = container.state == State::Creating;
    container.state = State::Exited;
    container.exit_code = code;
    container.oom_killed = container.cgroup.oom_kills() > 0;
    container.terminal = None;
    let deleting = container.deleting.take();
    let oom_killed = container.oom_killed;
    if never_created {
        // Its creation was answered by an error: nothing of it stays.
        let _ = remove(agent, id);
    } else {
        agent.event(&json!({
            "event": "container.exit", "id": id, "exit_code": code, "exited_at": now_ns(), "oom_killed": oom_killed,
        }));
    }
    if let Some(reply) = deleting {
        let outcome = remove(agent, id).map(|()| json!({}));
        agent.answer(reply, outcome);
    }
}
