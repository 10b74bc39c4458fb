//! Kernel settings, of the pod and of containers with an IPC namespace of their own.

use std::io::ErrorKind;

use crate::fault::{Fault, Outcome, words};

/// The file of a setting whose name has dots between its parts, and slashes where parts have dots.
fn path(name: &str) -> Option<String> {
    let good = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-:/".contains(&byte));
    let swapped: String = name
        .chars()
        .map(|c| {
            if c == '.' {
                '/'
            } else if c == '/' {
                '.'
            } else {
                c
            }
        })
        .collect();
    let parts = swapped.split('/').all(|part| !part.is_empty() && !part.starts_with('.'));
    (good && parts).then(|| format!("/proc/sys/{swapped}"))
}

/// Sets it. What the kernel does not have or refuses is the caller's mistake.
pub fn set(name: &str, value: &str) -> Outcome<()> {
    let path = path(name).ok_or_else(|| Fault::invalid(format!("sysctl {name:?} is no name of a setting")))?;
    std::fs::write(&path, value).map_err(|error| {
        Fault::invalid(match error.kind() {
            ErrorKind::NotFound => format!("sysctl {name}: the guest's kernel has no such setting"),
            _ => format!("sysctl {name}: the guest's kernel refuses {value:?}: {}", words(&error)),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_paths_below_proc_sys() {
        assert_eq!(path("net.core.somaxconn").unwrap(), "/proc/sys/net/core/somaxconn");
        assert_eq!(path("net.ipv4.conf.eth0/1.forwarding").unwrap(), "/proc/sys/net/ipv4/conf/eth0.1/forwarding");
        for bad in ["", "a..b", "../etc", "net.//.x", "a b"] {
            assert!(path(bad).is_none(), "{bad}");
        }
    }
}
