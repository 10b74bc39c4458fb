"""Exec, attach and port-forward over WebSocket, with the client of the package websockets."""

from __future__ import annotations

import asyncio
import base64
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import cast

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from cri.streaming.tests.guests import (
    ALL,
    IN_OUT,
    OUT,
    TERMINAL,
    End,
    FakeBackend,
    Guest,
    attach_url,
    cat,
    descriptors,
    echo,
    exec_url,
    forward_url,
    serving,
    until,
)
from hostlib.errors import NotFound

STDIN, STDOUT, STDERR, ERROR, RESIZE = range(5)
V4, V5 = "v4.channel.k8s.io", "v5.channel.k8s.io"


@dataclass
class Channels:
    """A client that keeps what comes by channel."""

    socket: ClientConnection
    base64: bool = False
    first: tuple[int, bytes] | None = None
    data: dict[int, bytearray] = field(default_factory=dict)
    code: int | None = None

    async def send(self, channel: int, data: bytes) -> None:
        if self.base64:
            await self.socket.send(chr(48 + channel) + base64.b64encode(data).decode())
        else:
            await self.socket.send(bytes((channel,)) + data)

    async def receive(self) -> None:
        message = await self.socket.recv()
        if self.base64:
            assert isinstance(message, str)
            channel, data = ord(message[0]) - 48, base64.b64decode(message[1:], validate=True)
        else:
            assert isinstance(message, bytes)
            channel, data = message[0], message[1:]
        if self.first is None:
            self.first = channel, data
        self.data.setdefault(channel, bytearray()).extend(data)

    async def receive_all(self) -> dict[int, bytes]:
        """Until the server closes."""
        try:
            while True:
                await self.receive()
        except ConnectionClosed as closed:
            assert closed.rcvd is not None
            self.code = closed.rcvd.code
        return {channel: bytes(data) for channel, data in self.data.items()}


@asynccontextmanager
async def channels(url: str, protocol: str = V4) -> AsyncIterator[Channels]:
    offered = [cast("Subprotocol", protocol)] if protocol else None
    async with connect(
        url.replace("http", "ws", 1), subprotocols=offered, max_size=None, proxy=None
    ) as socket:
        assert (socket.subprotocol or "") == protocol
        yield Channels(socket, base64="base64" in protocol)


@pytest.mark.parametrize(
    ("protocol", "json_status"),
    [
        ("", False),
        ("channel.k8s.io", False),
        ("base64.channel.k8s.io", False),
        ("v4.channel.k8s.io", True),
        ("v4.base64.channel.k8s.io", True),
        ("v5.channel.k8s.io", True),
    ],
)
async def test_every_protocol_carries_a_command(protocol: str, json_status: bool) -> None:
    backend = FakeBackend()

    async def program(guest: Guest) -> int:
        question = await guest.stdin.read()
        await guest.stdout.write(b"you said " + question)
        await guest.stderr.write(bytes(range(256)))
        return 2

    backend.program = program
    async with serving(backend) as server, channels(exec_url(server, ALL), protocol) as client:
        await client.send(STDIN, b"yes")
        found = await client.receive_all()
        assert client.first == (STDOUT, b"")
        assert found[STDOUT] == b"you said yes"
        assert found[STDERR] == bytes(range(256))
        if json_status:
            status = json.loads(found[ERROR])
            assert status["details"]["causes"] == [{"reason": "ExitCode", "message": "2"}]
        else:
            assert found[ERROR] == b"command terminated with non-zero exit code: 2"
        assert client.code == 1000


async def test_v5_ends_stdin() -> None:
    backend = FakeBackend()
    backend.program = cat
    payload = os.urandom(3 * 1024 * 1024)
    async with serving(backend) as server, channels(exec_url(server, IN_OUT), V5) as client:
        receiver = asyncio.create_task(client.receive_all())
        for at in range(0, len(payload), 100_000):
            await client.send(STDIN, payload[at : at + 100_000])
        await client.socket.send(bytes((255, STDIN)))
        found = await receiver
        assert found[STDOUT] == payload
        assert json.loads(found[ERROR])["status"] == "Success"


@pytest.mark.parametrize("protocol", ["v4.channel.k8s.io", "v4.base64.channel.k8s.io"])
async def test_large_output(protocol: str) -> None:
    backend = FakeBackend()
    payload = os.urandom(12 * 1024 * 1024)

    async def program(guest: Guest) -> int:
        await guest.stdout.write(payload)
        return 0

    backend.program = program
    async with serving(backend) as server, channels(exec_url(server, OUT), protocol) as client:
        assert (await client.receive_all())[STDOUT] == payload


async def test_fragments_and_pings() -> None:
    backend = FakeBackend()
    backend.program = cat

    async def fragments() -> AsyncIterator[bytes]:
        yield bytes((STDIN,))
        yield b"in "
        yield b"pieces"

    async with serving(backend) as server, channels(exec_url(server, IN_OUT), V5) as client:
        await client.socket.send(fragments())
        await (await client.socket.ping())
        await client.socket.send(bytes((255, STDIN)))
        assert (await client.receive_all())[STDOUT] == b"in pieces"


async def test_a_terminal_is_resized() -> None:
    backend = FakeBackend()

    async def program(guest: Guest) -> int:
        await guest.resized.wait()
        await guest.stdout.write(repr(guest.sizes).encode())
        return 0

    backend.program = program
    async with serving(backend) as server, channels(exec_url(server, TERMINAL)) as client:
        await client.send(RESIZE, b'{"Width":132,"Height":50}')
        assert (await client.receive_all())[STDOUT] == b"[(132, 50)]"


