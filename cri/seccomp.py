"""The seccomp profile that ``RuntimeDefault`` means.

System calls that containerd's default profile withholds are refused with EPERM, unless the container
holds the capability that unlocks them there; every other call is allowed. Inside a microVM the
filter guards the guest's kernel; what guards the host is the VM.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Any, Final

# What contrib/seccomp/seccomp_default.go of containerd grants with a capability alone.
_UNLOCKED: Final = {
    "CAP_SYS_ADMIN": """
        bpf fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount mount_setattr
        move_mount open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname setns
        syslog umount2 unshare
    """,
    "CAP_SYS_BOOT": "reboot kexec_load kexec_file_load",
    "CAP_SYS_MODULE": "delete_module init_module finit_module",
    "CAP_SYS_PACCT": "acct",
    "CAP_SYS_PTRACE": "kcmp process_madvise process_vm_readv process_vm_writev",
    "CAP_SYS_RAWIO": "iopl ioperm",
    "CAP_SYS_TIME": "settimeofday clock_settime clock_adjtime",
    "CAP_SYS_TTY_CONFIG": "vhangup",
    "CAP_SYS_NICE": "get_mempolicy mbind set_mempolicy move_pages migrate_pages",
}

_NEVER: Final = """
    add_key keyctl request_key userfaultfd swapon swapoff nfsservctl uselib ustat sysfs _sysctl
    create_module get_kernel_syms query_module
"""


def profile(held: Set[str]) -> dict[str, Any]:
    """The OCI ``seccomp`` object for a container that holds the capabilities `held`."""
    refused = set(_NEVER.split())
    for capability, calls in _UNLOCKED.items():
        if capability not in held:
            refused.update(calls.split())
    return {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [
            {"names": sorted(refused), "action": "SCMP_ACT_ERRNO", "errnoRet": 1},
        ],
    }
