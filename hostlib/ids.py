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


def new_object_id() -> str:
    """The id of a pod sandbox or a container: 64 hexadecimal digits, as containerd's."""
    return secrets.token_hex(32)


def new_vm_id() -> str:
    """The id of a microVM: 8 characters, since it is part of socket paths (108 bytes) and of
    interface names (15 characters)."""
    return "".join(secrets.choice(_VM_ALPHABET) for _ in range(8))


def is_object_id(text: str) -> bool:
    return _OBJECT_ID.fullmatch(text) is not None


def is_vm_id(text: str) -> bool:
    return _VM_ID.fullmatch(text) is not None


def instance_id(root: str | os.PathLike[str]) -> str:
    """Names everything global that a daemon makes, so that daemons can run side by side.

    Six hexadecimal digits from the root's real path.
    """
    return hashlib.sha256(os.path.realpath(root).encode()).hexdigest()[:6]
