//! One cgroup (version 2) for each container, under `/sys/fs/cgroup/thaw`.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use crate::container::device_filter;
use crate::container::spec::Resources;
use crate::fault::{Code, Doing, Fault, Outcome, words};

pub const PARENT: &str = "/sys/fs/cgroup/thaw";
const CONTROLLERS: &str = "+cpu +cpuset +io +memory +pids +hugetlb";
/// The one size of huge pages that can be made while the guest runs.
const HUGE_PAGE: (&str, u64) = ("2MB", 2 << 20);
const HUGE_PAGES_MAX: &str = "hugetlb.2MB.max";

/// Makes the parent and hands its controllers down. Controllers that the kernel lacks are left out.
pub fn prepare() -> io::Result<()> {
    for controller in CONTROLLERS.split(' ') {
        let _ = fs::write("/sys/fs/cgroup/cgroup.subtree_control", controller);
    }
    fs::create_dir_all(PARENT)?;
    for controller in CONTROLLERS.split(' ') {
        let _ = fs::write(format!("{PARENT}/cgroup.subtree_control"), controller);
    }
    // A guest that is full ends who fills it, when what all others used within this time cannot be kept. Else it would
    // read their programs from the disk again and again, for ever, and end nobody.
    let _ = fs::write("/sys/kernel/mm/lru_gen/min_ttl_ms", "1000");
    // Containers that may write their cgroup make more in it, and the agent removes them.
    fs::write(format!("{PARENT}/cgroup.max.depth"), "16")?;
    fs::write(format!("{PARENT}/cgroup.max.descendants"), "4096")?;
    device_filter::prepare(fs::File::open(PARENT)?.as_fd())
}

pub struct Cgroup {
    path: PathBuf,
    /// Bytes of huge pages that it may have.
    huge: u64,
}

#[derive(Debug, Default, serde::Serialize)]
pub struct Stats {
    cpu_ns: u64,
    memory_bytes: u64,
    memory_peak: u64,
    pids: u64,
    oom_kills: u64,
}

fn limit(value: i64) -> String {
    if value < 0 { "max".to_owned() } else { value.to_string() }
}

/// The files to write for `linux.resources`, in order.
fn settings(resources: &Resources) -> Outcome<Vec<(String, String)>> {
    let mut files = Vec::new();
    let mut set = |name: &str, value: String| files.push((name.to_owned(), value));
    let memory = &resources.memory;
    if let Some(bytes) = memory.limit.filter(|bytes| *bytes != 0) {
        set("memory.max", limit(bytes));
    }
    if let Some(bytes) = memory.reservation.filter(|bytes| *bytes != 0) {
        set("memory.low", limit(bytes));
    }
    if let Some(swap) = memory.swap.filter(|bytes| *bytes != 0) {
        // The specification counts memory and swap together, cgroup v2 swap alone.
        let alone = if swap < 0 { -1 } else { swap - memory.limit.unwrap_or(0) };
        if swap > 0 && alone < 0 {
            return Err(Fault::invalid("linux.resources.memory: swap is below limit"));
        }
        set("memory.swap.max", limit(alone));
    }
    let cpu = &resources.cpu;
    if let Some(shares) = cpu.shares.filter(|shares| *shares != 0) {
        let shares = shares.clamp(2, 262_144);
        set("cpu.weight", (1 + (shares - 2) * 9999 / 262_142).to_string());
    }
    if cpu.quota.is_some_and(|quota| quota != 0) || cpu.period.is_some() {
        let quota = cpu.quota.filter(|quota| *quota > 0).map_or("max".to_owned(), |quota| quota.to_string());
        set("cpu.max", format!("{quota} {}", cpu.period.filter(|period| *period != 0).unwrap_or(100_000)));
    }
    if !cpu.cpus.is_empty() {
        set("cpuset.cpus", cpu.cpus.clone());
    }
    if !cpu.mems.is_empty() {
        set("cpuset.mems", cpu.mems.clone());
    }
    if let Some(count) = resources.pids.limit.filter(|count| *count != 0) {
        set("pids.max", limit(count));
    }
    for limit in &resources.hugepage_limits {
        if limit.page_size == HUGE_PAGE.0 {
            set(HUGE_PAGES_MAX, limit.limit.to_string());
        } else if limit.limit > 0 {
            let text =
                format!("linux.resources.hugepageLimits: no pages of {:?}, only of {}", limit.page_size, HUGE_PAGE.0);
            return Err(Fault::new(Code::Unimplemented, text));
        }
    }
    for (name, value) in &resources.unified {
        let known = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'.' || byte == b'_');
        if !known || !name.contains('.') || name.starts_with('.') || name.starts_with("cgroup.") {
            return Err(Fault::invalid(format!("linux.resources.unified: {name:?} is no controller's file")));
        }
        set(name, value.clone());
    }
    Ok(files)
}

fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Ok(()) => return Ok(()),
        Err(_) => {}
    }
    for entry in fs::read_dir(path)?.filter_map(Result::ok) {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(path)
}

/// What could not be set, in words that name the file and no path of the guest's.
fn refusal(name: &str, value: &str, error: &io::Error) -> Fault {
    match error.raw_os_error() {
        // A file that is missing cannot be made in a cgroup: EACCES.
        Some(libc::ENOENT | libc::EACCES | libc::EPERM) => {
            Fault::new(Code::FailedPrecondition, format!("the guest's cgroups have no {name} that can be set"))
        }
        Some(libc::EINVAL | libc::ERANGE | libc::ENODEV | libc::EOPNOTSUPP) => {
            Fault::invalid(format!("{name}: the guest's kernel refuses {value:?}: {}", words(error)))
        }
        _ => Fault::internal(format!("write {value:?} to {name}: {}", words(error))),
    }
}

/// Limits the memory of all containers together, in bytes; 0 is no limit.
pub fn limit_all(memory: u64) -> Outcome<()> {
    let all = Cgroup { path: PathBuf::from(PARENT), huge: 0 };
    all.check_room(memory.cast_signed())?;
    let value = if memory == 0 { "max".to_owned() } else { memory.to_string() };
    all.write(&[("memory.max".to_owned(), value)])
}

/// Pages of all containers together; they are made when a process asks for one.
pub fn allow_huge_pages(bytes: u64) {
    // Where the kernel has none, no limit could be set before.
    let _ = fs::write("/proc/sys/vm/nr_overcommit_hugepages", bytes.div_ceil(HUGE_PAGE.1).to_string());
}

fn huge_pages(resources: &Resources) -> Option<u64> {
    resources.hugepage_limits.iter().rfind(|limit| limit.page_size == HUGE_PAGE.0).map(|limit| limit.limit)
}

impl Cgroup {
    pub fn create(id: &str, resources: &Resources) -> Outcome<Self> {
        let files = settings(resources)?;
        let path = Path::new(PARENT).join(id);
        if let Err(error) = fs::create_dir(&path)
            && error.kind() != io::ErrorKind::AlreadyExists
        {
            return Err(error).doing(|| format!("create {}", path.display()));
        }
        let cgroup = Self { path, huge: huge_pages(resources).unwrap_or(0) };
        // They are counted to no memory limit: who asks for none gets none.
        let _ = fs::write(cgroup.path.join(HUGE_PAGES_MAX), "0");
        if let Err(fault) = cgroup.write(&files) {
            let _ = cgroup.remove();
            return Err(fault);
        }
        Ok(cgroup)
    }

    pub fn huge_pages(&self) -> u64 {
        self.huge
    }

