//! The requests carried out, by the modules that know how.

use serde_json::{Value, json};

use crate::agent::{Agent, Container, Reply, State};
use crate::container::cgroup;
use crate::fault::{Code, Doing, Fault, Outcome};
use crate::hooks::{self, Phase};
use crate::request::{self, ExecKill, Request, Resize};
use crate::{connect, limits, machine, restore, sandbox, scsi, state, stats, sys, volumes};

/// What a request gives: a result now, or None when it is answered later.
pub type Given = Outcome<Option<Value>>;

/// Which sources the binary was built from.
pub fn build() -> &'static str {
    option_env!("THAW_AGENT_BUILD").unwrap_or("unknown")
}

fn done(outcome: Outcome<()>) -> Given {
    outcome.map(|()| Some(json!({})))
}

fn value(result: impl serde::Serialize) -> Outcome<Value> {
    serde_json::to_value(result).map_err(|error| Fault::internal(error.to_string()))
}

fn container<'a>(agent: &'a mut Agent, id: &str) -> Outcome<&'a mut Container> {
    agent.containers.get_mut(id).ok_or_else(|| Fault::new(Code::NotFound, format!("container {id} does not exist")))
}

pub fn carry_out(agent: &mut Agent, reply: Reply, message: &[u8]) -> Given {
    match request::parse(message)? {
        Request::Ping => Ok(Some(json!({ "realtime_ns": restore::realtime_ns() }))),
        Request::ClockAdjust(wanted) => done(restore::adjust_clock(wanted.delta_ns)),
        Request::Restore(params) => {
            let confirmed = value(restore::restore(&params, &mut agent.space)?)?;
            hooks::run(agent, reply, Phase::AfterRestore, hooks::usual_timeout(), confirmed)
        }
        Request::HooksRun(wanted) => hooks::run(agent, reply, wanted.phase, wanted.timeout_ns, json!({})),
        Request::ScratchMount(wanted) => done(agent.storage.mount_scratch(wanted.slot)),
        Request::ShareMount => done(agent.storage.mount_share()),
        Request::ShareUnmount => done(agent.storage.unmount_share()),
        Request::LayerMount(wanted) => done(agent.storage.mount_layer(wanted.slot, &wanted.layer)),
        Request::LayerUnmount(wanted) => done(agent.storage.unmount_layer(&wanted.layer)),
        Request::DiskRelease(wanted) => done(scsi::release(wanted.slot)),
        Request::VolumeWrite(wanted) => done(volumes::write(&wanted.volume, &wanted.entries)),
        Request::VolumeMake(wanted) => done(volumes::make(&wanted)),
        Request::VolumeRemove(wanted) => done(volumes::remove(&wanted.volume)),
        Request::ContainerCreate(wanted) => sandbox::create(agent, reply, *wanted).map(|()| None),
        Request::ContainerStart(wanted) => sandbox::start(agent, reply, &wanted.id).map(|()| None),
        Request::ContainerKill(wanted) => {
            let heard = sandbox::kill(container(agent, &wanted.id)?, &wanted.id, wanted.signal, wanted.all)?;
            Ok(Some(json!({ "heard": heard })))
        }
        Request::ContainerDelete(wanted) => sandbox::delete(agent, reply, &wanted.id, wanted.force),
        Request::ContainerUpdate(wanted) => done(limits::update(agent, &wanted)),
        Request::PodLimit(wanted) => done(cgroup::limit_all(wanted.memory)),
        Request::MachineSettle(wanted) => value(machine::settle(wanted.cpus)?).map(Some),
        Request::ContainerList => Ok(Some(list(agent))),
        Request::ContainerStats(wanted) => value(container(agent, &wanted.id)?.cgroup.stats()).map(Some),
        Request::ProcessExec(wanted) => sandbox::exec(agent, reply, &wanted).map(|()| None),
        Request::ProcessKill(wanted) => done(kill_exec(agent, &wanted)),
        Request::ProcessResize(wanted) => done(resize(agent, &wanted)),
        Request::NetworkProbe(wanted) => connect::probe(agent, reply, &wanted).map(|()| None),
        Request::PortConnect(wanted) => connect::to_port(agent, reply, &wanted).map(|()| None),
        Request::Stats => value(stats::collect(agent)).map(Some),
        Request::State => Ok(Some(state::describe())),
        Request::Sync => {
            rustix::fs::sync();
            Ok(Some(json!({})))
        }
        Request::PowerOff => {
            rustix::fs::sync();
            let _ = rustix::system::reboot(rustix::system::RebootCommand::PowerOff);
            Err(Fault::internal("the machine did not power off"))
        }
    }
}

fn list(agent: &Agent) -> Value {
    let containers: Vec<Value> = agent
        .containers
        .iter()
        .map(|(id, container)| {
            let exited = container.state == State::Exited;
            json!({
                "id": id,
                "pid": container.pid,
                "state": container.state.name(),
                "exit_code": exited.then_some(container.exit_code),
                "oom_killed": container.oom_killed,
            })
        })
        .collect();
    json!({"containers": containers})
}

fn unknown_exec(id: &str) -> Fault {
    Fault::new(Code::NotFound, format!("exec {id} does not exist or has ended"))
}

fn kill_exec(agent: &Agent, wanted: &ExecKill) -> Outcome<()> {
    let exec = agent.execs.get(&wanted.exec).ok_or_else(|| unknown_exec(&wanted.exec))?;
    let pid = exec.pid.cast_signed();
    let target = if wanted.group { -pid } else { pid };
    sys::kill(target, wanted.signal).doing(|| format!("send signal {} to exec {}", wanted.signal, wanted.exec))
}

fn resize(agent: &mut Agent, wanted: &Resize) -> Outcome<()> {
    let terminal = match (&wanted.container, &wanted.exec) {
        (Some(id), None) => container(agent, id)?.terminal.as_ref(),
        (None, Some(id)) => agent.execs.get(id).ok_or_else(|| unknown_exec(id))?.terminal.as_ref(),
        _ => return Err(Fault::invalid("process.resize: either container or exec")),
    };
    let terminal = terminal.ok_or_else(|| Fault::new(Code::FailedPrecondition, "the process has no terminal"))?;
    crate::container::tty::resize(terminal, wanted.width, wanted.height)
}
