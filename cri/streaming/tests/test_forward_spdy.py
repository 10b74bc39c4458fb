"""Port-forward over SPDY and through the WebSocket tunnel, with a backend of socket pairs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, cast
from urllib.parse import urlsplit

import pytest
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection

from cri.streaming import spdy_streams
from cri.streaming.server import StreamingServer
from cri.streaming.spdy.limits import Limits
from cri.streaming.tests.guests import (
    End,
    FakeBackend,
    descriptors,
    echo,
    forward_url,
    serving,
    until,
)
from cri.streaming.tests.spdy_client import SpdyClient, spdy

PROTOCOL = "portforward.k8s.io"

Dial = Callable[[StreamingServer], AbstractAsyncContextManager[SpdyClient]]


def direct(server: StreamingServer) -> AbstractAsyncContextManager[SpdyClient]:
    return spdy(forward_url(server), PROTOCOL)


class Tunnel:
    """A WebSocket's binary messages as the reader and writer of a SPDY client.

    (The package websockets refuses this subprotocol's name: no token has a slash.)
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._socket = Connection(ConnectionType.CLIENT)

    async def read(self, most: int) -> bytes:
        found = b""
        while not found:
            data = await self._reader.read(most)
            if not data:
                return b""
            self._socket.receive_data(data)
            for event in self._socket.events():
                if isinstance(event, CloseConnection):
                    return b""
                assert isinstance(event, BytesMessage)
                found += event.data
        return found

    def write(self, data: bytes) -> None:
        self._writer.write(self._socket.send(BytesMessage(data)))

    async def drain(self) -> None:
        await self._writer.drain()

    def close(self) -> None:
        self._writer.close()

    async def wait_closed(self) -> None:
        await self._writer.wait_closed()


@asynccontextmanager
async def tunnelled(server: StreamingServer) -> AsyncIterator[SpdyClient]:
    url = urlsplit(forward_url(server))
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    lines = (
        f"GET {url.path} HTTP/1.1",
        f"Host: {url.netloc}",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==",
        "Sec-WebSocket-Protocol: SPDY/3.1+portforward.k8s.io",
    )
    writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101")
    assert b"SPDY/3.1+portforward.k8s.io" in head
    tunnel = cast("Any", Tunnel(reader, writer))
    client = SpdyClient(tunnel, tunnel)
    client.begin()
    try:
        yield client
    finally:
        await client.close()


both = pytest.mark.parametrize("dial", [direct, tunnelled])


async def pair(client: SpdyClient, port: int, request: str) -> tuple[int, int]:
    """The data stream and the error stream of a connection, opened as kubectl does."""
    headers = {"port": str(port), "requestid": request}
    errors = await client.open(streamtype="error", **headers)
    await client.send(errors, fin=True)
    return await client.open(streamtype="data", **headers), errors


@both
async def test_a_connection_and_its_end(dial: Dial) -> None:
    backend = FakeBackend()
    backend.ports[80] = echo
    async with serving(backend) as server, dial(server) as client:
        data, errors = await pair(client, 80, "0")
        await client.send(data, b"hello", fin=True)
        assert await client.finished(data) == b"hello"
        assert await client.finished(errors) == b""


@both
async def test_a_refused_connection_is_told_in_kubectls_words(dial: Dial) -> None:
    async with serving(FakeBackend()) as server, dial(server) as client:
        data, errors = await pair(client, 81, "0")
        assert await client.finished(errors) == (
            b"error forwarding port 81 to pod pod, uid : "
            b"failed to connect to localhost:81: connection refused"
        )
        assert await client.finished(data) == b""
        # Go on: the session is not over.
        _, errors = await pair(client, 81, "1")
        assert b"refused" in await client.finished(errors)


async def test_what_is_sent_to_a_refused_connection_stops_nobody() -> None:
    backend = FakeBackend()
    backend.ports[80] = echo
    async with serving(backend) as server, direct(server) as client:
        refused, errors = await pair(client, 81, "0")
        await client.finished(errors)
        await client.send(refused, bytes(8 * 1024 * 1024))
        data, _ = await pair(client, 80, "1")
        await client.send(data, b"still served", fin=True)
        assert await client.finished(data) == b"still served"


@both
async def test_large_transfers_both_ways_at_once(dial: Dial) -> None:
    backend = FakeBackend()
    payload = os.urandom(8 * 1024 * 1024)
    answer = os.urandom(9 * 1024 * 1024)
    received = bytearray()

    async def exchange(end: End) -> None:
        async def send() -> None:
            await end.write(answer)
            end.shut()

        sender = asyncio.create_task(send())
        received.extend(await end.read_all())
        await sender

    backend.ports[80] = exchange
    async with serving(backend) as server, dial(server) as client:
        data, errors = await pair(client, 80, "0")
        sender = asyncio.create_task(client.send(data, payload, fin=True))
        assert await client.finished(data) == answer
        await sender
        assert await client.finished(errors) == b""
        assert received == payload


async def test_either_side_may_end_first_and_go_on_receiving() -> None:
    backend = FakeBackend()

    async def ends_first(end: End) -> None:
        await end.write(b"all I say")
        end.shut()
        assert await end.read_all() == b"all you say"
        heard.set()

    async def ends_last(end: End) -> None:
        asked = await end.read_all()
        await end.write(b"you said " + asked)

    heard = asyncio.Event()
    backend.ports = {1: ends_first, 2: ends_last}
    async with serving(backend) as server, direct(server) as client:
        data, errors = await pair(client, 1, "0")
        assert await client.finished(data) == b"all I say"
        assert not client.streams[errors].ended
        await client.send(data, b"all you say", fin=True)
        await heard.wait()
        assert await client.finished(errors) == b""
        data, _ = await pair(client, 2, "1")
        await client.send(data, b"this", fin=True)
        assert await client.finished(data) == b"you said this"


async def test_hundreds_of_connections_at_once() -> None:
    backend = FakeBackend()
    backend.ports[80] = echo
    async with serving(backend) as server, direct(server) as client:
        pairs = [await pair(client, 80, str(number)) for number in range(300)]
        await client.until(lambda: backend.open == 300)
        for number, (data, _) in enumerate(pairs):
            await client.send(data, f"connection {number}".encode(), fin=True)
        for number, (data, errors) in enumerate(pairs):
            assert await client.finished(data) == f"connection {number}".encode()
            assert await client.finished(errors) == b""


@both
async def test_no_socket_outlives_the_client(dial: Dial) -> None:
    backend = FakeBackend()
    backend.ports[80] = echo
    async with serving(backend) as server:
        before = descriptors()
        async with dial(server) as client:
            for number in range(20):
                data, _ = await pair(client, 80, str(number))
                await client.send(data, b"x")
            await client.until(lambda: backend.open == 20)
        await until(lambda: not backend.open and descriptors() <= before)


async def test_a_client_that_leaves_while_a_connection_is_made() -> None:
    backend = FakeBackend()
    backend.ports[80] = echo
    backend.hold.clear()
    async with serving(backend) as server:
        before = descriptors()
        async with direct(server) as client:
            await pair(client, 80, "0")
        await until(lambda: descriptors() <= before)


async def test_a_connection_that_the_client_resets_is_over() -> None:
    backend = FakeBackend()
    closed = asyncio.Event()

    async def talks(end: End) -> None:
        await end.closed_by_peer()
        closed.set()

    backend.ports[80] = talks
    async with serving(backend) as server, direct(server) as client:
        data, errors = await pair(client, 80, "0")
        await client.until(lambda: bool(client.streams[data].data))
        client.connection.reset(data)
        client.flush()
        await closed.wait()
        assert await client.finished(errors) == b""


async def test_old_clients_send_no_request_id() -> None:
    backend = FakeBackend()
    backend.ports[80] = echo
    async with serving(backend) as server, direct(server) as client:
        errors = await client.open(streamtype="error", port="80")
        data = await client.open(streamtype="data", port="80")
        await client.send(data, b"old", fin=True)
        assert await client.finished(data) == b"old"
        assert await client.finished(errors) == b""


@pytest.mark.parametrize(
    "headers",
    [
        {"streamtype": "data", "port": "0"},
        {"streamtype": "data", "port": "http"},
        {"streamtype": "stdin", "port": "80"},
        {"port": "80"},
    ],
)
async def test_streams_that_make_no_sense_are_refused(headers: dict[str, str]) -> None:
    async with serving(FakeBackend()) as server, direct(server) as client:
        stream = await client.open(**headers)
        assert client.streams[stream].reset


async def test_half_a_pair_is_given_up_and_a_second_stream_of_a_kind_refused() -> None:
    async with serving(FakeBackend(), creation=0.3) as server, direct(server) as client:
        errors = await client.open(streamtype="error", port="80", requestid="1")
        second = await client.open(streamtype="error", port="80", requestid="1")
        await client.until(lambda: client.streams[second].reset)
        assert b"timed out waiting for streams" in await client.finished(errors)
        data = await client.open(streamtype="data", port="80", requestid="2")
        await client.until(lambda: client.streams[data].reset)


async def test_connections_that_are_over_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spdy_streams, "LIMITS", Limits(streams=64))
    backend = FakeBackend()
    backend.ports[80] = echo
    async with serving(backend) as server, direct(server) as client:

        async def connect(number: int) -> None:
            data, errors = await pair(client, 80, str(number))
            await client.send(data, b"x", fin=True)
            assert await client.finished(data) == b"x"
            await client.finished(errors)

        # With more streams, in all, than may be open at once.
        for first in range(0, 100, 20):
            await asyncio.gather(*(connect(number) for number in range(first, first + 20)))
        assert not client.connection.open_streams
