//! The machine's size, as it changes while the guest runs: processors that were plugged are brought online here, and
//! memory by the kernel itself (`memhp_default_state` of its command line).

use std::fs;

use serde::Serialize;

use crate::fault::{Doing, Outcome};

const CPUS: &str = "/sys/devices/system/cpu";

/// What the guest has now.
#[derive(Debug, PartialEq, Serialize)]
pub struct Size {
    cpus: u32,
    /// Bytes that the kernel manages, without its image and what it set aside as it booted.
    memory: u64,
}

/// The numbers of a list as the kernel writes it: `0-3,7`.
fn parse(list: &str) -> Vec<u32> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.trim().parse::<u32>().ok()?..=last.trim().parse::<u32>().ok()?)
    };
    list.split(',').filter_map(range).flatten().collect()
}

fn numbers(name: &str) -> Vec<u32> {
    parse(&fs::read_to_string(format!("{CPUS}/{name}")).unwrap_or_default())
}

fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
}

fn switch(cpu: u32, on: bool) -> Outcome<()> {
    let path = format!("{CPUS}/cpu{cpu}/online");
    fs::write(&path, if on { "1" } else { "0" })
        .doing(|| format!("switch processor {cpu} {}", if on { "on" } else { "off" }))
}

/// Keeps the first `wanted` of the processors that are there online; 0 changes none. What is there now: fewer, where
/// the kernel has not heard of all yet.
pub fn settle(wanted: u32) -> Outcome<Size> {
    if wanted > 0 {
        let (present, online) = (numbers("present"), numbers("online"));
        let keep = usize::try_from(wanted).unwrap_or(usize::MAX);
        for (at, cpu) in present.iter().enumerate() {
            // The first one cannot be switched off.
            let on = at < keep;
            if on != online.contains(cpu) {
                switch(*cpu, on)?;
            }
        }
    }
    let memory = total(&fs::read_to_string("/proc/meminfo").unwrap_or_default()).unwrap_or(0);
    Ok(Size { cpus: u32::try_from(numbers("online").len()).unwrap_or(u32::MAX), memory })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_the_kernel() {
        assert_eq!(parse("0\n"), [0]);
        assert_eq!(parse("0-2,5\n"), [0, 1, 2, 5]);
        assert!(parse("\n").is_empty());
    }

    #[test]
    fn memory_is_in_bytes() {
        assert_eq!(total("MemTotal:        2014328 kB\nMemFree: 1 kB\n"), Some(2_014_328 << 10));
        assert_eq!(total("MemTotal: x kB\n"), None);
    }
}
