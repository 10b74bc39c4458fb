"""Port forwarding, whatever the protocol: pairs of streams joined to ports of a pod."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from cri.streaming.port_forward import BadStream, parse_stream
from cri.streaming.pump import Inflow, Outflow
from cri.streaming.requests import Backend
from cri.streaming.spdy.frames import ResetStatus
from cri.streaming.spdy_streams import SpdyStream
from cri.streaming.streams import ClientStream, Discard
from hostlib.errors import ThawError
from hostlib.tasks import Tasks

log = logging.getLogger(__name__)


class Forwarder:
    """The forwarded connections of one client. Closed, their sockets are, too."""

    def __init__(self, backend: Backend, pod: str) -> None:
        self._backend = backend
        self._pod = pod
        self._tasks = Tasks()

    def start(self, port: int, data: ClientStream, errors: ClientStream) -> asyncio.Task[bool]:
        """Joins the streams to the port in the background; False when it could not be reached.

        Both streams are ended when the connection is over; what failed is said on `errors`, in the
        words that kubectl prints behind "an error occurred forwarding 8080 -> 80: ".
        """
        return self._tasks.start(self._forward(port, data, errors), f"forward port {port}")

    async def _forward(self, port: int, data: ClientStream, errors: ClientStream) -> bool:
        ours, theirs = socket.socketpair()
        try:
            ours.setblocking(False)
            try:
                await self._backend.forward(self._pod, port, theirs.fileno())
            finally:
                theirs.close()
            await _join(ours, data)
        except ThawError as error:
            text = f"error forwarding port {port} to pod {self._pod}, uid : {error}"
            log.info("%s", text)
            data.attach(Discard(data))
            errors.send(text.encode(errors="replace"))
            return False
        else:
            return True
        finally:
            ours.close()
            data.end()
            errors.end()

    async def close(self) -> None:
        await self._tasks.close()


async def _join(sock: socket.socket, data: ClientStream) -> None:
    """Carries both ways until both have ended, each by itself, or the client broke it off."""
    outflow = Outflow(sock, data)
    inflow = Inflow(sock, data, on_break=outflow.stop)
    ends = [outflow.done, inflow.done] if data.half_closes else [outflow.done]
    try:
        await asyncio.wait(ends)
    finally:
        outflow.stop()
        inflow.stop()


@dataclass(eq=False)
class _Pair:
    timer: asyncio.TimerHandle
    data: SpdyStream | None = None
    errors: SpdyStream | None = None


class StreamPairs:
    """Finds the two SPDY streams of each connection by their request id."""

    def __init__(self, forwarder: Forwarder, creation_timeout: float) -> None:
        self._forwarder = forwarder
        self._timeout = creation_timeout
        self._pairs: dict[str, _Pair] = {}

    def opened(self, stream: SpdyStream, headers: Mapping[str, str]) -> None:
        """Takes a stream that the client opened."""
        try:
            wanted = parse_stream(stream.id, headers)
        except BadStream as error:
            log.info("a client's stream was refused: %s", error)
            stream.reset(ResetStatus.REFUSED_STREAM)
            return
        stream.accept()
        pair = self._pairs.get(wanted.request_id)
        if pair is None:
            loop = asyncio.get_running_loop()
            timer = loop.call_later(self._timeout, self._expire, wanted.request_id)
            pair = self._pairs[wanted.request_id] = _Pair(timer)
        kind = "errors" if wanted.is_error else "data"
        if getattr(pair, kind) is not None:
            log.info("a client opened two %s streams for request %s", kind, wanted.request_id)
            stream.reset(ResetStatus.PROTOCOL_ERROR)
            return
        setattr(pair, kind, stream)
        if wanted.is_error:
            stream.attach(Discard(stream))
        if pair.data is not None and pair.errors is not None:
            self._forget(wanted.request_id)
            self._forwarder.start(wanted.port, pair.data, pair.errors)

    def _forget(self, request_id: str) -> None:
        pair = self._pairs.pop(request_id)
        pair.timer.cancel()

    def _expire(self, request_id: str) -> None:
        pair = self._pairs.pop(request_id)
        if pair.errors is not None:
            pair.errors.send(f"request {request_id}: timed out waiting for streams".encode())
            pair.errors.end()
        if pair.data is not None:
            pair.data.reset()

    def close(self) -> None:
        for request_id in list(self._pairs):
            self._forget(request_id)
