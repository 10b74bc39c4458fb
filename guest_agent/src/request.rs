//! The requests of docs/protocol.md: from JSON to values. Nothing is carried out here.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use crate::container::spec::{Process, Resources, Spec};
use crate::fault::{Code, Fault, Outcome};
use crate::hooks::Phase;
use crate::restore;
use crate::session::too_deep;

#[derive(Deserialize)]
struct Envelope<'a> {
    method: String,
    #[serde(borrow, default)]
    params: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Slot {
    pub slot: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerMount {
    pub slot: u32,
    pub layer: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerUnmount {
    pub layer: String,
}

#[derive(Clone, Copy, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Folder,
    File,
    Link,
}

/// A file, folder or link of a volume; the path of its top is empty.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    pub path: String,
    pub kind: Kind,
    #[serde(default)]
    pub mode: u32,
    #[serde(default)]
    pub uid: u32,
    #[serde(default)]
    pub gid: u32,
    /// A file's content in base64, or where a link leads.
    #[serde(default)]
    pub data: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeWrite {
    pub volume: String,
    pub entries: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeMake {
    pub volume: String,
    pub path: String,
    /// Of a tmpfs; 0 for a folder of the scratch disk, or huge pages without a bound of the volume's own.
    #[serde(default)]
    pub size: u64,
    #[serde(default)]
    pub huge: bool,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeRemove {
    pub volume: String,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamIds {
    #[serde(default)]
    pub stdin: u32,
    #[serde(default)]
    pub stdout: u32,
    #[serde(default)]
    pub stderr: u32,
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
pub struct Id {
    pub id: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Adjust {
    pub delta_ns: i64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kill {
    pub id: String,
    pub signal: i32,
    #[serde(default)]
    pub all: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Delete {
    pub id: String,
    #[serde(default)]
    pub force: bool,
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
pub struct ExecKill {
    pub exec: String,
    pub signal: i32,
    #[serde(default = "yes")]
    pub group: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resize {
    pub container: Option<String>,
    pub exec: Option<String>,
    pub width: u16,
    pub height: u16,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Probe {
    pub address: std::net::IpAddr,
    pub port: u16,
}

/// The streams of a connection, by what they are to the guest.
#[derive(Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SocketStreams {
    pub input: u32,
    pub output: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortConnect {
    pub port: u16,
    pub streams: SocketStreams,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Update {
    pub id: String,
    pub resources: Resources,
    /// Of every process of the container.
    pub oom_score_adj: Option<i32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hooks {
    pub phase: Phase,
    #[serde(default = "crate::hooks::usual_timeout")]
    pub timeout_ns: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PodLimit {
    /// Bytes that the containers may have together; 0 for all there is.
    pub memory: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineSettle {
    /// Processors to keep online; 0 for those that are.
    #[serde(default)]
    pub cpus: u32,
}

pub enum Request {
    Ping,
    ClockAdjust(Adjust),
    Restore(Box<restore::Params>),
    HooksRun(Hooks),
    ScratchMount(Slot),
    ShareMount,
    ShareUnmount,
    LayerMount(LayerMount),
    LayerUnmount(LayerUnmount),
    DiskRelease(Slot),
    VolumeWrite(VolumeWrite),
    VolumeMake(VolumeMake),
    VolumeRemove(VolumeRemove),
    ContainerCreate(Box<Create>),
    ContainerStart(Id),
    ContainerKill(Kill),
    ContainerDelete(Delete),
    ContainerUpdate(Box<Update>),
    PodLimit(PodLimit),
    MachineSettle(MachineSettle),
    ContainerList,
    ContainerStats(Id),
    ProcessExec(Box<ExecParams>),
    ProcessKill(ExecKill),
    ProcessResize(Resize),
    NetworkProbe(Probe),
    PortConnect(PortConnect),
    Stats,
    State,
    Sync,
    PowerOff,
}

/// The request in a message of the host.
pub fn parse(message: &[u8]) -> Outcome<Request> {
    if too_deep(message) {
        return Err(Fault::invalid("the request's JSON is nested too deep"));
    }
    let envelope: Envelope<'_> =
        serde_json::from_slice(message).map_err(|error| Fault::invalid(format!("request: {error}")))?;
    let method = envelope.method.as_str();
    let params = envelope.params.map_or("{}", RawValue::get);
    Ok(match method {
        "ping" => {
            let Nothing {} = read(method, params)?;
            Request::Ping
        }
        "clock.adjust" => Request::ClockAdjust(read(method, params)?),
        "restore" => Request::Restore(read(method, params)?),
        "hooks.run" => Request::HooksRun(read(method, params)?),
        "scratch.mount" => Request::ScratchMount(read(method, params)?),
        "share.mount" => Request::ShareMount,
        "share.unmount" => Request::ShareUnmount,
        "layer.mount" => Request::LayerMount(read(method, params)?),
        "layer.unmount" => Request::LayerUnmount(read(method, params)?),
        "disk.release" => Request::DiskRelease(read(method, params)?),
        "volume.write" => Request::VolumeWrite(read(method, params)?),
        "volume.make" => Request::VolumeMake(read(method, params)?),
        "volume.remove" => Request::VolumeRemove(read(method, params)?),
        "container.create" => Request::ContainerCreate(read(method, params)?),
        "container.start" => Request::ContainerStart(read(method, params)?),
        "container.kill" => Request::ContainerKill(read(method, params)?),
        "container.delete" => Request::ContainerDelete(read(method, params)?),
        "container.update" => Request::ContainerUpdate(read(method, params)?),
        "pod.limit" => Request::PodLimit(read(method, params)?),
        "machine.settle" => Request::MachineSettle(read(method, params)?),
        "container.list" => Request::ContainerList,
        "container.stats" => Request::ContainerStats(read(method, params)?),
        "process.exec" => Request::ProcessExec(read(method, params)?),
        "process.kill" => Request::ProcessKill(read(method, params)?),
        "process.resize" => Request::ProcessResize(read(method, params)?),
        "network.probe" => Request::NetworkProbe(read(method, params)?),
        "port.connect" => Request::PortConnect(read(method, params)?),
        "pod.stats" => Request::Stats,
        "state" => Request::State,
        "sync" => Request::Sync,
        "poweroff" => Request::PowerOff,
        other => return Err(Fault::new(Code::Unimplemented, format!("method {other:?} is unknown to this agent"))),
    })
}

fn read<T: DeserializeOwned>(method: &str, params: &str) -> Outcome<T> {
    serde_json::from_str(params).map_err(|error| Fault::invalid(format!("{method}: {error}")))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn refusal(message: &str) -> Fault {
        parse(message.as_bytes()).err().unwrap()
    }

    #[test]
    fn refusals_name_the_method_or_the_member() {
        assert_eq!(refusal(r#"{"method":"dance"}"#).code, Code::Unimplemented);
        assert!(refusal(r#"{"method":"container.start","params":{"id":"a","x":1}}"#).message.contains('x'));
        assert!(refusal(r#"{"method":"hooks.run","params":{"phase":"lunch"}}"#).message.contains("lunch"));
        assert!(refusal(&format!("{}{}", "[".repeat(65), "]".repeat(65))).message.contains("deep"));
    }

    #[test]
    fn absent_params_are_empty_ones() {
        assert!(matches!(parse(br#"{"method":"ping"}"#), Ok(Request::Ping)));
        let hooks = parse(br#"{"method":"hooks.run","params":{"phase":"before-snapshot"}}"#);
        assert!(matches!(hooks, Ok(Request::HooksRun(Hooks { phase: Phase::BeforeSnapshot, .. }))));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&bytes);
        }
    }
}
