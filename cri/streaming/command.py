"""Exec and attach, whatever the protocol: a client's streams joined to those of a command."""

from __future__ import annotations

import asyncio
import logging
import socket
from dataclasses import dataclass
from typing import Final

from cri.streaming.pump import Inflow, Outflow
from cri.streaming.remote_command import MalformedMessage, Outcome, SizeDecoder, TerminalSize
from cri.streaming.requests import Attach, Backend, Descriptors, Exec, Running
from cri.streaming.streams import Bytes, ClientStream
from hostlib.errors import ThawError

log = logging.getLogger(__name__)

# As Kubernetes' streaming library says it; kubectl shows the whole.
EXEC_FAILED: Final = "Internal error occurred: error executing command in container: "
ATTACH_FAILED: Final = "Internal error occurred: error attaching to container: "


@dataclass
class ClientStreams:
    """What a client has opened of what it may."""

    stdin: ClientStream | None = None
    stdout: ClientStream | None = None
    stderr: ClientStream | None = None
    resize: ClientStream | None = None


class Resizer:
    """The sink of terminal sizes. Only the newest counts: a slow guest is not sent them all."""

    def __init__(self, stream: ClientStream) -> None:
        self._stream = stream
        self._decoder = SizeDecoder()
        self._newest: TerminalSize | None = None
        self._changed = asyncio.Event()
        self._malformed = False
        stream.attach(self)

    def receive(self, data: Bytes) -> None:
        self._stream.taken(len(data))
        if self._malformed:
            return
        try:
            sizes = self._decoder.receive(data)
        except MalformedMessage as error:
            log.info("terminal sizes are not followed any more: %s", error)
            self._malformed = True
            return
        # A terminal of no size is none: containerd leaves those out, too.
        for size in sizes:
            if size.width and size.height:
                self._newest = size
                self._changed.set()

    def ended(self) -> None:
        pass

    def broken(self) -> None:
        pass

    async def follow(self, running: Running) -> None:
        """Passes sizes on until it is cancelled."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            size = self._newest
            if size is None:
                continue
            try:
                await running.resize(size.width, size.height)
            except ThawError as error:
                log.debug("a terminal was not resized: %s", error)


class _Joint:
    """Socket pairs for the streams, and their pumps. Closed, nothing of it is left."""

    def __init__(self) -> None:
        self._ours: list[socket.socket] = []
        self._theirs: list[socket.socket] = []
        self._pumps: list[Inflow | Outflow] = []
        self.ends: list[asyncio.Future[None]] = []
        """Done when the output has ended; of an attachment without output, when its input has."""

    def pair(self) -> tuple[socket.socket, int]:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self._ours.append(ours)
        self._theirs.append(theirs)
        return ours, theirs.fileno()

    def give_away(self) -> None:
        """The other side has its duplicates: they must be the only ones, or no end is ever seen."""
        while self._theirs:
            self._theirs.pop().close()

    def feed(self, sock: socket.socket, stream: ClientStream) -> Inflow:
        inflow = Inflow(sock, stream, watch=True)
        self._pumps.append(inflow)
        return inflow

    def drain(self, sock: socket.socket, stream: ClientStream) -> None:
        outflow = Outflow(sock, stream)
        stream.attach(outflow)
        # A client that breaks the stream off closes it for the command, too.
        outflow.done.add_done_callback(lambda _: sock.close())
        self._pumps.append(outflow)
        self.ends.append(outflow.done)

    def close(self) -> None:
        for pump in self._pumps:
            pump.stop()
        self.give_away()
        for sock in self._ours:
            sock.close()


async def run(backend: Backend, request: Exec | Attach, client: ClientStreams) -> Outcome:
    """Carries a command or an attachment to its end. Cancelled, it closes the ends of the streams.

    When it returns, all output was given to the client's streams, and these were ended.
    """
    joint = _Joint()
    resizer = Resizer(client.resize) if client.resize is not None else None
    follower: asyncio.Task[None] | None = None
    try:
        running = await _open(backend, request, client, joint)
        if resizer is not None:
            follower = asyncio.create_task(resizer.follow(running), name="terminal sizes")
        code = await running.wait() if isinstance(request, Exec) else 0
        if joint.ends:
            await asyncio.wait(joint.ends)
        return Outcome(code)
    except ThawError as error:
        prefix = EXEC_FAILED if isinstance(request, Exec) else ATTACH_FAILED
        return Outcome(None, f"{prefix}{error}")
    finally:
        if follower is not None:
            follower.cancel()
        joint.close()
        for stream in (client.stdout, client.stderr):
            if stream is not None:
                stream.end()


async def _open(
    backend: Backend, request: Exec | Attach, client: ClientStreams, joint: _Joint
) -> Running:
    streams = {"stdin": client.stdin, "stdout": client.stdout, "stderr": client.stderr}
    pairs = {name: (stream, *joint.pair()) for name, stream in streams.items() if stream}
    ends = Descriptors(**{name: theirs for name, (_, _, theirs) in pairs.items()})
    try:
        if isinstance(request, Exec):
            running = await backend.exec(request, ends)
        else:
            running = await backend.attach(request, ends)
    finally:
        joint.give_away()
    for name, (stream, ours, _) in pairs.items():
        if name != "stdin":
            joint.drain(ours, stream)
            continue
        inflow = joint.feed(ours, stream)
        if isinstance(request, Attach) and len(pairs) == 1:
            joint.ends.append(inflow.closed)
    return running
