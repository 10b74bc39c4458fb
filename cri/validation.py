"""What holds for every request, whatever it asks; a handler need not think of it.

Enums are ones that the protocol knows, text has no NUL byte, which no path, argument or variable
can hold, and no text, list or map is larger than any that Kubernetes allows: it would be judged
entry by entry, and be in each list of pods or containers, which have room for 16 MiB in all.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from hostlib.errors import InvalidArgument

MAX_TEXT: Final = 256 * 1024
"""Bytes of one text: Kubernetes allows so many in all annotations of an object together."""

MAX_ENTRIES: Final = 65536
"""Of one list or map: as many as a process can have groups (NGROUPS_MAX), more than a pod has
variables in a namespace of 5,000 services."""
MAX_MAP: Final = 1024 * 1024
"""Bytes of the keys and values of one map: four times what Kubernetes allows for annotations."""

_SHOWN: Final = 60


def check(request: Message) -> None:
    """Raises `InvalidArgument`, which names the field."""
    _check(request, "")


def _check(message: Message, path: str) -> None:
    for field, value in message.ListFields():
        here = f"{path}{field.name}"
        for place, each in _values(field, value, here):
            if isinstance(each, Message):
                _check(each, f"{place}.")
            elif isinstance(each, (str, bytes)):
                _text(each, place)
            elif (kind := field.enum_type) is not None and each not in kind.values_by_number:
                raise InvalidArgument(f"{place}: {each} is no {kind.name}")


def _values(field: FieldDescriptor, value: Any, here: str) -> Iterator[tuple[str, Any]]:
    """The values of a field, each with its place; a map's keys are values too."""
    entry = field.message_type
    is_map = entry is not None and entry.GetOptions().map_entry
    if (is_map or field.is_repeated) and len(value) > MAX_ENTRIES:
        raise InvalidArgument(f"{here}: it has {len(value)} entries, more than {MAX_ENTRIES}")
    if is_map:
        _map_size(value, here)
        for key, each in value.items():
            yield f"{here}: the key {str(key)[:_SHOWN]!r}", key
            yield f"{here}[{str(key)[:_SHOWN]!r}]", each
    elif field.is_repeated:
        for number, each in enumerate(value):
            yield f"{here}[{number}]", each
    else:
        yield here, value


def _map_size(value: Any, place: str) -> None:
    size = 0
    for key, each in value.items():
        # Both are text in every map of the protocol.
        size += len(key.encode()) + len(each.encode())
        if size > MAX_MAP:
            raise InvalidArgument(f"{place}: keys and values are over {MAX_MAP >> 10} KiB together")


def _text(value: str | bytes, place: str) -> None:
    if (b"\0" in value) if isinstance(value, bytes) else ("\0" in value):
        raise InvalidArgument(f"{place}: a NUL byte is in the text")
    # No character has more than four bytes: only long texts need be encoded to know.
    if len(value) > MAX_TEXT or (
        isinstance(value, str) and 4 * len(value) > MAX_TEXT and len(value.encode()) > MAX_TEXT
    ):
        raise InvalidArgument(f"{place}: the text is longer than {MAX_TEXT >> 10} KiB")
