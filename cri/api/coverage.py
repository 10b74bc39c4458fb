"""What of CRI v1 is done, by ``coverage.toml``; ``python -m cri.api.coverage`` writes docs/cri.md.

Each RPC and each field of each message has a line there: a state, a colon, what it is about.

- ``done``: the test that shows it, and fails where it is ignored (``make mutation``).
- ``refused``: why, a bar, and the test that shows the refusal.
- ``none``: why it can have no effect or no value here; a bar and a test where one shows that what
  is malformed is refused.
- ``open``: not done yet, in words; a request's field is ignored or refused so far.
"""

from __future__ import annotations

import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cri.api import v1_pb2
from hostlib.errors import InvalidArgument

SOURCE: Final = Path(__file__).with_name("coverage.toml")
PAGE: Final = Path(__file__).resolve().parents[2] / "docs" / "cri.md"
RPC: Final = "rpc"
STATES: Final = ("done", "refused", "none", "open")

_HEAD: Final = """# CRI v1, field by field

Made from `cri/api/coverage.toml` by `python -m cri.api.coverage`; a test holds it against the
protocol. *done* names the test that shows it, *refused* says why, *none* why it can have no effect
in a Linux microVM, *open* what is not done yet. A test that is named fails where the field is
ignored, or the RPC is not there: `make mutation` takes each out in turn and lists those whose test
does not notice.
"""


@dataclass(frozen=True)
class Entry:
    """One RPC or field."""

    message: str
    field: str
    state: str
    text: str
    test: str

    @property
    def name(self) -> str:
        return f"{self.message}.{self.field}"


@dataclass(frozen=True)
class Coverage:
    rpcs: tuple[Entry, ...]
    fields: tuple[Entry, ...]

    def shown(self) -> list[Entry]:
        """Those with a test."""
        return [entry for entry in (*self.rpcs, *self.fields) if entry.test]


def _entry(message: str, field: str, line: str) -> Entry:
    state, _, rest = line.partition(": ")
    if state not in STATES or not rest:
        raise InvalidArgument(f"{SOURCE.name}: {message}.{field}: {line!r} has no state and text")
    text, _, test = rest.partition(" | ")
    if state == "done":
        text, test = "", rest
    return Entry(message, field, state, text, test)


def load(source: str | None = None) -> Coverage:
    """The table. Raises `InvalidArgument`."""
    try:
        sections = tomllib.loads(SOURCE.read_text() if source is None else source)
    except tomllib.TOMLDecodeError as error:
        raise InvalidArgument(f"{SOURCE.name}: {error}") from error
    entries = [
        _entry(message, field, line)
        for message, section in sections.items()
        for field, line in section.items()
    ]
    return Coverage(
        tuple(entry for entry in entries if entry.message == RPC),
        tuple(entry for entry in entries if entry.message != RPC),
    )


def protocol() -> tuple[list[str], list[str]]:
    """The names of all RPCs and of all fields, Message.field, as the protocol has them."""
    services = v1_pb2.DESCRIPTOR.services_by_name.values()
    messages = v1_pb2.DESCRIPTOR.message_types_by_name.values()
    return (
        [method.name for service in services for method in service.methods],
        [f"{message.name}.{field.name}" for message in messages for field in message.fields],
    )


def page(coverage: Coverage) -> str:
    """docs/cri.md."""
    return "\n".join([_HEAD, *_summary(coverage), *_tables(coverage)]) + "\n"


def _summary(coverage: Coverage) -> Iterator[str]:
    yield "| | " + " | ".join(STATES) + " | all |"
    yield "|---|" + "---|" * (len(STATES) + 1)
    for title, entries in (("RPCs", coverage.rpcs), ("fields", coverage.fields)):
        count = Counter(entry.state for entry in entries)
        cells = " | ".join(str(count[state]) for state in STATES)
        yield f"| {title} | {cells} | {len(entries)} |"


def _tables(coverage: Coverage) -> Iterator[str]:
    yield "\n## RPCs\n"
    yield from _table(coverage.rpcs)
    yield "\n## Messages"
    messages: dict[str, list[Entry]] = {}
    for entry in coverage.fields:
        messages.setdefault(entry.message, []).append(entry)
    for message, entries in messages.items():
        yield f"\n### {message}\n"
        yield from _table(entries)


def _table(entries: list[Entry] | tuple[Entry, ...]) -> Iterator[str]:
    yield "| | state | |"
    yield "|---|---|---|"
    for entry in entries:
        shown = "; ".join(filter(None, (entry.text, entry.test and f"`{entry.test}`")))
        yield f"| `{entry.field}` | {entry.state} | {shown} |"


def main() -> int:
    PAGE.write_text(page(load()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
