//! Which namespaces a container has of its own, and which it shares with its pod. The pod's are the guest's.

use crate::container::spec::Namespace;
use crate::fault::{Code, Fault, Outcome};

/// `path` of a namespace that is the pod's.
const POD: &str = "pod";

/// `path` of the namespace of another container, whose id follows.
const CONTAINER: &str = "container:";

/// Which PID namespace a container's processes are in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PidSpace {
    #[default]
    Own,
    /// The one that containers of the pod share; the guest's own is the agent's alone.
    Pod,
    /// That of another container.
    Of(String),
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Own {
    /// `CLONE_NEW*` bits, without the cgroup namespace.
    pub flags: i32,
    /// Its root is the cgroup of the process that makes it, so it is made once the child is in its cgroup.
    pub cgroup: bool,
    pub pid: PidSpace,
    /// Whether it is in the pod's user namespace, and not in the guest's.
    pub user: bool,
}

impl Own {
    pub fn uts(&self) -> bool {
        self.flags & libc::CLONE_NEWUTS != 0
    }

    pub fn parse(namespaces: &[Namespace]) -> Outcome<Self> {
        let mut own = Self::default();
        let mut pid = false;
        for namespace in namespaces {
            let (kind, path) = (namespace.kind.as_str(), namespace.path.as_str());
            if kind == "pid" {
                pid = true;
                own.pid = match (path, path.strip_prefix(CONTAINER)) {
                    ("", _) => PidSpace::Own,
                    (POD, _) => PidSpace::Pod,
                    (_, Some(id)) => PidSpace::Of(id.to_owned()),
                    _ => {
                        let text = format!("linux.namespaces: pid: path {path:?}; only \"pod\" and \"container:ID\"");
                        return Err(Fault::invalid(text));
                    }
                };
                if own.pid == PidSpace::Own {
                    own.flags |= libc::CLONE_NEWPID;
                }
                continue;
            }
            if !path.is_empty() && path != POD {
                return Err(Fault::invalid(format!(
                    "linux.namespaces: {kind}: path {path:?}; only \"pod\" can be joined"
                )));
            }
            let shared = path == POD;
            match kind {
                "mount" if shared => {
                    let text = format!("linux.namespaces: {kind}: the pod's cannot be joined");
                    return Err(Fault::new(Code::Unimplemented, text));
                }
                "mount" => own.flags |= libc::CLONE_NEWNS,
                "ipc" | "uts" | "cgroup" | "network" if shared => {}
                "user" if shared => own.user = true,
                "ipc" => own.flags |= libc::CLONE_NEWIPC,
                "uts" => own.flags |= libc::CLONE_NEWUTS,
                "cgroup" => own.cgroup = true,
                "network" => {
                    return Err(Fault::invalid("linux.namespaces: network: containers share the pod's (path \"pod\")"));
                }
                other => {
                    let text = format!("linux.namespaces: {other}: not supported");
                    return Err(Fault::new(Code::Unimplemented, text));
                }
            }
        }
        if own.flags & libc::CLONE_NEWNS == 0 || !pid {
            return Err(Fault::invalid("linux.namespaces: mount and pid are needed"));
        }
        Ok(own)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Outcome<Own> {
        Own::parse(&serde_json::from_str::<Vec<Namespace>>(json).unwrap())
    }

    #[test]
    fn own_and_shared() {
        let own = parse(r#"[{"type":"pid"},{"type":"mount"},{"type":"uts","path":"pod"},{"type":"cgroup"}]"#).unwrap();
        assert_eq!(own.flags, libc::CLONE_NEWNS | libc::CLONE_NEWPID);
        assert!(own.cgroup && !own.uts() && !own.user);
        assert!(parse(r#"[{"type":"pid"},{"type":"mount"},{"type":"user","path":"pod"}]"#).unwrap().user);
    }

    #[test]
    fn pid_namespaces_of_others() {
        let of = |path: &str| parse(&format!(r#"[{{"type":"pid","path":"{path}"}},{{"type":"mount"}}]"#)).unwrap();
        assert_eq!(of("pod").pid, PidSpace::Pod);
        assert_eq!(of("container:abc").pid, PidSpace::Of("abc".into()));
        assert_eq!(of("pod").flags, libc::CLONE_NEWNS);
    }

    #[test]
    fn refusals_name_the_namespace() {
        assert!(parse(r#"[{"type":"mount"}]"#).is_err());
        let fault = parse(r#"[{"type":"pid"},{"type":"mount","path":"pod"}]"#).unwrap_err();
        assert_eq!(fault.code, Code::Unimplemented);
        assert!(parse(r#"[{"type":"user"}]"#).unwrap_err().message.contains("user"));
        assert!(parse(r#"[{"type":"user","path":"/x"}]"#).unwrap_err().message.contains("user"));
        assert!(parse(r#"[{"type":"pid","path":"/proc/1/ns/pid"},{"type":"mount"}]"#).is_err());
        assert!(parse(r#"[{"type":"ipc","path":"/proc/1/ns/ipc"}]"#).is_err());
    }
}
