//! What the agent's children tell, and what their ends mean.

use rustix::event::epoll::{self, EventData, EventFlags};
use serde_json::{Value, json};

use crate::agent::{Agent, ChildState, State, Who, now_ns};
use crate::container::user::Identity;
use crate::fault::{Code, Fault};
use crate::source::Source;
use crate::status::{self, Heard, Report};
use crate::stdio::attach_terminal;
use crate::{hooks, sandbox};

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
    agent.children.insert(maker, ChildState::nameless(Who::Cleaner));
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
        let _ = sandbox::remove(agent, id);
    } else {
        agent.event(&json!({
            "event": "container.exit", "id": id, "exit_code": code, "exited_at": now_ns(), "oom_killed": oom_killed,
        }));
    }
    if let Some(reply) = deleting {
        let outcome = sandbox::remove(agent, id).map(|()| json!({}));
        agent.answer(reply, outcome);
    }
}
