"""What RuntimeDefault means: the calls that ordinary programs make, and by capability those that
take one. What it leaves out is what Docker's and containerd's defaults leave out (docs/security.md
says why a microVM has a filter at all).

Left out for all but a capability's holder: namespaces and mounts, keyrings, BPF and tracing of
others, clocks, modules, swap, quotas, kexec, raw ports, NUMA placement, file handles. Left out for
everybody: userfaultfd, io_uring, what is obsolete, and vsock, by which the agent may speak to the
host.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Final

from cri.oci.seccomp.profile import (
    ACTIONS,
    EPERM,
    OPERATORS,
    Argument,
    Profile,
    Rule,
    Target,
)

_ALLOW: Final = ACTIONS["SCMP_ACT_ALLOW"]
_ERRNO: Final = ACTIONS["SCMP_ACT_ERRNO"]

_ARCHITECTURES: Final[Mapping[str, tuple[str, ...]]] = {
    "SCMP_ARCH_X86_64": ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86"),
    "SCMP_ARCH_AARCH64": ("SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"),
}

_FILES: Final = """
    access chdir chmod chown chown32 close close_range copy_file_range creat dup dup2 dup3
    faccessat faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark fchdir fchmod fchmodat
    fchmodat2 fchown fchown32 fchownat fcntl fcntl64 fdatasync fgetxattr flistxattr flock
    fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64
    futimesat getcwd getdents getdents64 getxattr getxattrat inotify_add_watch inotify_init
    inotify_init1 inotify_rm_watch ioctl lchown lchown32 lgetxattr link linkat listxattr
    listxattrat llistxattr _llseek lremovexattr lseek lsetxattr lstat lstat64 mkdir mkdirat mknod
    mknodat newfstatat open openat openat2 pread64 preadv preadv2 pwrite64 pwritev pwritev2 read
    readahead readlink readlinkat readv removexattr removexattrat rename renameat renameat2 rmdir
    sendfile sendfile64 setxattr setxattrat splice stat stat64 statfs statfs64 statx symlink
    symlinkat sync sync_file_range syncfs tee truncate truncate64 umask unlink unlinkat utime
    utimensat utimensat_time64 utimes vmsplice write writev
"""
_WAITING: Final = """
    epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait
    epoll_wait_old eventfd eventfd2 io_cancel io_destroy io_getevents io_pgetevents
    io_pgetevents_time64 io_setup io_submit pipe pipe2 poll ppoll ppoll_time64 pselect6
    pselect6_time64 select _newselect signalfd signalfd4 timerfd_create timerfd_gettime
    timerfd_gettime64 timerfd_settime timerfd_settime64
"""
_MEMORY: Final = """
    brk cachestat madvise map_shadow_stack memfd_create memfd_secret mincore
    mlock mlock2 mlockall mmap mmap2 mprotect mremap mseal msync munlock munlockall munmap
    pkey_alloc pkey_free pkey_mprotect process_mrelease remap_file_pages
"""
_PROCESSES: Final = """
    capget capset execve execveat exit exit_group fork get_robust_list get_thread_area getegid
    getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getitimer getpgid getpgrp
    getpid getppid getpriority getresgid getresgid32 getresuid getresuid32 getrlimit getrusage
    getsid gettid getuid getuid32 ioprio_get ioprio_set kill landlock_add_rule
    landlock_create_ruleset landlock_restrict_self membarrier pause pidfd_open pidfd_send_signal
    prctl prlimit64 ptrace restart_syscall rseq sched_get_priority_max sched_get_priority_min
    sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval
    sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam
    sched_setscheduler sched_yield seccomp set_robust_list set_thread_area set_tid_address
    setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setitimer
    setpgid setpriority setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid
    setreuid32 setrlimit setsid setuid setuid32 times ugetrlimit vfork wait4 waitid waitpid
    process_vm_readv process_vm_writev
"""
_SIGNALS: Final = """
    alarm rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend
    rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sigaltstack sigprocmask sigreturn
    tgkill tkill