async def test_what_the_client_may_not_write_is_dropped() -> None:
    backend = FakeBackend()

    async def program(guest: Guest) -> int:
        await guest.stdout.write(b"out")
        return 0

    backend.program = program
    async with serving(backend) as server, channels(exec_url(server, OUT)) as client:
        for channel in (STDIN, STDOUT, ERROR, RESIZE, 9):
            await client.send(channel, b"x")
        assert (await client.receive_all())[STDOUT] == b"out"


async def test_a_missing_command_is_told_before_the_close() -> None:
    backend = FakeBackend()
    backend.fail = NotFound("executable file not found in $PATH")
    async with serving(backend) as server, channels(exec_url(server, OUT)) as client:
        status = json.loads((await client.receive_all())[ERROR])
        assert "executable file not found in $PATH" in status["message"]
        assert client.code == 1000


async def test_a_client_that_leaves_closes_the_commands_streams() -> None:
    backend = FakeBackend()
    ended = asyncio.Event()

    async def program(guest: Guest) -> int:
        assert await guest.stdin.read_all() == b""
        await guest.stdout.closed_by_peer()
        ended.set()
        return 0

    backend.program = program
    async with serving(backend) as server:
        async with channels(exec_url(server, IN_OUT)):
            pass
        await ended.wait()


async def test_a_client_that_does_not_read_stops_its_command() -> None:
    backend = FakeBackend()
    written = 0

    async def flood(guest: Guest) -> int:
        nonlocal written
        for _ in range(512):
            await guest.stdout.write(bytes(65536))
            written += 65536
        return 0

    backend.program = flood
    async with serving(backend) as server, channels(exec_url(server, OUT)) as client:
        client.socket.transport.pause_reading()
        backend.program = cat
        async with channels(exec_url(server, IN_OUT), V5) as other:
            await other.send(STDIN, b"quick")
            await other.socket.send(bytes((255, STDIN)))
            assert (await other.receive_all())[STDOUT] == b"quick"
        assert written < 24 * 1024 * 1024
        client.socket.transport.resume_reading()
        assert len((await client.receive_all())[STDOUT]) == 512 * 65536


async def test_bad_base64_ends_the_connection_with_1002() -> None:
    backend = FakeBackend()
    backend.program = cat
    url_protocol = "v4.base64.channel.k8s.io"
    async with (
        serving(backend) as server,
        channels(exec_url(server, IN_OUT), url_protocol) as client,
    ):
        await client.socket.send("0!!!!")
        await client.receive_all()
        assert client.code == 1002


async def test_an_attachment_ends_with_its_output() -> None:
    backend = FakeBackend()

    async def program(guest: Guest) -> int:
        await guest.stdout.write(b"the container's last words")
        return 0

    backend.program = program
    async with serving(backend) as server, channels(attach_url(server, OUT)) as client:
        found = await client.receive_all()
        assert found[STDOUT] == b"the container's last words"
        assert json.loads(found[ERROR])["status"] == "Success"


async def test_no_common_protocol_is_refused() -> None:
    async with serving(FakeBackend()) as server:
        with pytest.raises(InvalidStatus) as caught:
            async with channels(exec_url(server, OUT), "v9.channel.k8s.io"):
                pass
        assert caught.value.response.status_code == 403


# --- port-forward


@pytest.mark.parametrize("protocol", ["", "v4.channel.k8s.io", "v4.base64.channel.k8s.io"])
async def test_two_ports_are_forwarded(protocol: str) -> None:
    backend = FakeBackend()

    async def shout(end: End) -> None:
        await end.write((await end.read()).upper())

    backend.ports = {80: echo, 0x1234: shout}
    async with (
        serving(backend) as server,
        channels(forward_url(server, 80, 0x1234), protocol) as client,
    ):
        await client.send(0, b"one")
        await client.send(2, b"two")
        await until_data(client, 0, b"\x50\x00one")
        await until_data(client, 2, b"\x34\x12TWO")
        assert bytes(client.data[1] + client.data[3]) == b"\x50\x00\x34\x12"


async def until_data(client: Channels, channel: int, wanted: bytes) -> None:
    while bytes(client.data.get(channel, b"")) != wanted:
        await client.receive()


async def test_a_refused_port_is_told_and_the_connection_closed() -> None:
    async with serving(FakeBackend()) as server, channels(forward_url(server, 81)) as client:
        found = await client.receive_all()
        assert found[1][2:].startswith(b"error forwarding port 81 to pod pod, uid : ")
        assert client.code == 1000


async def test_ports_come_from_the_query_where_the_request_has_none() -> None:
    backend = FakeBackend()
    backend.ports[80] = echo
    async with serving(backend) as server:
        async with channels(forward_url(server) + "?port=80") as client:
            await client.send(0, b"x")
            await until_data(client, 0, b"\x50\x00x")
        for query in ("", "?port=http"):
            with pytest.raises(InvalidStatus) as caught:
                async with channels(forward_url(server) + query):
                    pass
            assert caught.value.response.status_code == 400


async def test_no_socket_outlives_the_client() -> None:
    backend = FakeBackend()
    backend.ports[80] = echo
    async with serving(backend) as server:
        before = descriptors()
        async with channels(forward_url(server, *[80] * 20)) as client:
            for _ in range(40):
                await client.receive()
            await until(lambda: backend.open == 20)
        await until(lambda: not backend.open and descriptors() <= before)
