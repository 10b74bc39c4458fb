//! The system calls that rustix has no safe form of. All `unsafe` of the agent is here.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Forks into new namespaces (`CLONE_NEW*` bits) and a cgroup. None is the child.
pub fn fork_into(namespaces: i32, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Option<u32>> {
    fork(namespaces, libc::SIGCHLD, cgroup)
}

/// As [`fork_into`], but the new process's parent is the caller's, which is told of its end as of the caller's.
pub fn fork_sibling(namespaces: i32, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Option<u32>> {
    fork(namespaces | libc::CLONE_PARENT, 0, cgroup)
}

fn fork(flags: i32, exit_signal: i32, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Option<u32>> {
    // SAFETY: clone_args is plain data; all zeros is its documented default.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = u64::from(flags.cast_unsigned());
    args.exit_signal = exit_signal as u64;
    if let Some(fd) = cgroup {
        const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = fd.as_raw_fd() as u64;
    }
    // SAFETY: without CLONE_VM the child has its own copy of all memory; the agent has one thread, so no lock can be
    // held by another at this moment.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>()) })?;
    Ok(u32::try_from(pid).ok().filter(|pid| *pid != 0))
}

/// Joins namespaces of the process behind a pidfd (`CLONE_NEW*` bits), or of one namespace file.
pub fn setns(fd: BorrowedFd<'_>, kinds: i32) -> io::Result<()> {
    // SAFETY: setns takes no pointers.
    check(libc::c_long::from(unsafe { libc::setns(fd.as_raw_fd(), kinds) })).map(drop)
}

pub fn unshare(kinds: i32) -> io::Result<()> {
    // SAFETY: the agent and its children have one thread; unshare takes no pointers.
    check(libc::c_long::from(unsafe { libc::unshare(kinds) })).map(drop)
}

/// Makes `fd` this process's descriptor `number`, without close-on-exec.
pub fn place_fd(fd: BorrowedFd<'_>, number: i32) -> io::Result<()> {
    // SAFETY: only called in a forked child, which owns its table of descriptors and drops none of them.
    check(libc::c_long::from(unsafe { libc::dup2(fd.as_raw_fd(), number) })).map(drop)
}

/// Closes all descriptors from `first` on.
pub fn close_from(first: u32) -> io::Result<()> {
    // SAFETY: only called in a forked child, which ends in exec or exit and drops no descriptor afterwards.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) }).map(drop)
}

/// The descriptor that a parent placed at this number before exec or fork.
pub fn inherited_fd(number: i32) -> OwnedFd {
    // SAFETY: the caller was given the number as its own by whoever started it, and takes it once.
    unsafe { OwnedFd::from_raw_fd(number) }
}

pub fn exec(path: &CString, args: &[CString], env: &[CString]) -> io::Error {
    let argv: Vec<*const libc::c_char> = args.iter().map(|arg| arg.as_ptr()).chain([std::ptr::null()]).collect();
    let envp: Vec<*const libc::c_char> = env.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect();
    // SAFETY: both arrays end in a null pointer and their strings outlive the call.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    io::Error::last_os_error()
}

/// Executes the program behind a descriptor, which nothing else is handed on to.
pub fn exec_fd(program: BorrowedFd<'_>, args: &[CString]) -> io::Error {
    let argv: Vec<*const libc::c_char> = args.iter().map(|arg| arg.as_ptr()).chain([std::ptr::null()]).collect();
    let envp: [*const libc::c_char; 1] = [std::ptr::null()];
    // SAFETY: both arrays end in a null pointer, their strings and the empty path outlive the call.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program.as_raw_fd(),
            c"".as_ptr(),
            argv.as_ptr(),
            envp.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    io::Error::last_os_error()
}

/// Children that end, also those of others that come to this process, are forgotten by the kernel at once.
pub fn ignore_children() {
    // SAFETY: SIG_IGN is a valid disposition.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
}

/// Ends a forked child without running the parent's exit handlers.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit does not return and touches no memory.
    unsafe { libc::_exit(code) }
}

pub fn set_groups(groups: &[u32]) -> io::Result<()> {
    // SAFETY: pointer and length describe one slice. The raw call: glibc's would signal other threads, there are none.
    check(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) }).map(drop)
}