    fn write(&self, files: &[(String, String)]) -> Outcome<()> {
        for (name, value) in files {
            match rustix::fs::open(self.path.join(name), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
                .and_then(|file| rustix::io::write(&file, value.as_bytes()))
            {
                // Guests have no swap, and kernels without it lack the file.
                Err(rustix::io::Errno::NOENT) if name == "memory.swap.max" => {}
                Err(error) => return Err(refusal(name, value, &error.into())),
                Ok(_) => {}
            }
        }
        Ok(())
    }

    /// What is set now, of the files that hold one line.
    fn present(&self, files: &[(String, String)]) -> Vec<(String, String)> {
        let read = |name: &String| fs::read_to_string(self.path.join(name)).ok();
        files
            .iter()
            .rev()
            .filter_map(|(name, _)| Some((name.clone(), read(name)?.trim_end().to_owned())))
            .filter(|(_, value)| !value.contains('\n'))
            .collect()
    }

    /// Sets what is given and leaves the rest; nothing is changed where one cannot be set.
    pub fn update(&mut self, resources: &Resources) -> Outcome<()> {
        if !resources.devices.is_empty() {
            return Err(Fault::new(Code::Unimplemented, "linux.resources.devices: they cannot be changed"));
        }
        let files = settings(resources)?;
        // Named by either of its names.
        for (_, limit) in files.iter().filter(|(name, _)| name == "memory.max") {
            self.check_room(limit.parse().unwrap_or(-1))?;
        }
        let before = self.present(&files);
        if let Err(fault) = self.write(&files) {
            let _ = self.write(&before);
            return Err(fault);
        }
        self.huge = huge_pages(resources).unwrap_or(self.huge);
        Ok(())
    }

    /// Refuses a memory limit below what is in use and cannot be given back: the kernel would kill to keep it.
    fn check_room(&self, limit: i64) -> Outcome<()> {
        let Some(limit) = u64::try_from(limit).ok().filter(|limit| *limit > 0) else { return Ok(()) };
        let cached = ["inactive_file", "active_file", "slab_reclaimable"];
        let cached: u64 = cached.iter().map(|key| self.keyed("memory.stat", key)).sum();
        let held = self.number("memory.current").saturating_sub(cached);
        if held > limit {
            let text = format!("the container uses {held} bytes of memory, more than a limit of {limit}");
            return Err(Fault::new(Code::FailedPrecondition, text));
        }
        Ok(())
    }

    /// Of every process in it; those that they start inherit it.
    pub fn set_oom_score(&self, score: i32) -> Outcome<()> {
        for pid in self.processes() {
            match fs::write(format!("/proc/{pid}/oom_score_adj"), score.to_string()) {
                // It ended in the meantime.
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => {}
                result => result.doing(|| format!("set oom_score_adj {score}"))?,
            }
        }
        Ok(())
    }

    /// Gives it to who is root inside of a user namespace, to make groups in it: what the kernel says may be given away.
    pub fn delegate(&self, owner: (u32, u32)) -> Outcome<()> {
        let names = fs::read_to_string("/sys/kernel/cgroup/delegate").unwrap_or_default();
        for path in names.lines().map(|name| self.path.join(name)).chain([self.path.clone()]) {
            match std::os::unix::fs::chown(&path, Some(owner.0), Some(owner.1)) {
                // Controllers that it does not have.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                result => result.doing(|| format!("owner of {}", path.display()))?,
            }
        }
        Ok(())
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn open(&self) -> Outcome<OwnedFd> {
        let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
        rustix::fs::open(&self.path, flags, Mode::empty()).doing(|| format!("open {}", self.path.display()))
    }

    pub fn kill(&self) {
        // Fails only when the cgroup is gone, and then so are its processes.
        let _ = fs::write(self.path.join("cgroup.kill"), "1");
    }

    /// Removes the cgroup and those that the container made in it; EBUSY until the last process has been reaped.
    pub fn remove(&self) -> io::Result<()> {
        remove_tree(&self.path)
    }

    fn number(&self, file: &str) -> u64 {
        fs::read_to_string(self.path.join(file)).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    }

    fn keyed(&self, file: &str, key: &str) -> u64 {
        let text = fs::read_to_string(self.path.join(file)).unwrap_or_default();
        let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
        value.and_then(|text| text.parse().ok()).unwrap_or(0)
    }

    pub fn oom_kills(&self) -> u64 {
        self.keyed("memory.events", "oom_kill")
    }

    pub fn processes(&self) -> Vec<u32> {
        let text = fs::read_to_string(self.path.join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|line| line.trim().parse().ok()).collect()
    }

    pub fn stats(&self) -> Stats {
        Stats {
            cpu_ns: self.keyed("cpu.stat", "usage_usec") * 1000,
            memory_bytes: self.number("memory.current"),
            memory_peak: self.number("memory.peak"),
            pids: self.number("pids.current"),
            oom_kills: self.oom_kills(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_become_files() {
        let json = r#"{"memory":{"limit":1000,"swap":1500},"cpu":{"shares":1024,"quota":50000,"period":100000},
            "pids":{"limit":-1},"hugepageLimits":[{"pageSize":"2MB","limit":4194304},{"pageSize":"1GB","limit":0}],
            "unified":{"memory.high":"900"}}"#;
        let files = settings(&serde_json::from_str(json).unwrap()).unwrap();
        let text: Vec<String> = files.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let expected = [
            "memory.max=1000",
            "memory.swap.max=500",
            "cpu.weight=39",
            "cpu.max=50000 100000",
            "pids.max=max",
            "hugetlb.2MB.max=4194304",
            "memory.high=900",
        ];
        assert_eq!(text, expected);
    }

    #[test]
    fn unified_names_stay_inside_the_cgroup() {
        for name in ["../cgroup.procs", "cgroup.procs", "memory", ".x"] {
            let mut resources = Resources::default();
            resources.unified.insert(name.to_owned(), "1".to_owned());
            assert!(settings(&resources).is_err(), "{name}");
        }
    }
}
