"""A command's streams joined to ours: what exec, attach and run have in common."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

from cli import terminal
from cli.client import parse_hint
from cli.streaming import Lost, Stream, Tls, Wire, connect
from cri.streaming.remote_command import (
    MAX_STATUS,
    STREAM_TYPE,
    MalformedMessage,
    Outcome,
    decode_outcome,
    encode_size,
)
from cri.streaming.spdy.errors import StreamClosed
from hostlib.errors import Internal, ThawError

PROTOCOL: Final = "v4.channel.k8s.io"

NOT_FOUND: Final = 127
NOT_EXECUTABLE: Final = 126

_PREFIXES: Final = (
    "Internal error occurred: error executing command in container: ",
    "Internal error occurred: error attaching to container: ",
)


class NotRun(ThawError):
    """The command did not come to an end of its own; `exit_code` is what a shell gives for it."""

    code = "FAILED_PRECONDITION"

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = start_code(message)


def start_code(message: str) -> int:
    """126 or 127 for the runtime's words about a program that cannot be run, else 1.

    The status of the protocol has no code but the text, whose words all runtimes share.
    """
    if message.startswith("exec"):
        if message.endswith(("executable file not found in $PATH", "no such file or directory")):
            return NOT_FOUND
        if message.endswith(("permission denied", "is a directory", "exec format error")):
            return NOT_EXECUTABLE
    return 1


@contextlib.contextmanager
def starting() -> Iterator[None]:
    """What a call says of a command that cannot be run is raised as `NotRun`."""
    try:
        yield
    except ThawError as error:
        if start_code(error.message) == 1:
            raise
        raise NotRun(error.message, hint=error.hint) from error


@dataclass(frozen=True)
class Streams:
    """What is joined. With `terminal` there is no stderr, and a terminal of ours is in raw mode."""

    stdin: bool
    terminal: bool
    detachable: bool = False
    """Ctrl-P Ctrl-Q leaves, where stdin is a terminal."""

    @property
    def raw(self) -> bool:
        return self.terminal and self.stdin and os.isatty(terminal.STDIN)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of TLS with the streaming server, for the verbs that use it."""
    environment = os.environ.get
    for name, what in (
        ("ca", "the authority of the streaming server's certificate, where it has TLS"),
        ("cert", "the certificate to show it, where it asks for one"),
        ("key", "the key of --streaming-cert"),
    ):
        variable = f"THAW_STREAMING_{name.upper()}"
        parser.add_argument(
            f"--streaming-{name}",
            default=environment(variable, ""),
            metavar="FILE",
            help=f"{what} ({variable})",
        )


def tls(arguments: argparse.Namespace) -> Tls:
    return Tls(arguments.streaming_ca, arguments.streaming_cert, arguments.streaming_key)


async def join(
    url: str,
    streams: Streams,
    tls: Tls,
    joined: Callable[[], Awaitable[None]] | None = None,
) -> int | None:
    """Joins our standard streams to those behind `url` until these end, or the user detaches: then
    None; else the exit code, which for an attachment means nothing. `joined` is awaited as soon as
    the streams are joined.

    Raises `NotRun`, `Unavailable` when the connection is lost, `BrokenPipeError` when nobody reads
    our output, and what `connect` raises.
    """
    async with connect(url, PROTOCOL, tls) as wire:
        with terminal.raw(terminal.STDIN) if streams.raw else contextlib.nullcontext():
            return await _Session(wire, streams).run(joined)


class _Session:
    def __init__(self, wire: Wire, streams: Streams) -> None:
        self._wire = wire
        self._streams = streams
        names = ["error", "stdout", "resize" if streams.terminal else "stderr"]
        if streams.stdin:
            names.append("stdin")
        self._open = {name: wire.open({STREAM_TYPE: name}) for name in names}
        self._detached = asyncio.Event()

    async def run(self, joined: Callable[[], Awaitable[None]] | None) -> int | None:
        for stream in self._open.values():
            await stream.accepted()
        outputs = {
            name: terminal.Output(fd)
            for name, fd in (("stdout", terminal.STDOUT), ("stderr", terminal.STDERR))
            if name in self._open
        }
        if self._streams.terminal and (size := terminal.size()):
            # Before anything else: what is started next may ask for it at once.
            await self._open["resize"].send(encode_size(size))
        result = asyncio.create_task(self._result(outputs))
        detached = asyncio.create_task(self._detached.wait())
        tasks: list[asyncio.Task[Any]] = [result, detached]
        if self._streams.stdin:
            tasks.append(asyncio.create_task(self._type(self._open["stdin"])))
        if self._streams.terminal:
            tasks.append(asyncio.create_task(self._resize(self._open["resize"])))
        try:
            if joined is not None:
                # What the server does about the streams comes before its answer to this.
                await self._wire.round_trip()
                await joined()
            await asyncio.wait(tasks[:2], return_when=asyncio.FIRST_COMPLETED)
            return None if detached.done() else _exit_code(await result)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for output in outputs.values():
                output.close()

    async def _result(self, outputs: Mapping[str, terminal.Output]) -> Outcome:
        """What the command ended with, when all its output was shown."""
        await asyncio.gather(*(self._show(self._open[n], output) for n, output in outputs.items()))
        status = await self._open["error"].read_all(MAX_STATUS)
        if not status:
            raise Lost("it told no exit code")
        try:
            return decode_outcome(status, json_status=True)
        except MalformedMessage as error:
            raise Internal(f"the streaming server sent nonsense: {error}") from error

    async def _show(self, stream: Stream, output: terminal.Output) -> None:
        while data := await stream.read():
            await output.write(data)

    async def _type(self, stream: Stream) -> None:
        """What is typed, until its end or the command's lack of interest."""
        keys = terminal.DetachKeys() if self._streams.detachable and self._streams.raw else None
        # The end of the connection is told by those who read from it.
        with contextlib.suppress(StreamClosed, Lost):
            while data := await terminal.read(terminal.STDIN):
                await stream.send(keys.feed(data) if keys else data)
                if keys and keys.pressed:
                    self._detached.set()
                    return
            stream.end()

    async def _resize(self, stream: Stream) -> None:
        with contextlib.suppress(StreamClosed, Lost):
            async with aclosing(terminal.sizes()) as sizes:
                async for size in sizes:
                    await stream.send(encode_size(size))


def _exit_code(outcome: Outcome) -> int:
    if outcome.exit_code is not None:
        return outcome.exit_code
    text = outcome.message
    for prefix in _PREFIXES:
        text = text.removeprefix(prefix)
    message, hint = parse_hint(text)
    raise NotRun(message, hint=hint)