pub fn set_gid(gid: u32) -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) }).map(drop)
}

pub fn set_uid(uid: u32) -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) }).map(drop)
}

pub fn prctl(option: i32, argument: u64, second: u64) -> io::Result<()> {
    // SAFETY: used only with options whose arguments are numbers.
    check(libc::c_long::from(unsafe { libc::prctl(option, argument, second, 0, 0) })).map(drop)
}

#[repr(C)]
struct CapHeader {
    version: u32,
    pid: i32,
}

/// Sets the calling thread's capabilities, as bit masks.
pub fn set_capabilities(effective: u64, permitted: u64, inheritable: u64) -> io::Result<()> {
    const VERSION_3: u32 = 0x2008_0522;
    let header = CapHeader { version: VERSION_3, pid: 0 };
    let half = |mask: u64, shift: u32| (mask >> shift & 0xffff_ffff) as u32;
    let sets = [0, 32].map(|shift| [half(effective, shift), half(permitted, shift), half(inheritable, shift)]);
    // SAFETY: version 3 reads one header and two structures of three u32, which `sets` is laid out as.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, sets.as_ptr()) }).map(drop)
}

/// A session keyring of its own, so that the child does not share the agent's.
pub fn new_session_keyring() {
    const JOIN_SESSION_KEYRING: i32 = 1;
    // SAFETY: a null name asks for an anonymous keyring. Kernels without keyrings fail, which is as good.
    unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>()) };
}

/// Undoes what a child must not inherit: blocked signals and the ignored SIGPIPE of Rust's runtime.
pub fn reset_signals() {
    // SAFETY: the set is initialised by sigemptyset before use; SIG_DFL is a valid disposition.
    unsafe {
        let mut empty = std::mem::zeroed();
        libc::sigemptyset(&raw mut empty);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const empty, std::ptr::null_mut());
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
    }
}

/// Blocks the signals and gives a nonblocking descriptor that reports them.
pub fn signal_fd(signals: &[i32]) -> io::Result<OwnedFd> {
    // SAFETY: the set is initialised by sigemptyset; the new descriptor is owned by nobody else.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in signals {
            libc::sigaddset(&raw mut set, *signal);
        }
        check(libc::c_long::from(libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut())))?;
        let fd = libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        check(libc::c_long::from(fd))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// The calling process's `kill`; a negative pid is a process group.
pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: no pointers.
    check(libc::c_long::from(unsafe { libc::kill(pid, signal) })).map(drop)
}

fn exit_code(status: i32) -> i32 {
    if libc::WIFSIGNALED(status) { 128 + libc::WTERMSIG(status) } else { libc::WEXITSTATUS(status) }
}

/// Reaps one child: its pid and its exit code, 128+n for signal n.
pub fn reap() -> Option<(u32, i32)> {
    let mut status = 0;
    // SAFETY: the pointer is to a live int.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
    let pid = u32::try_from(pid).ok().filter(|pid| *pid != 0)?;
    Some((pid, exit_code(status)))
}

