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
    /// Bytes that are free in the zones that the kernel keeps its own in.
    kernel: u64,
    /// Bytes that are free, or hold files alone, in the zone of what can be moved.
    movable: u64,
}

const PAGE: u64 = 4096;

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

/// A line of /proc/meminfo, in bytes.
fn memory(meminfo: &str, name: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
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
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let bytes = |name| memory(&text, name).unwrap_or(0);
    let cpus = u32::try_from(numbers("online").len()).unwrap_or(u32::MAX);
    let (kernel, movable) = free(&fs::read_to_string("/proc/zoneinfo").unwrap_or_default());
    Ok(Size { cpus, memory: bytes("MemTotal"), kernel, movable })
}

/// The bytes that are free by /proc/zoneinfo: the kernel's, and what can be moved, with files.
fn free(zoneinfo: &str) -> (u64, u64) {
    let (mut kernel, mut movable, mut inside) = (0u64, 0u64, false);
    for line in zoneinfo.lines() {
        if let Some((_, zone)) = line.split_once(", zone") {
            inside = zone.trim() == "Movable";
            continue;
        }
        let mut words = line.split_whitespace().rev();
        let bytes = words.next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0).saturating_mul(PAGE);
        match words.next() {
            Some("free") if inside => movable = movable.saturating_add(bytes),
            Some("free") => kernel = kernel.saturating_add(bytes),
            Some("nr_zone_inactive_file" | "nr_zone_active_file") if inside => movable = movable.saturating_add(bytes),
            _ => {}
        }
    }
    (kernel, movable)
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
        let text = "MemTotal:        2014328 kB\nMemFree: 1 kB\nMemAvailable: x kB\n";
        assert_eq!(memory(text, "MemTotal"), Some(2_014_328 << 10));
        assert_eq!(memory(text, "MemAvailable"), None);
        assert_eq!(memory(text, "Mem"), None);
    }

    #[test]
    fn zones_are_the_kernels_or_of_what_can_be_moved() {
        let text = "Node 0, zone    DMA32\n  per-node stats\n      nr_zone_active_file 9\n  pages free     100\n\
                    Node 0, zone  Movable\n  pages free     7\n        boost    5\n      nr_zone_inactive_file 2\n";
        assert_eq!(free(text), (100 * PAGE, 9 * PAGE));
        assert_eq!(free("pages free x\n"), (0, 0));
    }
}
