"""Kernel settings of a pod. The kernel is the pod's own, so any that it has can be set, whether it
belongs to a namespace or not; which ones pods may ask for is the kubelet's to say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from hostlib.errors import InvalidArgument

_NAME: Final = re.compile(r"[A-Za-z0-9_-]+([./][A-Za-z0-9_:-]+)+")
_MAX: Final = 256
_MAX_VALUE: Final = 4096
# sysctl(5): those of an IPC namespace; a container with one of its own has its own.
_IPC: Final = re.compile(r"kernel\.(shm|msg)[a-z_]+|kernel\.sem|fs\.mqueue\..+")
_OUTSIDE: Final = "a program there would run outside of the pod's containers"
_REFUSED: Final[Mapping[str, str]] = {
    "kernel.hostname": "set the pod's hostname",
    "kernel.modprobe": _OUTSIDE,
    "kernel.hotplug": _OUTSIDE,
    "kernel.poweroff_cmd": _OUTSIDE,
}


def normalized(given: Mapping[str, str]) -> dict[str, str]:
    """The settings, by names with dots. Raises `InvalidArgument`."""
    found = {}
    if len(given) > _MAX:
        raise InvalidArgument(f"more than {_MAX} sysctls")
    for name, value in given.items():
        dotted = _dotted(name)
        if ".." in name or len(name) > 255 or _NAME.fullmatch(name) is None:
            raise InvalidArgument(
                f"malformed sysctl {name[:255]!r}", hint='for example "net.core.somaxconn"'
            )
        if (why := _REFUSED.get(dotted)) is not None:
            raise InvalidArgument(f"sysctl {dotted} cannot be set by a pod", hint=why)
        if len(value) > _MAX_VALUE or "\0" in value:
            raise InvalidArgument(f"sysctl {dotted}: the value is no line of text")
        if dotted == "kernel.core_pattern" and value.lstrip().startswith("|"):
            raise InvalidArgument(f"sysctl {dotted}: a pipe cannot be set by a pod", hint=_OUTSIDE)
        found[dotted] = value
    return found


def _dotted(name: str) -> str:
    """sysctl(8): where the first separator is a slash, dots are part of names."""
    slash, dot = name.find("/"), name.find(".")
    if slash < 0 or (0 <= dot < slash):
        return name
    return name.translate(str.maketrans("./", "/."))


def of_ipc(settings: Mapping[str, str]) -> dict[str, str]:
    """Those that a container with an IPC namespace of its own is to have there."""
    return {name: value for name, value in settings.items() if _IPC.fullmatch(name)}