/// Waits for one child: its exit code, 128+n for signal n.
pub fn wait(pid: u32) -> io::Result<i32> {
    let mut status = 0;
    loop {
        // SAFETY: the pointer is to a live int.
        match check(libc::c_long::from(unsafe { libc::waitpid(pid.cast_signed(), &raw mut status, 0) })) {
            Ok(_) => return Ok(exit_code(status)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Loads a program of type `BPF_PROG_TYPE_CGROUP_DEVICE`.
pub fn load_device_filter(instructions: &[u64]) -> io::Result<OwnedFd> {
    const BPF_PROG_LOAD: libc::c_int = 5;
    const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
    // The head of union bpf_attr for BPF_PROG_LOAD; what is beyond the given size is zero.
    #[repr(C)]
    struct Load {
        prog_type: u32,
        insn_cnt: u32,
        insns: u64,
        license: u64,
    }
    let load = Load {
        prog_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: u32::try_from(instructions.len()).unwrap_or(u32::MAX),
        insns: instructions.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
    };
    // SAFETY: the attributes are as long as said, and what they point to outlives the call; an instruction is 8 bytes.
    let fd = check(unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const load, size_of::<Load>()) })?;
    Ok(inherited_fd(i32::try_from(fd).unwrap_or(-1)))
}

/// Makes the program decide over devices for the cgroup's processes, and for those of the cgroups below.
pub fn attach_device_filter(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    const BPF_PROG_ATTACH: libc::c_int = 8;
    const BPF_CGROUP_DEVICE: u32 = 6;
    const BPF_F_ALLOW_MULTI: u32 = 2;
    let attach =
        [cgroup.as_raw_fd().cast_unsigned(), program.as_raw_fd().cast_unsigned(), BPF_CGROUP_DEVICE, BPF_F_ALLOW_MULTI];
    // SAFETY: BPF_PROG_ATTACH reads target, program, type and flags, four u32.
    check(unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, attach.as_ptr(), size_of_val(&attach)) }).map(drop)
}

/// seccomp(2): the calling process and all its programs are judged by this one from now on.
pub fn load_seccomp_filter(instructions: &[u64], flags: u32) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: u16::try_from(instructions.len()).unwrap_or(u16::MAX),
        filter: instructions.as_ptr().cast_mut().cast(),
    };
    // SAFETY: an instruction is 8 bytes; the kernel reads as many as the length says, and writes none.
    check(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) })
        .map(drop)
}

/// Credits entropy to the kernel's generator and makes it reseed at once.
pub fn add_entropy(random: BorrowedFd<'_>, entropy: &[u8]) -> io::Result<()> {
    const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
    const RNDRESEEDCRNG: libc::c_ulong = 0x5207;
    let length = i32::try_from(entropy.len()).unwrap_or(0);
    // struct rand_pool_info: entropy in bits, size in bytes, the bytes.
    let mut info = Vec::with_capacity(8 + entropy.len());
    info.extend_from_slice(&(length * 8).to_ne_bytes());
    info.extend_from_slice(&length.to_ne_bytes());
    info.extend_from_slice(entropy);
    // SAFETY: `info` holds the header and as many bytes as the header says.
    check(libc::c_long::from(unsafe { libc::ioctl(random.as_raw_fd(), RNDADDENTROPY as _, info.as_ptr()) }))?;
    // SAFETY: RNDRESEEDCRNG takes no argument.
    check(libc::c_long::from(unsafe { libc::ioctl(random.as_raw_fd(), RNDRESEEDCRNG as _, 0) })).map(drop)
}

/// Makes the terminal the calling session's controlling one.
pub fn take_terminal(terminal: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: TIOCSCTTY takes a number.
    check(libc::c_long::from(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY, 0) })).map(drop)
}

/// Drops what the kernel holds in memory of a block device.
pub fn forget_buffers(disk: BorrowedFd<'_>) -> io::Result<()> {
    const BLKFLSBUF: libc::c_ulong = 0x1261;
    // SAFETY: BLKFLSBUF takes no argument.
    check(libc::c_long::from(unsafe { libc::ioctl(disk.as_raw_fd(), BLKFLSBUF as _, 0) })).map(drop)
}

/// Read-only for a whole tree of mounts.
pub fn read_only_tree(mounted: BorrowedFd<'_>) -> io::Result<()> {
    const MOUNT_ATTR_RDONLY: u64 = 1;
    set_attributes(mounted, [MOUNT_ATTR_RDONLY, 0, 0, 0])
}

/// The owners of files in a whole tree of detached mounts are shown as a user namespace maps them.
pub fn map_tree(tree: BorrowedFd<'_>, user: BorrowedFd<'_>) -> io::Result<()> {
    const MOUNT_ATTR_IDMAP: u64 = 0x10_0000;
    set_attributes(tree, [MOUNT_ATTR_IDMAP, 0, 0, u64::from(user.as_raw_fd().cast_unsigned())])
}

