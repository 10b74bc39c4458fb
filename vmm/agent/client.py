"""The host's end of a session with the guest's agent. The guest is not trusted."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import secrets
import socket
import struct
import termios
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from hostlib.errors import (
    DeadlineExceeded,
    InvalidArgument,
    ResourceExhausted,
    ThawError,
    Unavailable,
    from_dict,
)
from vmm.agent.codec import (
    AgentProtocolError,
    Assembler,
    Decoder,
    Flag,
    Frame,
    Type,
    encode,
    encode_message,
    parse_json,
)
from vmm.agent.stream import Stream

log = logging.getLogger(__name__)

PROTOCOL: Final = 1
HELLO_TIMEOUT: Final = 30.0
REQUEST_TIMEOUT: Final = 30.0
MAX_REQUESTS: Final = 256
MAX_RESET_MEMORY: Final = 4096
MAX_PENDING_EVENTS: Final = 256
MAX_UNSENT: Final = 16 * 1024 * 1024
_LOW_WATER: Final = 256 * 1024
_HIGH_WATER: Final = 1024 * 1024
_ID_LIMIT: Final = 2**32

EventCallback = Callable[[dict[str, Any]], None]


class AgentGone(Unavailable):
    """The connection to the agent ended."""


class _Wire(asyncio.Protocol):
    """The byte stream beneath the client."""

    def __init__(self, client: AgentClient) -> None:
        self._client = client
        self.writable = asyncio.Event()
        self.writable.set()

    def data_received(self, data: bytes) -> None:
        self._client._on_bytes(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.writable.set()
        told = f": {exc}" if exc else ""
        self._client._fail(AgentGone(f"the connection to the guest's agent ended{told}"))

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()


class AgentClient:
    """One session. `closed` is done, with the reason, when it has ended."""

    def __init__(self, nonce: int) -> None:
        loop = asyncio.get_running_loop()
        self.nonce = nonce
        self.hello: dict[str, Any] = {}
        self.closed: asyncio.Future[ThawError] = loop.create_future()
        self._greeted: asyncio.Future[dict[str, Any]] = loop.create_future()
        self._wire = _Wire(self)
        self._transport: asyncio.Transport | None = None
        self._decoder = Decoder()
        self._assembler = Assembler()
        self._requests: dict[int, asyncio.Future[dict[str, Any]] | None] = {}
        self._streams: dict[int, Stream] = {}
        # Bounded: the guest may still send on a stream for as long as it has not read our RESET.
        self._reset: dict[int, None] = {}
        self._next_request = 1
        self._next_stream = 1
        self._callback: EventCallback | None = None
        self._events: deque[dict[str, Any]] = deque()

    @classmethod
    async def open(
        cls, sock: socket.socket, nonce: int | None = None, *, timeout: float = HELLO_TIMEOUT
    ) -> AgentClient:
        """Begin a session on a connected socket, which the client owns from here on.

        Raises `DeadlineExceeded` when the agent does not answer, `AgentGone`,
        `AgentProtocolError`.
        """
        client = cls(nonce or secrets.randbits(64) or 1)
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_connection(lambda: client._wire, sock=sock)
        client._transport = transport
        transport.set_write_buffer_limits(high=_HIGH_WATER, low=_LOW_WATER)
        try:
            transport.write(encode_message(client.nonce, Type.HELLO, 0, {"protocol": PROTOCOL}))
            async with asyncio.timeout(timeout):
                client.hello = await asyncio.shield(client._greeted)
        except TimeoutError as error:
            await client.close()
            raise DeadlineExceeded(
                f"the guest's agent did not answer within {timeout:g} s"
            ) from error
        except BaseException:
            await client.close()
            raise
        return client

    async def request(
        self, method: str, params: dict[str, Any] | None = None, *, timeout: float = REQUEST_TIMEOUT
    ) -> dict[str, Any]:
        """Ask the agent; the result of its answer.

        Raises the error that the agent answered, `DeadlineExceeded`, `ResourceExhausted` with 256
        requests under way, or the reason for which the session ended. A request that was given up
        may still be carried out.
        """
        self._check_open()
        if len(self._requests) >= MAX_REQUESTS:
            raise ResourceExhausted(f"{MAX_REQUESTS} requests to the agent are under way")
        number = self._next_request
        while number in self._requests:
            number = number % (_ID_LIMIT - 1) + 1
        self._next_request = number % (_ID_LIMIT - 1) + 1
        try:
            message = encode_message(
                self.nonce, Type.REQUEST, number, {"method": method, "params": params or {}}
            )
        except ValueError as error:
            raise InvalidArgument(f"the request {method} is too large: {error}") from error
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._requests[number] = answer
        self._write(message)
        try:
            async with asyncio.timeout(timeout):
                await self._drain()
                body = await answer
        except TimeoutError as error:
            raise DeadlineExceeded(f"the agent did not answer {method} in {timeout:g} s") from error
        finally:
            if not answer.done() or answer.cancelled():
                # Its id stays in use until the agent answers after all.
                self._requests[number] = None
            elif answer.done() and not answer.cancelled():
                answer.exception()
        if "error" in body:
            raise from_dict(body["error"])
        result = body.get("result")
        if not isinstance(result, dict):
            error_ = AgentProtocolError(f"the agent's answer to {method} has no result")
            self._fail(error_)
            raise error_
        return result

    def open_stream(self) -> Stream:
        """A new stream; name its `id` in a request that gives it a meaning."""
        self._check_open()
        number = self._next_stream
        if number >= _ID_LIMIT:
            raise ResourceExhausted("this session has used up its stream ids")
        self._next_stream += 1
        stream = Stream(number, self._send, self._drain, self._forget)
        self._streams[number] = stream
        return stream

    def on_event(self, callback: EventCallback) -> None:
        """Call `callback` with each event, those that came before it first."""
        self._callback = callback
        while self._events:
            self._deliver(self._events.popleft())

    def unread(self) -> int:
        """Bytes that were sent and that the guest's side of the channel did not take yet: as the
        kernel counts them, with what it needs for each packet."""
        if self._transport is None:
            return 0
        sock = self._transport.get_extra_info("socket")
        try:
            told = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4))
        except (OSError, ValueError):
            # It is closed.
            return 0
        return int(struct.unpack("i", told)[0]) + self._transport.get_write_buffer_size()

    async def close(self) -> None:
        """End the session on this side; the guest is told nothing. Idempotent."""
        self._fail(AgentGone("the session with the guest's agent was closed"))
        # The transport closes its socket in the next turn of the loop.
        await asyncio.sleep(0)

    def _check_open(self) -> None:
        if self.closed.done():
            raise self.closed.result()

    def _write(self, data: bytes) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        self._transport.write(data)
        if self._transport.get_write_buffer_size() > MAX_UNSENT:
            self._fail(AgentProtocolError("the guest does not read what it is sent"))

    def _send(self, kind: Type, stream: int, payload: bytes, flags: Flag) -> None:
        self._write(encode(Frame(self.nonce, kind, stream, payload, flags)))

    async def _drain(self) -> None:
        await self._wire.writable.wait()
        self._check_open()

    def _forget(self, number: int, reset_here: bool) -> None:
        self._streams.pop(number, None)
        if reset_here:
            self._reset[number] = None
            if len(self._reset) > MAX_RESET_MEMORY:
                del self._reset[next(iter(self._reset))]

    def _fail(self, reason: ThawError) -> None:
        """End the session for `reason`; the first one counts."""
        if self.closed.done():
            return
        self.closed.set_result(reason)
        if self._transport is not None:
            self._transport.abort()
        if not self._greeted.done():
            self._greeted.set_exception(reason)
            self._greeted.exception()
        for answer in self._requests.values():
            if answer is not None and not answer.done():
                answer.set_exception(reason)
        self._requests.clear()
        for stream in list(self._streams.values()):
            stream.fail(reason)
        self._streams.clear()
        self._wire.writable.set()

    def _on_bytes(self, data: bytes) -> None:
        for frame in self._decoder.feed(data):
            if self.closed.done():
                return
            if frame.nonce != self.nonce:
                continue
            try:
                self._on_frame(frame)
            except AgentProtocolError as error:
                self._fail(error)

    def _on_frame(self, frame: Frame) -> None:
        match frame.type:
            case Type.HELLO:
                self._on_hello(parse_json(frame.payload))
            case _ if not self._greeted.done():
                raise AgentProtocolError("the guest spoke before it greeted")
            case Type.RESPONSE:
                self._on_response(frame)
            case Type.EVENT:
                if (data := self._assembler.add(frame)) is not None:
                    self._deliver(parse_json(data))
            case Type.DATA | Type.CREDIT | Type.RESET:
                self._on_stream_frame(frame)
            case _:
                raise AgentProtocolError(f"the guest sent {frame.type.name}, which only hosts send")

    def _on_hello(self, body: dict[str, Any]) -> None:
        if self._greeted.done():
            raise AgentProtocolError("the guest greeted twice")
        if body.get("protocol") != PROTOCOL:
            raise AgentProtocolError(
                f"the guest speaks protocol {str(body.get('protocol'))[:20]}, not {PROTOCOL}",
                hint="the guest image is older or newer than this Thaw: rebuild and re-bake it",
            )
        self._greeted.set_result(body)

    def _on_response(self, frame: Frame) -> None:
        if frame.stream not in self._requests:
            raise AgentProtocolError("the guest answered a request that was never made")
        if (data := self._assembler.add(frame)) is None:
            return
        # First: when it is no JSON the session ends, and who waits for it has to hear so.
        body = parse_json(data)
        answer = self._requests.pop(frame.stream)
        if answer is not None and not answer.done():
            answer.set_result(body)

    def _on_stream_frame(self, frame: Frame) -> None:
        stream = self._streams.get(frame.stream)
        if stream is None:
            unknown = frame.stream not in self._reset and frame.stream >= self._next_stream
            if unknown or (frame.type is Type.DATA and frame.stream not in self._reset):
                raise AgentProtocolError(f"the guest used stream {frame.stream}, which is not open")
        elif frame.type is Type.DATA:
            stream.on_data(frame.payload, bool(frame.flags & Flag.FIN))
        elif frame.type is Type.CREDIT:
            stream.on_credit(frame.payload)
        else:
            stream.on_reset()

    def _deliver(self, event: dict[str, Any]) -> None:
        if self._callback is None:
            if len(self._events) >= MAX_PENDING_EVENTS:
                raise AgentProtocolError("the guest sent too many events that nobody asked for")
            self._events.append(event)
            return
        with contextlib.suppress(asyncio.CancelledError):
            try:
                self._callback(event)
            except ThawError as error:
                log.error("event %s was not handled: %s", str(event.get("event"))[:40], error)
