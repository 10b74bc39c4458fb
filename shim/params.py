"""Members of a request's parameters, checked."""

from __future__ import annotations

from typing import Any

from hostlib.errors import InvalidArgument
from shim.protocol import Wire


def object_of(params: Wire, name: str) -> dict[str, Any]:
    """The member of that name, an object. Raises `InvalidArgument`."""
    value = params.get(name)
    if not isinstance(value, dict):
        raise InvalidArgument(f"{name} is no object")
    return value


def objects(params: Wire, name: str) -> list[dict[str, Any]]:
    """The member of that name, a list of objects; none where it is missing."""
    value = params.get(name, [])
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise InvalidArgument(f"{name} is no list of objects")
    return value


def seconds(params: Wire) -> float:
    """The time-out; 0 where it is missing."""
    value = params.get("timeout", 0)
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise InvalidArgument(f"bad time-out {value!r}")
    return float(value)


def positive(params: Wire, name: str) -> int:
    """The member of that name, a number above 0. Raises `InvalidArgument`."""
    value = params.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise InvalidArgument(f"bad {name} {value!r}")
    return value