/// mount_setattr(2) on a tree of mounts; the members are what to set, what to clear, propagation, user namespace.
fn set_attributes(mounted: BorrowedFd<'_>, attributes: [u64; 4]) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | libc::AT_RECURSIVE;
    // SAFETY: struct mount_attr is four u64; the empty path is NUL-terminated.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mounted.as_raw_fd(),
            c"".as_ptr(),
            flags,
            attributes.as_ptr(),
            size_of_val(&attributes),
        )
    })
    .map(drop)
}

/// What the file system counts the folder by, and all that is made below it from now on (ext4 with project quotas).
pub fn set_project(folder: &impl AsRawFd, project: u32) -> io::Result<()> {
    const FS_IOC_FSSETXATTR: libc::c_ulong = 0x401c_5820;
    const FS_XFLAG_PROJINHERIT: u32 = 0x200;
    // struct fsxattr: flags, extent size, extents, project, extent size for copies, eight bytes of padding.
    let attributes = [FS_XFLAG_PROJINHERIT, 0, 0, project, 0, 0, 0];
    // SAFETY: the call reads one fsxattr, which is seven u32 long.
    check(libc::c_long::from(unsafe { libc::ioctl(folder.as_raw_fd(), FS_IOC_FSSETXATTR as _, attributes.as_ptr()) }))
        .map(drop)
}

/// Bytes and inodes that the project has on the file system of `folder`.
pub fn project_usage(folder: &impl AsRawFd, project: u32) -> io::Result<(u64, u64)> {
    const GET_PROJECT_QUOTA: libc::c_uint = 0x80_0007 << 8 | 2;
    // struct if_dqblk: limits of bytes, bytes, limits of inodes, inodes, two times, which of them are valid.
    let mut block = [0u64; 9];
    // SAFETY: the call writes one if_dqblk, 72 bytes with its padding.
    check(unsafe {
        libc::syscall(libc::SYS_quotactl_fd, folder.as_raw_fd(), GET_PROJECT_QUOTA, project, block.as_mut_ptr())
    })?;
    Ok((block[2], block[5]))
}

/// A nonblocking vsock socket that listens on a port of any context id.
pub fn vsock_listener(port: u32) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: socket takes no pointers; the new descriptor is owned by nobody else.
    let socket = unsafe {
        let fd = libc::socket(libc::AF_VSOCK, kind, 0);
        check(libc::c_long::from(fd))?;
        OwnedFd::from_raw_fd(fd)
    };
    // SAFETY: sockaddr_vm is plain data; zeros are valid, and the length passed is its own.
    unsafe {
        let mut address: libc::sockaddr_vm = std::mem::zeroed();
        address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
        address.svm_port = port;
        address.svm_cid = libc::VMADDR_CID_ANY;
        let length = size_of::<libc::sockaddr_vm>() as libc::socklen_t;
        check(libc::c_long::from(libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length)))?;
        check(libc::c_long::from(libc::listen(socket.as_raw_fd(), 1)))?;
    }
    Ok(socket)
}

/// A raw packet socket that receives nothing.
pub fn packet_socket() -> io::Result<OwnedFd> {
    // SAFETY: socket takes no pointers; the new descriptor is owned by nobody else.
    unsafe {
        let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0);
        check(libc::c_long::from(fd))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Sends one Ethernet frame by the link of this index.
pub fn send_packet(socket: &OwnedFd, index: u32, frame: &[u8]) -> io::Result<()> {
    // SAFETY: sockaddr_ll is plain data; zeros are valid. Both pointers are passed with their own lengths.
    unsafe {
        let mut address: libc::sockaddr_ll = std::mem::zeroed();
        address.sll_family = libc::AF_PACKET as libc::sa_family_t;
        address.sll_ifindex = index.cast_signed();
        address.sll_halen = 6;
        let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        let sent = libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const address).cast(),
            length,
        );
        check(sent as libc::c_long).map(drop)
    }
}
