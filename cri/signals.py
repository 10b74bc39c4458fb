"""Signals: by the names that CRI and images use, as the guest's numbers."""

from __future__ import annotations

import re
import signal
from typing import Final

from cri.api import v1_pb2 as v1
from hostlib.errors import InvalidArgument

# Real-time signals as Linux counts them once libc has taken two for itself.
_RTMIN: Final = 34
_RTMAX: Final = 64

_CRI: Final = v1.DESCRIPTOR.enum_types_by_name["Signal"]


def number(text: str) -> int:
    """The number of ``SIGTERM``, ``TERM``, ``15``, ``SIGRTMIN+3``; SIGTERM for an empty text.

    Raises `InvalidArgument`.
    """
    if not text:
        return int(signal.SIGTERM)
    if text.isdigit() and 0 < int(text) <= _RTMAX:
        return int(text)
    name = text.upper().removeprefix("SIG")
    if match := re.fullmatch(r"RT(MIN|MAX)(?:(\+|-)(\d{1,2}))?", name):
        base = _RTMIN if match.group(1) == "MIN" else _RTMAX
        offset = int(match.group(3) or 0) * (-1 if match.group(2) == "-" else 1)
        if _RTMIN <= base + offset <= _RTMAX:
            return base + offset
    try:
        return int(signal.Signals[f"SIG{name}"])
    except KeyError:
        raise InvalidArgument(f"unknown signal {text!r}", hint='for example "SIGTERM"') from None


def of_request(asked: int) -> str:
    """The name of CRI's `Signal`; "" for the runtime's default. Raises `InvalidArgument`."""
    if asked == v1.SIGNAL_RUNTIME_DEFAULT:
        return ""
    found = _CRI.values_by_number.get(asked)
    if found is None:
        raise InvalidArgument(f"unknown stop signal {asked}")
    name = found.name.removeprefix("SIGNAL_")
    return name.replace("PLUS", "+").replace("MINUS", "-")


def to_response(text: str) -> str:
    """The name in CRI's `Signal` of a name or number; SIGTERM for an empty text."""
    name = text.upper() or "SIGTERM"
    if name.isdigit():
        name = {int(each): each.name for each in signal.Signals}.get(int(name), "SIGTERM")
    if not name.startswith("SIG"):
        name = f"SIG{name}"
    key = "SIGNAL_" + name.replace("+", "PLUS").replace("-", "MINUS")
    return key if key in _CRI.values_by_name else "SIGNAL_SIGTERM"
