"""Requests with one thing wrong: for every field of every message, made from the protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from cri.api import v1_pb2
from cri.validation import MAX_ENTRIES, MAX_MAP, MAX_TEXT

INT32: Final = (-1, -(2**31), 2**31 - 1)
INT64: Final = (-1, -(2**63), 2**63 - 1)
NO_ENUM: Final = 99
NUL: Final = "a\0b"
ODD: Final = "../\n\t\x7f$(reboot)"
HUGE: Final = "x" * (MAX_TEXT + 1)
MANY: Final = MAX_ENTRIES + 1
LARGE: Final = {str(n): "x" * MAX_TEXT for n in range(MAX_MAP // MAX_TEXT)}
"""A map each of whose texts is well."""


@dataclass(frozen=True)
class Wrong:
    """A request, what is wrong in it, and whether no runtime may accept that."""

    method: str
    what: str
    request: Message
    certain: bool

    def __str__(self) -> str:
        return f"{self.method}: {self.what}"


Change = Callable[[Message], None]


def methods() -> dict[str, Any]:
    """Every RPC of CRI by its full name."""
    return {
        f"{service.full_name}/{method.name}": method
        for service in v1_pb2.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }


def requests(method: str, base: Message) -> Iterator[Wrong]:
    """`base`, which is right, with each field of it wrong in turn."""
    descriptor: Any = base.DESCRIPTOR
    for what, change, certain in _changes(descriptor, lambda message: message, ""):
        request = type(base)()
        request.CopyFrom(base)
        change(request)
        # An empty text, or a message that is missing, is what was there before in most fields.
        if request != base:
            yield Wrong(method, what, request, certain)


def _changes(
    descriptor: Descriptor, find: Callable[[Message], Any], path: str
) -> Iterator[tuple[str, Change, bool]]:
    """What can be wrong in a message that `find` reaches from the request."""
    for field in descriptor.fields:
        here = f"{path}{field.name}"
        entry = field.message_type
        if entry is not None and entry.GetOptions().map_entry:
            yield from _map(field, find, here)
            continue
        if field.is_repeated:
            yield f"{here} has {MANY} entries", _fill(find, field), True
        if entry is not None:
            yield f"{here} is missing", _clear(find, field.name), False
            yield f"{here} is empty", _touch(find, field), False
            yield from _changes(entry, _inside(find, field), f"{here}.")
        else:
            for value, certain in _values(field):
                shown = repr(value)[:30]
                yield f"{here} is {shown}", _assign(find, field, value), certain


def _values(field: FieldDescriptor) -> Iterator[tuple[Any, bool]]:
    kind = field.type
    if kind == FieldDescriptor.TYPE_STRING:
        yield from ((NUL, True), (HUGE, True), (ODD, False), ("", False))
    elif kind == FieldDescriptor.TYPE_BYTES:
        yield from ((NUL.encode(), True), (HUGE.encode(), True), (b"\xff\xfe", False))
    elif kind == FieldDescriptor.TYPE_ENUM:
        yield NO_ENUM, True
    elif kind == FieldDescriptor.TYPE_INT32:
        yield from ((value, False) for value in INT32)
    elif kind == FieldDescriptor.TYPE_INT64:
        yield from ((value, False) for value in INT64)
    elif kind in (FieldDescriptor.TYPE_UINT64, FieldDescriptor.TYPE_UINT32):
        # The most is in range; below 0 there is nothing to write.
        yield (2**64 if kind == FieldDescriptor.TYPE_UINT64 else 2**32) - 1, False
    else:
        # Neither value of a boolean is wrong.
        assert kind == FieldDescriptor.TYPE_BOOL, field.full_name


def _map(
    field: FieldDescriptor, find: Callable[[Message], Any], here: str
) -> Iterator[tuple[str, Change, bool]]:
    for key, value, certain in (("", "", False), (NUL, "", True), ("a", NUL, True)):

        def change(message: Message, key: str = key, value: str = value) -> None:
            getattr(find(message), field.name)[key] = value

        yield f"{here} has {key!r}: {value!r}", change, certain
    for what, content in (
        (f"{MANY} entries", {str(n): "" for n in range(MANY)}),
        (f"over {MAX_MAP} bytes", LARGE),
    ):

        def fill(message: Message, content: dict[str, str] = content) -> None:
            getattr(find(message), field.name).update(content)

        yield f"{here} has {what}", fill, True


def _inside(find: Callable[[Message], Any], field: FieldDescriptor) -> Callable[[Message], Any]:
    def work(message: Message) -> Any:
        value = getattr(find(message), field.name)
        if not field.is_repeated:
            value.SetInParent()
            return value
        return value[0] if value else value.add()

    return work


def _clear(find: Callable[[Message], Any], name: str) -> Change:
    return lambda message: find(message).ClearField(name)


def _touch(find: Callable[[Message], Any], field: FieldDescriptor) -> Change:
    def change(message: Message) -> None:
        parent = find(message)
        parent.ClearField(field.name)
        value = getattr(parent, field.name)
        if field.is_repeated:
            value.add()
        else:
            value.SetInParent()

    return change


def _fill(find: Callable[[Message], Any], field: FieldDescriptor) -> Change:
    """As many entries as no list may have: the first over again, or each as good as none."""

    def change(message: Message) -> None:
        values = getattr(find(message), field.name)
        if field.message_type is not None:
            one = values[0] if values else values.add()
            values.extend([one] * MANY)
        else:
            empty = {FieldDescriptor.TYPE_STRING: "", FieldDescriptor.TYPE_BYTES: b""}
            one = values[0] if values else empty.get(field.type, 0)
            values.extend([one] * MANY)

    return change


def _assign(find: Callable[[Message], Any], field: FieldDescriptor, value: Any) -> Change:
    def change(message: Message) -> None:
        parent = find(message)
        if field.is_repeated:
            getattr(parent, field.name).append(value)
        else:
            setattr(parent, field.name, value)

    return change
