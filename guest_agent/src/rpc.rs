//! The requests: from JSON to the modules that carry them out, and back.

use rustix::event::epoll::EventFlags;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::agent::{Agent, Container, Reply, State, StreamIds};
use crate::container::spec::{Process, Spec};
use crate::fault::{Code, Doing, Fault, Outcome};
use crate::source::Source;
use crate::{restore, sandbox, state, sys};

pub use crate::sandbox::{child_ended, hear_child};

/// What a request gives: a result now, or None when it is answered later.
pub type Given = Outcome<Option<Value>>;

#[derive(Deserialize)]
struct Request<'a> {
    method: String,
    #[serde(borrow, default)]
    params: Option<&'a RawValue>,
}

/// Which sources the binary was built from.
pub fn build() -> &'static str {
    option_env!("THAW_AGENT_BUILD").unwrap_or("unknown")
}

fn read<T: DeserializeOwned>(method: &str, params: &str) -> Outcome<T> {
    serde_json::from_str(params).map_err(|error| Fault::invalid(format!("{method}: {error}")))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Slot {
    slot: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LayerMount {
    slot: u32,
    layer: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LayerUnmount {
    layer: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Create {
    pub id: String,
    pub spec: Spec,
    pub layers: Vec<String>,
    pub streams: StreamIds,
    #[serde(default)]
    pub terminal: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Id {
    id: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Adjust {
    delta_ns: i64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Kill {
    id: String,
    signal: i32,
    #[serde(default)]
    all: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Delete {
    id: String,
    #[serde(default)]
    force: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecParams {
    pub container: String,
    pub process: Process,
    pub streams: StreamIds,
    #[serde(default)]
    pub terminal: bool,
}

fn yes() -> bool {
    true
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ExecKill {
    exec: String,
    signal: i32,
    #[serde(default = "yes")]
    group: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Resize {
    container: Option<String>,
    exec: Option<String>,
    width: u16,
    height: u16,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Probe {
    address: std::net::IpAddr,
    port: u16,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Update {
    id: String,
    resources: crate::container::spec::Resources,
}

fn done(outcome: Outcome<()>) -> Given {
    outcome.map(|()| Some(json!({})))
}

fn container<'a>(agent: &'a mut Agent, id: &str) -> Outcome<&'a mut Container> {
    agent.containers.get_mut(id).ok_or_else(|| Fault::new(Code::NotFound, format!("container {id} does not exist")))
}

pub fn carry_out(agent: &mut Agent, reply: Reply, message: &[u8]) -> Given {
    let request: Request<'_> =
        serde_json::from_slice(message).map_err(|error| Fault::invalid(format!("request: {error}")))?;
    let method = request.method.as_str();
    let params = request.params.map_or("{}", RawValue::get);
    match method {
        "ping" => {
            let Nothing {} = read(method, params)?;
            Ok(Some(json!({ "realtime_ns": restore::realtime_ns() })))
        }
        "clock.adjust" => {
            let Adjust { delta_ns } = read(method, params)?;
            done(restore::adjust_clock(delta_ns))
        }
        "restore" => {
            let confirmed = restore::restore(&read(method, params)?)?;
            serde_json::to_value(confirmed).map(Some).map_err(|error| Fault::internal(error.to_string()))
        }
        "scratch.mount" => {
            let Slot { slot } = read(method, params)?;
            done(agent.storage.mount_scratch(slot))
        }
        "share.mount" => done(agent.storage.mount_share()),
        "share.unmount" => done(agent.storage.unmount_share()),
        "layer.mount" => {
            let LayerMount { slot, layer } = read(method, params)?;
            done(agent.storage.mount_layer(slot, &layer))
        }
        "layer.unmount" => {
            let LayerUnmount { layer } = read(method, params)?;
            done(agent.storage.unmount_layer(&layer))
        }
        "container.create" => sandbox::create(agent, reply, &read(method, params)?).map(|()| None),
        "container.start" => {
            let Id { id } = read(method, params)?;
            sandbox::start(agent, reply, &id).map(|()| None)
        }
        "container.kill" => {
            let Kill { id, signal, all } = read(method, params)?;
            done(sandbox::kill(container(agent, &id)?, &id, signal, all))
        }
        "container.delete" => {
            let Delete { id, force } = read(method, params)?;
            sandbox::delete(agent, reply, &id, force)
        }
        "container.update" => {
            let Update { id, resources } = read(method, params)?;
            done(container(agent, &id)?.cgroup.update(&resources))
        }
        "container.list" => Ok(Some(list(agent))),
        "container.stats" => {
            let Id { id } = read(method, params)?;
            let stats = container(agent, &id)?.cgroup.stats();
            serde_json::to_value(stats).map(Some).map_err(|error| Fault::internal(error.to_string()))
        }
        "process.exec" => sandbox::exec(agent, reply, &read(method, params)?).map(|()| None),
        "process.kill" => done(kill_exec(agent, &read(method, params)?)),
        "process.resize" => done(resize(agent, &read(method, params)?)),
        "network.probe" => probe(agent, reply, &read(method, params)?).map(|()| None),
        "state" => Ok(Some(state::describe())),
        "sync" => {
            rustix::fs::sync();
            Ok(Some(json!({})))
        }
        "poweroff" => {
            rustix::fs::sync();
            let _ = rustix::system::reboot(rustix::system::RebootCommand::PowerOff);
            Err(Fault::internal("the machine did not power off"))
        }
        other => Err(Fault::new(Code::Unimplemented, format!("method {other:?} is unknown to this agent"))),
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

fn probe(agent: &mut Agent, reply: Reply, wanted: &Probe) -> Outcome<()> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with};
    let address = std::net::SocketAddr::new(wanted.address, wanted.port);
    let family = if wanted.address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::STREAM, flags, None).doing(|| "open a socket".to_owned())?;
    match connect(&socket, &address) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => {}
        Err(error) => return Err(unreachable(&address.to_string(), &error.into())),
    }
    agent.watch(&socket, Source::Probe(reply.request), EventFlags::OUT | EventFlags::ONESHOT)?;
    agent.probes.insert(reply.request, (socket, reply));
    Ok(())
}

fn unreachable(what: &str, error: &std::io::Error) -> Fault {
    Fault::new(Code::Unavailable, format!("connect to {what}: {}", crate::fault::words(error)))
}

pub fn probe_ended(agent: &mut Agent, request: u32) {
    let Some((socket, reply)) = agent.probes.remove(&request) else { return };
    let outcome = match rustix::net::sockopt::socket_error(&socket) {
        Ok(Ok(())) => Ok(json!({})),
        Ok(Err(error)) | Err(error) => Err(unreachable("the address", &error.into())),
    };
    agent.answer(reply, outcome);
}
