//! Hooks: programs of a container's own, under /etc/thaw/hooks.d, that are run before a snapshot and after a restore.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use rustix::event::epoll::EventFlags;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::agent::{Agent, ChildState, Reply, State, Who};
use crate::container::create::{Child, launch_hooks};
use crate::fault::{Code, Doing, Fault, Outcome};
use crate::request::StreamIds;
use crate::rpc::Given;
use crate::source::Source;
use crate::{stdio, sys};

const MAX_TIMEOUT: u64 = 60_000_000_000;

pub fn usual_timeout() -> u64 {
    10_000_000_000
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    BeforeSnapshot,
    AfterRestore,
}

impl Phase {
    pub fn name(self) -> &'static str {
        match self {
            Self::BeforeSnapshot => "before-snapshot",
            Self::AfterRestore => "after-restore",
        }
    }
}

#[derive(Serialize)]
struct Hook {
    container: String,
    hook: String,
    exit_code: i32,
}

/// Whose hooks they are.
#[derive(Clone)]
struct Of {
    container: String,
    init: u32,
}

/// All containers' hooks of a phase: each container's one after the other, the containers side by side.
pub struct Run {
    reply: Reply,
    /// The answer, but for the hooks.
    result: Value,
    phase: Phase,
    timer: OwnedFd,
    /// The containers whose hooks have not ended, by the pid of what runs them.
    waiting: BTreeMap<u32, Of>,
    hooks: Vec<Hook>,
    /// What went wrong first.
    failed: Option<String>,
    out_of_time: bool,
}

impl Run {
    /// Not of a container that ends by itself: it takes its hooks along, which are reaped before it, and nothing is left
    /// that could be unsound. A process that ends has no program any more.
    fn fail(&mut self, of: &Of, text: &str) {
        if std::fs::read_link(format!("/proc/{}/exe", of.init)).is_err() {
            return;
        }
        let short = of.container.get(..12).unwrap_or(&of.container);
        let phase = self.phase.name();
        self.failed.get_or_insert_with(|| format!("{phase} hooks of container {short}: {text}"));
    }
}

fn timer(timeout_ns: u64) -> Outcome<OwnedFd> {
    let what = || "set a timer".to_owned();
    let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
    let timer = rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags).doing(what)?;
    let seconds = i64::try_from(timeout_ns / 1_000_000_000).unwrap_or_default();
    let once = Itimerspec {
        it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
        it_value: Timespec { tv_sec: seconds, tv_nsec: (timeout_ns % 1_000_000_000) as _ },
    };
    rustix::time::timerfd_settime(&timer, TimerfdTimerFlags::empty(), &once).doing(what)?;
    Ok(timer)
}

/// Runs the hooks of all running containers and then answers `result` with `hooks` added; at once when no container runs.
pub fn run(agent: &mut Agent, reply: Reply, phase: Phase, timeout_ns: u64, result: Value) -> Given {
    if !(1..=MAX_TIMEOUT).contains(&timeout_ns) {
        return Err(Fault::invalid(format!("timeout_ns {timeout_ns} is not within a minute")));
    }
    if agent.hooks.is_some() {
        return Err(Fault::new(Code::FailedPrecondition, "hooks are being run"));
    }
    let is_running = |state: State| state == State::Running;
    if !agent.containers.values().any(|container| is_running(container.state)) {
        return Ok(Some(result));
    }
    let timer = timer(timeout_ns)?;
    agent.watch(&timer, Source::HooksTimer, EventFlags::IN)?;
    let mut run = Run {
        reply,
        result,
        phase,
        timer,
        waiting: BTreeMap::new(),
        hooks: Vec::new(),
        failed: None,
        out_of_time: false,
    };
    let null = stdio::null_streams()?;
    let mut children = Vec::new();
    for (id, container) in agent.containers.iter().filter(|(_, container)| is_running(container.state)) {
        let of = Of { container: id.clone(), init: container.pid };
        match launch_hooks(container, agent.space.as_ref().map(|space| &space.mappings), &null, phase) {
            Ok(child) => children.push((of, child)),
            Err(fault) => run.fail(&of, &fault.message),
        }
    }
    for (of, Child { pid, status }) in children {
        agent.watch(&status, Source::Status(pid), EventFlags::IN)?;
        run.waiting.insert(pid, of);
        let state = ChildState {
            who: Who::Hooks,
            status: Some(status),
            waiting: None,
            streams: StreamIds::default(),
            nonce: reply.nonce,
            executed: false,
        };
        agent.children.insert(pid, state);
    }
    agent.hooks = Some(run);
    finish(agent);
    Ok(None)
}

/// A hook has ended.
pub fn heard(agent: &mut Agent, pid: u32, hook: String, exit_code: i32) {
    let Some(run) = &mut agent.hooks else { return };
    let Some(of) = run.waiting.get(&pid).cloned() else { return };
    if exit_code != 0 {
        run.fail(&of, &format!("{hook} ended with {exit_code}"));
    }
    run.hooks.push(Hook { container: of.container, hook, exit_code });
}

/// What ran a container's hooks says why it cannot.
pub fn failed(agent: &mut Agent, pid: u32, fault: &Fault) {
    let Some(run) = &mut agent.hooks else { return };
    if let Some(of) = run.waiting.get(&pid).cloned() {
        run.fail(&of, &fault.message);
    }
}

/// What ran a container's hooks has ended.
pub fn ended(agent: &mut Agent, pid: u32, code: i32) {
    let Some(run) = &mut agent.hooks else { return };
    let Some(of) = run.waiting.remove(&pid) else { return };
    if code != 0 {
        let text = if run.out_of_time { "they took too long" } else { "they were killed" };
        run.fail(&of, text);
    }
    finish(agent);
}

/// Kills what is left; the ends of the processes finish the run.
pub fn out_of_time(agent: &mut Agent) {
    let Some(run) = &mut agent.hooks else { return };
    if rustix::io::read(&run.timer, &mut [0; 8]).is_err() {
        // The event was a former run's.
        return;
    }
    run.out_of_time = true;
    for pid in run.waiting.keys() {
        let _ = sys::kill(-pid.cast_signed(), libc::SIGKILL);
    }
}

fn finish(agent: &mut Agent) {
    let Some(Run { reply, mut result, hooks, failed, .. }) = agent.hooks.take_if(|run| run.waiting.is_empty()) else {
        return;
    };
    result["hooks"] = json!(hooks);
    // Fails closed: a hook is there because its author says that the clone is not sound without it.
    agent.answer(reply, failed.map_or(Ok(result), |text| Err(Fault::new(Code::FailedPrecondition, text))));
}
