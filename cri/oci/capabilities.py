"""The capabilities of a container: containerd's default set, changed as the pod asks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from hostlib.errors import InvalidArgument

# capabilities(7), in the order of their numbers (Linux 5.9 and later).
ALL: Final = tuple(
    f"CAP_{name}"
    for name in (
        "CHOWN",
        "DAC_OVERRIDE",
        "DAC_READ_SEARCH",
        "FOWNER",
        "FSETID",
        "KILL",
        "SETGID",
        "SETUID",
        "SETPCAP",
        "LINUX_IMMUTABLE",
        "NET_BIND_SERVICE",
        "NET_BROADCAST",
        "NET_ADMIN",
        "NET_RAW",
        "IPC_LOCK",
        "IPC_OWNER",
        "SYS_MODULE",
        "SYS_RAWIO",
        "SYS_CHROOT",
        "SYS_PTRACE",
        "SYS_PACCT",
        "SYS_ADMIN",
        "SYS_BOOT",
        "SYS_NICE",
        "SYS_RESOURCE",
        "SYS_TIME",
        "SYS_TTY_CONFIG",
        "MKNOD",
        "LEASE",
        "AUDIT_WRITE",
        "AUDIT_CONTROL",
        "SETFCAP",
        "MAC_OVERRIDE",
        "MAC_ADMIN",
        "SYSLOG",
        "WAKE_ALARM",
        "BLOCK_SUSPEND",
        "AUDIT_READ",
        "PERFMON",
        "BPF",
        "CHECKPOINT_RESTORE",
    )
)

# pkg/oci/spec.go of containerd: defaultUnixCaps.
DEFAULT: Final = frozenset(
    f"CAP_{name}"
    for name in (
        "CHOWN",
        "DAC_OVERRIDE",
        "FSETID",
        "FOWNER",
        "MKNOD",
        "NET_RAW",
        "SETGID",
        "SETUID",
        "SETFCAP",
        "SETPCAP",
        "NET_BIND_SERVICE",
        "SYS_CHROOT",
        "KILL",
        "AUDIT_WRITE",
    )
)


def _named(names: Iterable[str]) -> tuple[bool, set[str]]:
    everything, found = False, set()
    for name in names:
        full = name.upper()
        if full == "ALL":
            everything = True
            continue
        full = full if full.startswith("CAP_") else f"CAP_{full}"
        if full not in ALL:
            raise InvalidArgument(f"unknown capability {name!r}", hint='for example "NET_ADMIN"')
        found.add(full)
    return everything, found


def capabilities(
    add: Iterable[str], drop: Iterable[str], ambient: Iterable[str], *, privileged: bool
) -> dict[str, list[str]]:
    """The OCI ``capabilities`` object. What is added by name survives a drop of ALL, and what is
    dropped by name survives an addition of ALL. Raises `InvalidArgument`."""
    add_all, added = _named(add)
    drop_all, dropped = _named(drop)
    _, raised = _named(ambient)
    if privileged:
        held = set(ALL)
    else:
        held = set(ALL) if add_all else set() if drop_all else set(DEFAULT)
        held = (held | added | raised) - dropped
    kept = [name for name in ALL if name in held]
    raising = [name for name in ALL if name in raised & held]
    return {
        "bounding": kept,
        "effective": kept,
        "permitted": kept,
        "inheritable": raising,
        "ambient": raising,
    }
