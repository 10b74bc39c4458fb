//! The life of containers and their further processes, as the event loop sees it: what is asked of them.

use rustix::event::epoll::EventFlags;
use serde_json::json;

use crate::agent::{Agent, ChildState, Container, Exec, Reply, State, Who};
use crate::container::cgroup::Cgroup;
use crate::container::create::{Plan, launch, launch_exec};
use crate::container::namespaces::{Own, PidSpace};
use crate::container::seccomp::Filter;
use crate::container::{devices, pause, rootfs, signals, trash};
use crate::fault::{Code, Doing, Fault, Outcome};
use crate::request::{Create, ExecParams};
use crate::rpc::Given;
use crate::source::Source;
use crate::stdio::{attach, check_streams, null_streams, stdio};
use crate::streams::End;
use crate::{limits, status, sys};

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
                agent.children.insert(pid, ChildState::nameless(Who::Pause));
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
pub fn remove(agent: &mut Agent, id: &str) -> Outcome<()> {
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
    agent.children.insert(pid, ChildState::nameless(Who::Cleaner));
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
