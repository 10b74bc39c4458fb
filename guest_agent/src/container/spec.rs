//! The subset of the OCI runtime specification 1.2 that is carried out. Unknown members are refused by name, so that
//! nothing that isolates is silently ignored.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::container::userns::{IdMapping, Mappings};
use crate::fault::{Code, Fault, Outcome};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    #[serde(rename = "ociVersion")]
    _oci_version: Option<IgnoredAny>,
    pub process: Process,
    #[serde(default)]
    pub root: Root,
    pub hostname: Option<String>,
    #[serde(default)]
    pub mounts: Vec<Mount>,
    #[serde(default)]
    pub linux: Linux,
    #[serde(rename = "annotations")]
    _annotations: Option<IgnoredAny>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Root {
    #[serde(rename = "path")]
    _path: Option<IgnoredAny>,
    #[serde(default)]
    pub readonly: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Process {
    /// The request's own `terminal` counts.
    #[serde(rename = "terminal")]
    _terminal: Option<IgnoredAny>,
    pub console_size: Option<ConsoleSize>,
    #[serde(default)]
    pub user: User,
    pub args: Vec<String>,
    #[serde(default)]
    pub env: Vec<String>,
    #[serde(default = "slash")]
    pub cwd: String,
    pub capabilities: Option<Capabilities>,
    #[serde(default)]
    pub rlimits: Vec<Rlimit>,
    #[serde(default)]
    pub no_new_privileges: bool,
    pub oom_score_adj: Option<i32>,
    pub apparmor_profile: Option<String>,
    pub selinux_label: Option<String>,
}

fn slash() -> String {
    "/".to_owned()
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConsoleSize {
    pub width: u16,
    pub height: u16,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct User {
    #[serde(default)]
    pub uid: u32,
    #[serde(default)]
    pub gid: u32,
    pub umask: Option<u32>,
    #[serde(default)]
    pub additional_gids: Vec<u32>,
    #[serde(default)]
    pub username: String,
    /// Not the specification's: whether the groups that the image's files list the user in are added. Absent, they are
    /// unless `username` names a group, as the image specification has it.
    pub image_groups: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Capabilities {
    #[serde(default)]
    pub bounding: Vec<String>,
    #[serde(default)]
    pub effective: Vec<String>,
    #[serde(default)]
    pub inheritable: Vec<String>,
    #[serde(default)]
    pub permitted: Vec<String>,
    #[serde(default)]
    pub ambient: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rlimit {
    #[serde(rename = "type")]
    pub kind: String,
    pub hard: u64,
    pub soft: u64,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mount {
    pub destination: String,
    #[serde(rename = "type", default)]
    pub kind: String,
    #[serde(default)]
    pub source: String,
    #[serde(default)]
    pub options: Vec<String>,
    #[serde(default)]
    pub uid_mappings: Vec<IdMapping>,
    #[serde(default)]
    pub gid_mappings: Vec<IdMapping>,
}

impl Mount {
    /// How the owners of its files are shown, where that is asked for.
    pub fn mappings(&self) -> Option<Mappings> {
        if self.uid_mappings.is_empty() && self.gid_mappings.is_empty() {
            return None;
        }
        Some(Mappings { uid_mappings: self.uid_mappings.clone(), gid_mappings: self.gid_mappings.clone() })
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Linux {
    #[serde(default)]
    pub namespaces: Vec<Namespace>,
    #[serde(default)]
    pub resources: Resources,
    #[serde(rename = "cgroupsPath")]
    _cgroups_path: Option<IgnoredAny>,
    #[serde(default)]
    pub devices: Vec<Device>,
    #[serde(default)]
    pub masked_paths: Vec<String>,
    #[serde(default)]
    pub readonly_paths: Vec<String>,
    #[serde(default)]
    pub sysctl: BTreeMap<String, String>,
    pub seccomp: Option<Seccomp>,
    #[serde(default)]
    pub rootfs_propagation: String,
    pub mount_label: Option<String>,
}

/// Not the specification's: the profile is compiled on the host.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seccomp {
    /// Base64 of `struct sock_filter` after `struct sock_filter`.
    pub program: String,
    #[serde(default)]
    pub flags: u32,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Namespace {
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(default)]
    pub path: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Resources {
    #[serde(default)]
    pub devices: Vec<DeviceRule>,
    #[serde(default)]
    pub memory: Memory,
    #[serde(default)]
    pub cpu: Cpu,
    #[serde(default)]
    pub pids: Pids,
    #[serde(default)]
    pub hugepage_limits: Vec<HugepageLimit>,
    #[serde(default)]
    pub unified: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HugepageLimit {
    /// As the kernel's files are named: `2MB`.
    pub page_size: String,
    pub limit: u64,
}

/// Absent members, and numbers below 0, mean any.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceRule {
    pub allow: bool,
    #[serde(rename = "type", default)]
    pub kind: String,
    pub major: Option<i64>,
    pub minor: Option<i64>,
    #[serde(default)]
    pub access: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Memory {
    pub limit: Option<i64>,
    pub reservation: Option<i64>,
    pub swap: Option<i64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Cpu {
    pub shares: Option<u64>,
    pub quota: Option<i64>,
    pub period: Option<u64>,
    #[serde(default)]
    pub cpus: String,
    #[serde(default)]
    pub mems: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Pids {
    pub limit: Option<i64>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Device {
    pub path: String,
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(default)]
    pub major: u32,
    #[serde(default)]
    pub minor: u32,
    /// The disk in this slot, in place of numbers.
    pub slot: Option<u32>,
    /// What the container may do with it, as in a device rule.
    #[serde(default)]
    pub access: String,
    pub file_mode: Option<u32>,
    #[serde(default)]
    pub uid: u32,
    #[serde(default)]
    pub gid: u32,
}

fn refuse_label(name: &str, label: Option<&String>) -> Outcome<()> {
    match label {
        Some(text) if !text.is_empty() => {
            Err(Fault::new(Code::Unimplemented, format!("{name} {text:?}: the guest's kernel enforces no such label")))
        }
        _ => Ok(()),
    }
}

impl Process {
    pub fn check(&self) -> Outcome<()> {
        if self.args.is_empty() {
            return Err(Fault::invalid("process.args is empty"));
        }
        if !self.cwd.starts_with('/') {
            return Err(Fault::invalid(format!("process.cwd {:?} is not absolute", self.cwd)));
        }
        let strings = self.args.iter().chain(&self.env).chain([&self.cwd]);
        if let Some(bad) = strings.into_iter().find(|text| text.contains('\0')) {
            return Err(Fault::invalid(format!("process: {bad:?} contains a NUL byte")));
        }
        refuse_label("process.apparmorProfile", self.apparmor_profile.as_ref().filter(|name| *name != "unconfined"))?;
        refuse_label("process.selinuxLabel", self.selinux_label.as_ref())
    }
}

impl Spec {
    /// Whether the container may make groups of its own below its cgroup.
    pub fn writes_cgroup(&self) -> bool {
        let is_cgroup = |mount: &&Mount| mount.kind.starts_with("cgroup");
        self.mounts.iter().filter(is_cgroup).any(|mount| mount.options.iter().any(|option| option == "rw"))
    }

    pub fn check(&self) -> Outcome<()> {
        self.process.check()?;
        refuse_label("linux.mountLabel", self.linux.mount_label.as_ref())?;
        for mount in &self.mounts {
            if !mount.destination.starts_with('/') {
                return Err(Fault::invalid(format!("mounts: destination {:?} is not absolute", mount.destination)));
            }
            if let Some(mappings) = mount.mappings() {
                mappings.check()?;
                if mount.kind != "bind" {
                    let text = format!("mounts: {}: only a bind takes id mappings", mount.destination);
                    return Err(Fault::invalid(text));
                }
            }
        }
        Ok(())
    }
}
