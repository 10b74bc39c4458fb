"""What happens on a connection from its upgrade on: a function for each verb and protocol."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

from wsproto.frame_protocol import CloseReason

from cri.streaming import command
from cri.streaming.command import ClientStreams
from cri.streaming.exchange import Exchange, HttpRequest, Refused
from cri.streaming.forwarding import Forwarder, StreamPairs
from cri.streaming.link import Link
from cri.streaming.negotiation import (
    PORT_FORWARD,
    PROTOCOL_HEADER,
    REMOTE_COMMAND,
    SPDY_UPGRADE,
    WEBSOCKET_PORT_FORWARD,
    WEBSOCKET_PROTOCOL_HEADER,
    WEBSOCKET_REMOTE_COMMAND,
    ChannelProtocol,
    NoCommonProtocol,
    StreamProtocol,
    choose_channel_protocol,
    choose_stream_protocol,
)
from cri.streaming.port_forward import BadStream, data_channel, first_message, parse_ports
from cri.streaming.remote_command import STREAM_TYPE, STREAM_TYPES, encode_outcome
from cri.streaming.requests import Attach, Backend, Exec, Forward, Request
from cri.streaming.spdy_streams import SpdyStream, SpdyWire
from cri.streaming.streams import Bytes, Discard
from cri.streaming.websocket_channels import Channels, WebSocketWire, handshake

LINGER: Final = 5.0
"""Seconds for a client to end its connection once it was told that all is over. Go's clients end it
as soon as they have read everything; to end it before them may cut off what they have not read."""

_STDIN, _STDOUT, _STDERR, _ERROR, _RESIZE = range(5)

T = TypeVar("T")

Session = Callable[[], Coroutine[Any, Any, None]]


@dataclass(frozen=True)
class Client:
    """Who is connected, and to what."""

    link: Link
    backend: Backend
    creation_timeout: float
    """Seconds for a client to open its streams."""


def agree(exchange: Exchange, http: HttpRequest, request: Request, client: Client) -> Session:
    """Switches to the protocol that the client asks for; what is to be run then.

    Raises `Refused`.
    """
    try:
        if http.wants_websocket:
            return _agree_on_websocket(exchange, http, request, client)
        return _agree_on_spdy(exchange, http, request, client)
    except NoCommonProtocol as error:
        raise Refused(error.http_status, error.message, error.headers) from error
    except BadStream as error:
        raise Refused(400, error.message) from error


def _agree_on_spdy(
    exchange: Exchange, http: HttpRequest, request: Request, client: Client
) -> Session:
    offered = http.values(PROTOCOL_HEADER.lower())
    supported = PORT_FORWARD if isinstance(request, Forward) else REMOTE_COMMAND
    protocol = choose_stream_protocol(offered, supported)
    if not http.wants_spdy:
        raise Refused(400, "unable to upgrade: missing upgrade headers in request")
    rest = exchange.switch(
        [
            ("Connection", "Upgrade"),
            ("Upgrade", SPDY_UPGRADE),
            (PROTOCOL_HEADER, protocol.name),
        ]
    )
    if isinstance(request, Forward):
        return partial(_forward_spdy, client, request, rest)
    return partial(_command_spdy, client, request, protocol, rest)


def _agree_on_websocket(
    exchange: Exchange, http: HttpRequest, request: Request, client: Client
) -> Session:
    offered = http.values(WEBSOCKET_PROTOCOL_HEADER.lower())
    if not isinstance(request, Forward):
        protocol = choose_channel_protocol(offered, WEBSOCKET_REMOTE_COMMAND)
        rest = exchange.switch(handshake(http, protocol))
        return partial(_command_websocket, client, request, protocol, rest)
    protocol = choose_channel_protocol(offered, WEBSOCKET_PORT_FORWARD)
    if protocol.tunnel:
        rest = exchange.switch(handshake(http, protocol))
        return partial(_forward_tunnel, client, request, rest)
    ports = list(request.ports) or parse_ports(http.query.get("port", ()))
    if not ports:
        raise Refused(400, 'query parameter "port" is required')
    data_channel(len(ports) - 1)
    rest = exchange.switch(handshake(http, protocol))
    return partial(_forward_websocket, client, request.pod, ports, protocol, rest)


async def _unless(over: asyncio.Future[Any], work: Coroutine[Any, Any, T]) -> T | None:
    """What `work` gives; None, and `work` is cancelled, when `over` is done before it."""
    task = asyncio.create_task(work)
    try:
        await asyncio.wait([task, over], return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait([task])


# --- exec and attach


async def _command_spdy(
    client: Client, request: Exec | Attach, protocol: StreamProtocol, rest: bytes
) -> None:
    link, wanted = client.link, request.streams
    names = {
        "error": True,
        "stdin": wanted.stdin,
        "stdout": wanted.stdout,
        "stderr": wanted.stderr,
        "resize": wanted.terminal and protocol.resize,
    }
    expected = {name for name, needed in names.items() if needed}
    streams: dict[str, SpdyStream] = {}
    complete = asyncio.Event()

    def opened(stream: SpdyStream, headers: Mapping[str, str]) -> None:
        name = headers.get(STREAM_TYPE, "")
        stream.accept()
        if name not in expected or name in streams:
            stream.attach(Discard(stream))
            return
        streams[name] = stream
        if len(streams) == len(expected):
            complete.set()

    wire = SpdyWire(link, link.write, opened)
    link.receive = wire.receive
    wire.receive(rest)

    async def work() -> None:
        async with asyncio.timeout(client.creation_timeout):
            await complete.wait()
        errors = streams["error"]
        if protocol.closes_stdin:
            if "stdin" in streams:
                streams["stdin"].end()
            errors.reset()
        found = {name: stream for name, stream in streams.items() if name != "error"}
        outcome = await command.run(client.backend, request, ClientStreams(**found))
        for stream in streams.values():
            stream.attach(Discard(stream))
        if status := encode_outcome(outcome, json_status=protocol.json_status):
            errors.send(status)
        errors.end()
        await wire.settled()
        await link.drained()
        await asyncio.wait([link.gone], timeout=LINGER)

    await _unless(wire.failed, work())
    wire.go_away()
    await link.close(LINGER)


async def _command_websocket(
    client: Client, request: Exec | Attach, protocol: ChannelProtocol, rest: bytes
) -> None:
    link, wanted = client.link, request.streams
    readable = {_RESIZE, _STDIN} if wanted.stdin else {_RESIZE}
    channels = Channels(link, protocol, count=len(STREAM_TYPES), readable=readable)
    # As Kubernetes' servers tell that the connection stands: on the lowest channel they write to.
    channels.send(
        _STDOUT if wanted.stdout else _STDERR if wanted.stderr else _ERROR,
        b"",
    )
    _start(channels.socket, rest)
    streams = channels.streams
    if not wanted.terminal:
        streams[_RESIZE].attach(Discard(streams[_RESIZE]))
    found = ClientStreams(
        streams[_STDIN] if wanted.stdin else None,
        streams[_STDOUT] if wanted.stdout else None,
        streams[_STDERR] if wanted.stderr else None,
        streams[_RESIZE] if wanted.terminal else None,
    )
    outcome = await _unless(channels.socket.over, command.run(client.backend, request, found))
    if outcome is not None:
        for stream in streams:
            stream.attach(Discard(stream))
        if status := encode_outcome(outcome, json_status=protocol.json_status):
            channels.send(_ERROR, status)
    await _close(channels.socket)


def _start(socket: WebSocketWire, rest: bytes) -> None:
    socket.link.receive = socket.receive
    socket.link.hold(False)
    socket.receive(rest)


async def _close(socket: WebSocketWire) -> None:
    """Closes with 1000, which is no error to anybody, and waits for the client's answer."""
    socket.close(CloseReason.NORMAL_CLOSURE)
    await socket.link.drained()
    ends = [socket.over, socket.link.gone]
    await asyncio.wait(ends, timeout=LINGER, return_when=asyncio.FIRST_COMPLETED)
    await socket.link.close(LINGER)


