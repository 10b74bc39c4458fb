//! What the pod and its containers use, in one answer: from control groups, quotas, and the counters of interfaces.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::Path;

use serde::Serialize;

use crate::agent::{Agent, State};
use crate::container::cgroup::PARENT;
use crate::container::rootfs::SCRATCH;
use crate::open_files::{self, OpenFiles};
use crate::sys;

/// Interfaces beyond these are left out, so that the answer stays small.
const MAX_INTERFACES: usize = 64;
/// Control groups of one container whose processes are counted.
const MAX_GROUPS: usize = 64;
/// Disks of one control group that are told apart.
const MAX_DISKS: usize = 16;
/// Open files that are looked at in one answer, shared evenly by the containers: the event loop waits meanwhile.
const MAX_OPEN_FILES: usize = 16_384;
/// Bytes of one file that are read.
const MAX_FILE: u64 = 256 * 1024;

#[derive(Serialize)]
pub struct Stats {
    pod: Group,
    containers: BTreeMap<String, Container>,
    interfaces: Vec<Interface>,
    scratch: Option<Disk>,
}

#[derive(Serialize)]
struct Container {
    #[serde(flatten)]
    group: Group,
    upper: Option<Upper>,
    /// None where there are too many to count.
    open_files: Option<OpenFiles>,
    /// Of its first process; None where there is none.
    open_files_limit: Option<u64>,
}

/// What a container's writable layer takes.
#[derive(Serialize)]
struct Upper {
    bytes: u64,
    inodes: u64,
}

/// The file system of all writable layers.
#[derive(Serialize)]
struct Disk {
    bytes: u64,
    bytes_free: u64,
    inodes: u64,
    inodes_free: u64,
    /// What the kernel counts of the disk below it, in the order of its documentation (block/stat): reads, merged,
    /// sectors, milliseconds; the same of writes; under way, milliseconds with any, milliseconds of all together.
    io: Option<[u64; 11]>,
}

/// One control group. What is absent the kernel does not say; a limit that is absent is none.
#[derive(Default, Serialize)]
struct Group {
    cpu: BTreeMap<&'static str, u64>,
    memory: BTreeMap<&'static str, u64>,
    io: BTreeMap<&'static str, u64>,
    /// Bytes read and written by the disk's number, `MAJOR:MINOR`.
    disks: BTreeMap<String, [u64; 2]>,
    /// Pages of 2 MB: bytes, and how often there were too few.
    huge: BTreeMap<&'static str, u64>,
    tasks: Option<u64>,
    tasks_limit: Option<u64>,
    processes: u64,
    pressure: BTreeMap<&'static str, BTreeMap<String, Pressure>>,
}

/// A line of a pressure file: microseconds, and percentages.
#[derive(Debug, Default, PartialEq, Serialize)]
struct Pressure {
    total: u64,
    avg10: f64,
    avg60: f64,
    avg300: f64,
}

#[derive(Debug, PartialEq, Serialize)]
struct Interface {
    name: String,
    /// Bytes, packets, errors, dropped.
    received: [u64; 4],
    sent: [u64; 4],
}

const CPU: [&str; 8] = [
    "usage_usec",
    "user_usec",
    "system_usec",
    "nr_periods",
    "nr_throttled",
    "throttled_usec",
    "nr_bursts",
    "burst_usec",
];
const MEMORY: [&str; 8] =
    ["anon", "file", "kernel", "file_mapped", "inactive_file", "active_file", "pgfault", "pgmajfault"];
const EVENTS: [&str; 2] = ["max", "oom_kill"];
const IO: [&str; 4] = ["rbytes", "wbytes", "rios", "wios"];

fn read(folder: &Path, name: &str) -> Option<String> {
    let mut text = String::new();
    fs::File::open(folder.join(name)).ok()?.take(MAX_FILE).read_to_string(&mut text).ok()?;
    Some(text)
}

/// A file with one number; "max" is none.
fn number(folder: &Path, name: &str) -> Option<u64> {
    read(folder, name)?.trim().parse().ok()
}

/// The wanted lines of a file of names and numbers.
fn pick(text: &str, wanted: &[&'static str], into: &mut BTreeMap<&'static str, u64>) {
    for (name, value) in text.lines().filter_map(|line| line.split_once(' ')) {
        if let Some(name) = wanted.iter().find(|each| **each == name)
            && let Ok(value) = value.trim().parse()
        {
            into.insert(name, value);
        }
    }
}

/// `MAJ:MIN rbytes=1 wbytes=2 ...`, a line for each device, summed.
fn sum_io(text: &str) -> BTreeMap<&'static str, u64> {
    let mut sums = BTreeMap::new();
    for (name, value) in text.split_whitespace().filter_map(|word| word.split_once('=')) {
        if let (Some(name), Ok(value)) = (IO.iter().find(|each| **each == name), value.parse::<u64>()) {
            let sum: &mut u64 = sums.entry(*name).or_default();
            *sum = sum.saturating_add(value);
        }
    }
    sums
}

