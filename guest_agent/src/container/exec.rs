//! The last steps of a process inside its container, shared by init and exec: limits, user, capabilities, execve.

use std::collections::HashSet;
use std::ffi::CString;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use rustix::fs::{Access, AtFlags, CWD};
use rustix::io::FdFlags;
use rustix::process::{Resource, Rlimit};

use crate::container::caps::Sets;
use crate::container::seccomp::{Filter, Seal};
use crate::container::spec::Process;
use crate::container::user::Identity;
use crate::fault::{Code, Doing, Fault, Outcome, words};
use crate::sys;

const RESOURCES: [(&str, Resource); 16] = [
    ("RLIMIT_AS", Resource::As),
    ("RLIMIT_CORE", Resource::Core),
    ("RLIMIT_CPU", Resource::Cpu),
    ("RLIMIT_DATA", Resource::Data),
    ("RLIMIT_FSIZE", Resource::Fsize),
    ("RLIMIT_LOCKS", Resource::Locks),
    ("RLIMIT_MEMLOCK", Resource::Memlock),
    ("RLIMIT_MSGQUEUE", Resource::Msgqueue),
    ("RLIMIT_NICE", Resource::Nice),
    ("RLIMIT_NOFILE", Resource::Nofile),
    ("RLIMIT_NPROC", Resource::Nproc),
    ("RLIMIT_RSS", Resource::Rss),
    ("RLIMIT_RTPRIO", Resource::Rtprio),
    ("RLIMIT_RTTIME", Resource::Rttime),
    ("RLIMIT_SIGPENDING", Resource::Sigpending),
    ("RLIMIT_STACK", Resource::Stack),
];

/// Soft and hard limit of a process's descriptors where it asks for none: systemd's, and so containerd's.
pub const DESCRIPTORS: (u64, u64) = (1024, 524_288);

/// Outside of user namespaces: inside nobody may raise a limit.
pub fn set_limits(process: &Process) -> Outcome<()> {
    // The agent's own is higher.
    let (soft, hard) = DESCRIPTORS;
    rustix::process::setrlimit(Resource::Nofile, Rlimit { current: Some(soft), maximum: Some(hard) })
        .doing(|| "set RLIMIT_NOFILE".to_owned())?;
    for limit in &process.rlimits {
        let resource = RESOURCES.iter().find(|(name, _)| *name == limit.kind).map(|(_, resource)| *resource);
        let resource =
            resource.ok_or_else(|| Fault::invalid(format!("process.rlimits: unknown type {:?}", limit.kind)))?;
        let value = |number: u64| (number != u64::MAX).then_some(number);
        rustix::process::setrlimit(resource, Rlimit { current: value(limit.soft), maximum: value(limit.hard) })
            .doing(|| format!("set {}", limit.kind))?;
    }
    Ok(())
}

/// The process's environment, its last setting of a name winning, as C strings; HOME is added when missing.
fn environment(process: &Process, home: &str) -> Outcome<Vec<CString>> {
    let mut seen = HashSet::new();
    let mut env = Vec::with_capacity(process.env.len() + 1);
    for text in process.env.iter().rev() {
        let name = text.split('=').next().unwrap_or_default();
        if seen.insert(name) {
            env.push(c_string(text)?);
        }
    }
    env.reverse();
    if !seen.contains("HOME") {
        env.push(c_string(&format!("HOME={}", if home.is_empty() { "/" } else { home }))?);
    }
    Ok(env)
}

fn c_string(text: &str) -> Outcome<CString> {
    CString::new(text).map_err(|_| Fault::invalid(format!("process: {text:?} contains a NUL byte")))
}

fn may_execute(path: &str) -> io::Result<()> {
    let data = std::fs::metadata(path)?;
    if data.is_dir() {
        return Err(io::Error::from_raw_os_error(libc::EISDIR));
    }
    if data.permissions().mode() & 0o111 == 0 {
        return Err(io::Error::from_raw_os_error(libc::EACCES));
    }
    Ok(rustix::fs::accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS)?)
}

fn code_of(error: &io::Error) -> Code {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR) => Code::NotFound,
        Some(libc::EACCES | libc::EPERM | libc::EISDIR) => Code::PermissionDenied,
        _ => Code::FailedPrecondition,
    }
}

/// Finds the program as Go's exec.LookPath does, whose words runc's users know.
fn look_path(process: &Process) -> Outcome<String> {
    let name = process.args.first().map(String::as_str).unwrap_or_default();
    if name.contains('/') {
        return match may_execute(name) {
            Ok(()) => Ok(name.to_owned()),
            Err(error) if code_of(&error) == Code::NotFound => {
                Err(Fault::new(Code::NotFound, format!("exec: {name:?}: stat {name}: {}", words(&error))))
            }
            Err(error) => Err(Fault::new(code_of(&error), format!("exec: {name:?}: {}", words(&error)))),
        };
    }
    let path = process.env.iter().rev().find_map(|text| text.strip_prefix("PATH=")).unwrap_or_default();
    let found = path.split(':').filter(|folder| folder.starts_with('/') && !name.is_empty());
    found
        .map(|folder| format!("{}/{name}", folder.trim_end_matches('/')))
        .find(|path| may_execute(path).is_ok())
        .ok_or_else(|| Fault::new(Code::NotFound, format!("exec: {name:?}: executable file not found in $PATH")))
}

