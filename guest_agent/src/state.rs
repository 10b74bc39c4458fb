//! What a rehearsal must leave as it was, for comparison.

use std::collections::BTreeSet;
use std::fs;

use serde_json::{Value, json};

use crate::network;

/// Mounts, without the numbers that count up: `point type source options`.
fn mounts() -> Vec<String> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut lines: Vec<String> = text
        .lines()
        .filter_map(|line| {
            let (place, source) = line.split_once(" - ")?;
            let place: Vec<&str> = place.split(' ').collect();
            Some(format!("{} {} {source}", place.get(3)?, place.get(4)?))
        })
        .collect();
    lines.sort();
    lines
}

fn cgroups(path: &str, found: &mut Vec<String>) {
    let Ok(entries) = fs::read_dir(path) else { return };
    for entry in entries.filter_map(Result::ok) {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let below = entry.path().to_string_lossy().into_owned();
            cgroups(&below, found);
            found.push(below);
        }
    }
}

/// Processes other than the kernel's own threads, and the namespaces that they are in.
fn processes() -> (Vec<String>, BTreeSet<String>) {
    let (mut lines, mut namespaces) = (Vec::new(), BTreeSet::new());
    for entry in fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok) {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.bytes().all(|byte| byte.is_ascii_digit()) || fs::read_link(entry.path().join("exe")).is_err() {
            continue;
        }
        let command = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        lines.push(format!("{name} {}", command.trim_end()));
        for space in fs::read_dir(entry.path().join("ns")).into_iter().flatten().filter_map(Result::ok) {
            namespaces.extend(fs::read_link(space.path()).map(|link| link.to_string_lossy().into_owned()));
        }
    }
    lines.sort();
    (lines, namespaces)
}

fn descriptors() -> Vec<String> {
    let entries = fs::read_dir("/proc/self/fd").into_iter().flatten().filter_map(Result::ok);
    let mut lines: Vec<String> = entries
        .filter_map(|entry| {
            let target = fs::read_link(entry.path()).ok()?.to_string_lossy().into_owned();
            // The folder being listed is open itself.
            (!target.ends_with("/fd")).then(|| format!("{} {target}", entry.file_name().to_string_lossy()))
        })
        .collect();
    lines.sort();
    lines
}

pub fn describe() -> Value {
    let mut groups = Vec::new();
    cgroups("/sys/fs/cgroup", &mut groups);
    groups.sort();
    let (processes, namespaces) = processes();
    json!({
        "mounts": mounts(),
        "cgroups": groups,
        "addresses": network::addresses(),
        "namespaces": namespaces,
        "processes": processes,
        "descriptors": descriptors(),
    })
}
