"""What a one-shot URL stands for, and what carries it out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias

from hostlib.errors import InvalidArgument


@dataclass(frozen=True)
class Wanted:
    """The standard streams that a client wants. With a terminal stderr comes on stdout."""

    stdin: bool
    stdout: bool
    stderr: bool
    terminal: bool

    def __post_init__(self) -> None:
        # The rules and words of Kubernetes' streaming library, which all runtimes share.
        if self.terminal and self.stderr:
            raise InvalidArgument("tty and stderr cannot both be true")
        if not (self.stdin or self.stdout or self.stderr):
            raise InvalidArgument("one of stdin, stdout, or stderr must be set")


@dataclass(frozen=True)
class Exec:
    container: str
    argv: tuple[str, ...]
    streams: Wanted


@dataclass(frozen=True)
class Attach:
    container: str
    streams: Wanted


@dataclass(frozen=True)
class Forward:
    pod: str
    ports: tuple[int, ...]
    """Of WebSocket clients; SPDY clients name a port for each connection."""


Request: TypeAlias = Exec | Attach | Forward


@dataclass(frozen=True)
class Descriptors:
    """One end of a socket pair for each stream, which the callee duplicates; None: not wanted."""

    stdin: int | None = None
    stdout: int | None = None
    stderr: int | None = None


class Running(Protocol):
    """A command that was started, or a container that was attached to."""

    async def wait(self) -> int:
        """The exit code of a command. Attachments end with their descriptors, and have none."""
        ...

    async def resize(self, width: int, height: int) -> None: ...


class Backend(Protocol):
    """Where commands and ports are. Every method raises `ThawError`."""

    async def exec(self, request: Exec, ends: Descriptors) -> Running:
        """Starts the command: when this returns it has been executed."""
        ...

    async def attach(self, request: Attach, ends: Descriptors) -> Running: ...

    async def forward(self, pod: str, port: int, end: int) -> None:
        """Connects the socket `end` to a port of the pod's localhost."""
        ...