/// The streams belong to the user, so that `/dev/stdout` can be opened again. The guest's /dev/null does not.
pub fn own_streams(uid: u32, gid: Option<u32>) {
    let null = std::fs::metadata("/dev/null").map_or(0, |data| data.rdev());
    let owner = (Some(rustix::process::Uid::from_raw(uid)), gid.map(rustix::process::Gid::from_raw));
    for stream in [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()] {
        if rustix::fs::fstat(stream).is_ok_and(|data| data.st_rdev != null || null == 0) {
            let _ = rustix::fs::fchown(stream, owner.0, owner.1);
        }
    }
}

/// A program ready to be executed.
pub struct Ready<'a> {
    path: CString,
    args: Vec<CString>,
    env: Vec<CString>,
    seal: Seal<'a>,
}

/// Becomes the process's user with its capabilities, in its working directory; its environment, and what is to be done
/// right before the exec.
pub fn settle<'a>(
    process: &Process,
    caps: &Sets,
    identity: &Identity,
    filter: Option<&'a Filter>,
) -> Outcome<(Vec<CString>, Seal<'a>)> {
    if identity.uid != 0 {
        own_streams(identity.uid, None);
    }
    if process.no_new_privileges {
        sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0).doing(|| "set no_new_privs".to_owned())?;
    }
    caps.drop_bounding()?;
    // Tried as root first: a directory that only root may enter is allowed, as in runc.
    let entered = rustix::process::chdir(&process.cwd);
    sys::set_groups(&identity.groups).doing(|| "setgroups".to_owned())?;
    sys::set_gid(identity.gid).doing(|| format!("setgid {}", identity.gid))?;
    sys::set_uid(identity.uid).doing(|| format!("setuid {}", identity.uid))?;
    if entered.is_err() {
        rustix::process::chdir(&process.cwd).map_err(|error| {
            let error = io::Error::from(error);
            let text = format!("chdir to cwd ({:?}) set in config.json failed: {}", process.cwd, words(&error));
            Fault::new(code_of(&error), text)
        })?;
    }
    let seal = Seal::prepare(caps, filter, process.no_new_privileges)?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(process.user.umask.unwrap_or(0o022) & 0o777));
    Ok((environment(process, &identity.home)?, seal))
}

impl<'a> Ready<'a> {
    pub fn find(process: &Process, (env, seal): (Vec<CString>, Seal<'a>)) -> Outcome<Self> {
        let path = look_path(process)?;
        let args = process.args.iter().map(|arg| c_string(arg)).collect::<Outcome<_>>()?;
        Ok(Self { path: c_string(&path)?, args, env, seal })
    }

    /// Replaces the calling process; returns only to say why not.
    pub fn go(&self) -> Fault {
        if let Err(fault) = self.seal.close() {
            return fault;
        }
        let error = sys::exec(&self.path, &self.args, &self.env);
        Fault::new(code_of(&error), format!("exec {}: {}", self.path.to_string_lossy(), words(&error)))
    }
}

/// Lowers or raises what the kernel kills first; before the container's /proc is entered.
pub fn set_oom_score(process: &Process) -> Outcome<()> {
    match process.oom_score_adj {
        Some(score) => std::fs::write("/proc/self/oom_score_adj", score.to_string())
            .doing(|| format!("process.oomScoreAdj: set {score}")),
        None => Ok(()),
    }
}

/// Gives a fresh child its standard streams, the status socket as descriptor 3, and closes all others but `extra`, which
/// becomes descriptor 4. None of the sources can be 3 or 4: the agent holds its own loop's descriptors there.
pub fn take_descriptors(
    stdio: [BorrowedFd<'_>; 3],
    status: BorrowedFd<'_>,
    extra: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    for (number, fd) in (0..).zip(stdio) {
        sys::place_fd(fd, number)?;
    }
    sys::place_fd(status, STATUS)?;
    let first_closed = match extra {
        Some(fd) => {
            sys::place_fd(fd, EXTRA)?;
            EXTRA + 1
        }
        None => EXTRA,
    };
    sys::close_from(first_closed.unsigned_abs())?;
    let placed = ManuallyDrop::new(sys::inherited_fd(STATUS));
    Ok(rustix::io::fcntl_setfd(placed.as_fd(), FdFlags::CLOEXEC)?)
}

/// Where a child finds its status socket.
pub const STATUS: i32 = 3;
/// Where a child finds the process whose namespaces it joins, or an init the user namespace that it enters.
pub const EXTRA: i32 = 4;