"""
_TIME: Final = """
    clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep
    clock_nanosleep_time64 getcpu getrandom gettimeofday nanosleep sysinfo time timer_create
    timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64 uname
    adjtimex clock_adjtime clock_adjtime64
"""
_TALK: Final = """
    accept accept4 bind connect futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake
    getpeername getsockname getsockopt ipc listen mq_getsetattr mq_notify mq_open mq_timedreceive
    mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink msgctl msgget msgrcv msgsnd
    recv recvfrom recvmmsg recvmmsg_time64 recvmsg semctl semget semop semtimedop
    semtimedop_time64 send sendmmsg sendmsg sendto setsockopt shmat shmctl shmdt shmget shutdown
    socketcall socketpair
"""
_OF_MACHINES: Final[Mapping[str, str]] = {
    "SCMP_ARCH_X86_64": "arch_prctl modify_ldt",
    "SCMP_ARCH_AARCH64": "arm_fadvise64_64 arm_sync_file_range breakpoint cacheflush set_tls",
}

_BY_CAPABILITY: Final[Mapping[str, str]] = {
    "CAP_DAC_READ_SEARCH": "open_by_handle_at",
    "CAP_SYS_ADMIN": """
        bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick listmount lookup_dcookie
        lsm_get_self_attr lsm_list_modules lsm_set_self_attr mount mount_setattr move_mount
        name_to_handle_at open_tree perf_event_open pivot_root quotactl quotactl_fd setdomainname
        sethostname setns statmount syslog umount umount2 unshare
    """,
    "CAP_SYS_BOOT": "reboot",
    "CAP_SYS_CHROOT": "chroot",
    "CAP_SYS_MODULE": "delete_module finit_module init_module",
    "CAP_SYS_PACCT": "acct",
    "CAP_SYS_PTRACE": "kcmp pidfd_getfd process_madvise",
    "CAP_SYS_RAWIO": "ioperm iopl",
    "CAP_SYS_TIME": "clock_settime clock_settime64 settimeofday stime",
    "CAP_SYS_TTY_CONFIG": "vhangup",
    "CAP_SYS_NICE": "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
    "CAP_SYSLOG": "syslog",
    "CAP_BPF": "bpf",
    "CAP_PERFMON": "perf_event_open",
}

_NAMESPACES: Final = 0x7E020000
"""CLONE_NEW* but for time: of user, pid, network, IPC, UTS, cgroup and mount namespaces."""

_AF_VSOCK: Final = 40
# personality(2): Linux, its variants with UNAME26 and 32 bits, and the question for it.
_PERSONALITIES: Final = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)


def _when(operator: str, value: int, value_two: int = 0) -> tuple[Argument, ...]:
    return (Argument(0, OPERATORS[f"SCMP_CMP_{operator}"], value, value_two),)


def profile(target: Target) -> Profile:
    """The default for a container of these capabilities."""
    native = target.native[0]
    plain = (_FILES, _WAITING, _MEMORY, _PROCESSES, _SIGNALS, _TIME, _TALK)
    names = {name for text in plain for name in text.split()}
    names.update(_OF_MACHINES.get(native, "").split())
    for capability, text in _BY_CAPABILITY.items():
        if capability in target.capabilities:
            names.update(text.split())
    rules = [
        Rule(tuple(sorted(names)), _ALLOW),
        Rule(("socket",), _ALLOW, _when("NE", _AF_VSOCK)),
        *[Rule(("personality",), _ALLOW, _when("EQ", value)) for value in _PERSONALITIES],
    ]
    if "clone" not in names:
        rules += [
            Rule(("clone",), _ALLOW, _when("MASKED_EQ", _NAMESPACES)),
            # Its flags are in memory, where no filter sees them: C libraries use clone instead.
            Rule(("clone3",), _ERRNO | errno.ENOSYS),
        ]
    return Profile(
        default=_ERRNO | EPERM,
        architectures=_ARCHITECTURES.get(native, (native,)),
        rules=tuple(rules),
        # x32, which the guest's kernel does not have: without it the program is a third smaller,
        # and each exec loads one.
        stranger=_ERRNO | errno.ENOSYS,
    )