/// Of the first disks. A disk that did nothing may have no line of its own, but stand before the next one's number.
fn disks(text: &str) -> BTreeMap<String, [u64; 2]> {
    let mut found: BTreeMap<String, [u64; 2]> = BTreeMap::new();
    let mut disk = "";
    for word in text.split_whitespace() {
        let Some((name, value)) = word.split_once('=') else {
            disk = word;
            continue;
        };
        let Some(way) = ["rbytes", "wbytes"].iter().position(|each| *each == name) else { continue };
        if found.len() < MAX_DISKS || found.contains_key(disk) {
            found.entry(disk.to_owned()).or_default()[way] = value.parse().unwrap_or(0);
        }
    }
    found
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`, and the same of `full`.
fn pressure(text: &str) -> BTreeMap<String, Pressure> {
    let mut found = BTreeMap::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let Some(kind) = words.next().filter(|kind| matches!(*kind, "some" | "full")) else { continue };
        let mut entry = Pressure::default();
        for (name, value) in words.filter_map(|word| word.split_once('=')) {
            match name {
                "total" => entry.total = value.parse().unwrap_or(0),
                "avg10" => entry.avg10 = value.parse().unwrap_or(0.0),
                "avg60" => entry.avg60 = value.parse().unwrap_or(0.0),
                "avg300" => entry.avg300 = value.parse().unwrap_or(0.0),
                _ => {}
            }
        }
        found.insert(kind.to_owned(), entry);
    }
    found
}

/// The processes of a group and of those below it.
fn processes(folder: &Path, groups: &mut usize, into: &mut Vec<u32>) {
    if *groups == 0 {
        return;
    }
    *groups -= 1;
    let text = read(folder, "cgroup.procs").unwrap_or_default();
    into.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
    for entry in fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok) {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            processes(&entry.path(), groups, into);
        }
    }
}

fn group(folder: &Path) -> Group {
    let mut found = Group::default();
    pick(&read(folder, "cpu.stat").unwrap_or_default(), &CPU, &mut found.cpu);
    pick(&read(folder, "memory.stat").unwrap_or_default(), &MEMORY, &mut found.memory);
    pick(&read(folder, "memory.events").unwrap_or_default(), &EVENTS, &mut found.memory);
    let files = [
        ("current", "memory.current"),
        ("peak", "memory.peak"),
        ("limit", "memory.max"),
        ("swap", "memory.swap.current"),
        ("swap_limit", "memory.swap.max"),
        ("min", "memory.min"),
    ];
    for (name, file) in files {
        if let Some(value) = number(folder, file) {
            found.memory.insert(name, value);
        }
    }
    let io = read(folder, "io.stat").unwrap_or_default();
    found.io = sum_io(&io);
    found.disks = disks(&io);
    if let Some(bytes) = number(folder, "hugetlb.2MB.current") {
        found.huge.insert("current", bytes);
        pick(&read(folder, "hugetlb.2MB.events").unwrap_or_default(), &["max"], &mut found.huge);
    }
    found.tasks = number(folder, "pids.current");
    found.tasks_limit = number(folder, "pids.max");
    for (name, file) in [("cpu", "cpu.pressure"), ("memory", "memory.pressure"), ("io", "io.pressure")] {
        if let Some(text) = read(folder, file) {
            found.pressure.insert(name, pressure(&text));
        }
    }
    found
}

/// The lines of /proc/net/dev but for loopback.
fn interfaces(text: &str) -> Vec<Interface> {
    let parse = |line: &str| {
        let (name, rest) = line.split_once(':')?;
        let numbers: Vec<u64> = rest.split_whitespace().map_while(|word| word.parse().ok()).collect();
        let four = |from: usize| <[u64; 4]>::try_from(numbers.get(from..from + 4)?).ok();
        Some(Interface { name: name.trim().to_owned(), received: four(0)?, sent: four(8)? })
    };
    text.lines().filter_map(parse).filter(|each| each.name != "lo").take(MAX_INTERFACES).collect()
}

fn disk() -> Option<Disk> {
    let found = rustix::fs::statvfs(SCRATCH).ok()?;
    Some(Disk {
        bytes: found.f_blocks.saturating_mul(found.f_frsize),
        bytes_free: found.f_bavail.saturating_mul(found.f_frsize),
        inodes: found.f_files,
        inodes_free: found.f_ffree,
        io: disk_io(),
    })
}

fn disk_io() -> Option<[u64; 11]> {
    let disk = rustix::fs::stat(SCRATCH).ok()?.st_dev;
    let folder = format!("/sys/dev/block/{}:{}", rustix::fs::major(disk), rustix::fs::minor(disk));
    eleven(&read(Path::new(&folder), "stat")?)
}

fn eleven(text: &str) -> Option<[u64; 11]> {
    let numbers = text.split_whitespace().map_while(|word| word.parse().ok());
    numbers.take(11).collect::<Vec<u64>>().try_into().ok()
}

pub fn collect(agent: &Agent) -> Stats {
    let proc = Path::new("/proc");
    let scratch = fs::File::open(SCRATCH).ok();
    let usage = |project: u32| {
        let (bytes, inodes) = sys::project_usage(scratch.as_ref()?, project).ok()?;
        (project != 0).then_some(Upper { bytes, inodes })
    };
    let mut containers = BTreeMap::new();
    let mut total = 0;
    for (id, container) in &agent.containers {
        let folder = container.cgroup.path();
        let mut pids = Vec::new();
        processes(folder, &mut MAX_GROUPS.clone(), &mut pids);
        let group = Group { processes: pids.len() as u64, ..group(folder) };
        total += group.processes;
        let running = container.state == State::Running;
        let told = Container {
            group,
            upper: usage(container.project),
            open_files: open_files::count(proc, &pids, MAX_OPEN_FILES / agent.containers.len()),
            open_files_limit: running.then(|| open_files::limit(proc, container.pid)).flatten(),
        };
        containers.insert(id.clone(), told);
    }
    let pod = Group { processes: total, ..group(Path::new(PARENT)) };
    let text = read(&proc.join("net"), "dev").unwrap_or_default();
    Stats { pod, containers, interfaces: interfaces(&text), scratch: disk() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn interfaces_are_read_without_loopback() {
        let text = "Inter-|   Receive  |  Transmit\n face |bytes packets errs drop fifo frame compressed multicast|bytes\n    lo: 9 9 9 9 0 0 0 0 9 9 9 9 0 0 0 0\n  eth0: 1 2 3 4 0 0 0 0 5 6 7 8 0 0 0 0\nbad0: 1 2\n";
        let eth0 = Interface { name: "eth0".to_owned(), received: [1, 2, 3, 4], sent: [5, 6, 7, 8] };
        assert_eq!(interfaces(text), [eth0]);
    }

    #[test]
    fn devices_are_summed() {
        let sums = sum_io("8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=9\n8:16 rbytes=10 wbytes=20\n");
        assert_eq!(sums, BTreeMap::from([("rbytes", 11), ("wbytes", 22), ("rios", 3), ("wios", 4)]));
    }

    #[test]
    fn disks_are_told_apart() {
        let text = "8:0 rbytes=1 wbytes=2 rios=3\n7:0 8:16 rbytes=10 wbytes=x\n8:32 \n";
        assert_eq!(disks(text), BTreeMap::from([("8:0".to_owned(), [1, 2]), ("8:16".to_owned(), [10, 0])]));
        let many: String = (0..99).map(|disk| format!("8:{disk} rbytes=1\n")).collect();
        assert_eq!(disks(&many).len(), MAX_DISKS);
    }

    #[test]
    fn a_disk_has_eleven_numbers() {
        assert_eq!(eleven(" 1 2 3 4 5 6 7 8 9 10 11 12 13\n"), Some([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]));
        assert_eq!(eleven("1 2 3 x 5 6 7 8 9 10 11"), None);
        assert_eq!(eleven(""), None);
    }

    #[test]
    fn pressure_has_both_kinds() {
        let found = pressure("some avg10=1.50 avg60=2.00 avg300=0.00 total=7\nfull avg10=0.00 total=3\nmore x=1\n");
        assert_eq!(found["some"], Pressure { total: 7, avg10: 1.5, avg60: 2.0, avg300: 0.0 });
        assert_eq!(found["full"].total, 3);
        assert_eq!(found.len(), 2);
    }

    #[test]
    fn wanted_lines_are_picked() {
        let mut found = BTreeMap::new();
        pick("usage_usec 5\nnice_usec 1\nuser_usec x\n", &CPU, &mut found);
        assert_eq!(found, BTreeMap::from([("usage_usec", 5)]));
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "(?s).{0,300}") {
            let _ = (interfaces(&text), sum_io(&text), disks(&text), pressure(&text), eleven(&text));
        }
    }
}