# --- port-forward


async def _forward_spdy(client: Client, request: Forward, rest: bytes) -> None:
    link = client.link
    forwarder = Forwarder(client.backend, request.pod)
    pairs = StreamPairs(forwarder, client.creation_timeout)
    wire = SpdyWire(link, link.write, pairs.opened)
    try:
        link.receive = wire.receive
        wire.receive(rest)
        await asyncio.wait([wire.failed])
    finally:
        pairs.close()
        await forwarder.close()
    await link.close(LINGER)


async def _forward_tunnel(client: Client, request: Forward, rest: bytes) -> None:
    forwarder = Forwarder(client.backend, request.pod)
    pairs = StreamPairs(forwarder, client.creation_timeout)
    socket = WebSocketWire(client.link, lambda data, _: _tunnelled(wire, data))
    wire = SpdyWire(client.link, socket.send, pairs.opened)
    try:
        _start(socket, rest)
        ends: list[asyncio.Future[Any]] = [wire.failed, socket.over]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    finally:
        pairs.close()
        await forwarder.close()
    await _close(socket)


def _tunnelled(wire: SpdyWire, data: Bytes | str) -> None:
    wire.receive(data.encode() if isinstance(data, str) else data)


async def _forward_websocket(
    client: Client, pod: str, ports: list[int], protocol: ChannelProtocol, rest: bytes
) -> None:
    numbers = [data_channel(index) for index in range(len(ports))]
    channels = Channels(client.link, protocol, count=2 * len(ports), readable=numbers)
    forwarder = Forwarder(client.backend, pod)
    try:
        for number, port in zip(numbers, ports, strict=True):
            channels.send(number, first_message(port))
            channels.send(number + 1, first_message(port))
        _start(channels.socket, rest)
        tasks = [
            forwarder.start(port, channels.streams[number], channels.streams[number + 1])
            for number, port in zip(numbers, ports, strict=True)
        ]

        async def all_over() -> None:
            await asyncio.wait(tasks)

        await _unless(channels.socket.over, all_over())
    finally:
        await forwarder.close()
    await _close(channels.socket)
