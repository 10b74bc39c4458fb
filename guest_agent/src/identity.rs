//! Who this machine is: hostname, the files that containers bind, machine and boot id.

use std::fs;

use rustix::mount::mount_bind;
use serde::Deserialize;

use crate::fault::{Doing, Fault, Outcome};

const FOLDER: &str = "/run/thaw/identity";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    hostname: Option<String>,
    hosts: Option<String>,
    resolv_conf: Option<String>,
    machine_id: Option<String>,
    boot_id: Option<String>,
}

/// Written in place: containers have bound the file, not its name, and may watch it.
pub fn write(name: &str, text: &str) -> Outcome<()> {
    let path = format!("{FOLDER}/{name}");
    fs::write(&path, text).doing(|| format!("write {path}"))
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

pub fn is_uuid(text: &str) -> bool {
    let lengths = text.split('-').map(str::len);
    lengths.eq([8, 4, 4, 4, 12]) && text.split('-').all(is_hex)
}

pub fn assume(identity: &Identity) -> Outcome<()> {
    if let Some(hostname) = &identity.hostname {
        if hostname.is_empty() || hostname.len() > 64 || hostname.contains(['\0', '\n', '/']) {
            return Err(Fault::invalid(format!("hostname {hostname:?} is not 1 to 64 characters of a host's name")));
        }
        rustix::system::sethostname(hostname.as_bytes()).doing(|| format!("set the hostname {hostname:?}"))?;
        write("hostname", &format!("{hostname}\n"))?;
    }
    if let Some(text) = &identity.hosts {
        write("hosts", text)?;
    }
    if let Some(text) = &identity.resolv_conf {
        write("resolv.conf", text)?;
    }
    if let Some(id) = &identity.machine_id {
        if id.len() != 32 || !is_hex(id) {
            return Err(Fault::invalid(format!("machine_id {id:?} is not 32 lower-case hexadecimal digits")));
        }
        write("machine-id", &format!("{id}\n"))?;
    }
    if let Some(id) = &identity.boot_id {
        if !is_uuid(id) {
            return Err(Fault::invalid(format!("boot_id {id:?} is not a UUID in lower case")));
        }
        write("boot_id", &format!("{id}\n"))?;
        let bound = fs::read_to_string(BOOT_ID).is_ok_and(|text| text.trim_end() == id);
        if !bound {
            mount_bind(format!("{FOLDER}/boot_id").as_str(), BOOT_ID).doing(|| format!("bind {BOOT_ID}"))?;
        }
    }
    Ok(())
}
