"""Identifiers: how they are made, and what is accepted as one."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from typing import Final

_OBJECT_ID: Final = re.compile(r"[0-9a-f]{64}")
_VM_ID: Final = re.compile(r"[0-9a-z]{8}")
_VM_ALPHABET: Final = "0123456789abcdefghijklmnopqrstuvwxyz"

WORKER_UIDS: Final = 1 << 22
"""How many user ids workers have: as many as Linux has pids at most (PID_MAX_LIMIT)."""

WORKER_UID_BASE: Final = 0x70000000
"""The first of a range that nobody claims: above systemd's containers and any subordinate ids that
useradd gives, below 2^31. See UIDS-GIDS of systemd."""


def new_object_id() -> str:
    """The id of a pod sandbox or a container: 64 hexadecimal digits, as containerd's."""
    return secrets.token_hex(32)


def new_vm_id() -> str:
    """The id of a microVM: 8 characters, since it is part of socket paths (108 bytes) and of
    interface names (15 characters)."""
    return "".join(secrets.choice(_VM_ALPHABET) for _ in range(8))


def worker_uid(base: int, pid: int) -> int:
    """The user and group id of the worker that the process `pid` starts; 0 where `base` is.

    A pid is one process's at a time, and a worker does not outlive its parent: so no two workers
    have one id, whichever daemons they belong to, and none has to be kept or given back.
    """
    return base + pid if base else 0


def is_object_id(text: str) -> bool:
    return _OBJECT_ID.fullmatch(text) is not None


def is_vm_id(text: str) -> bool:
    return _VM_ID.fullmatch(text) is not None


def instance_id(root: str | os.PathLike[str]) -> str:
    """Names everything global that a daemon makes, so that daemons can run side by side.

    Six hexadecimal digits from the root's real path.
    """
    return hashlib.sha256(os.path.realpath(root).encode()).hexdigest()[:6]
