from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostlib.errors import FailedPrecondition, Internal, InvalidArgument, NotFound, Unavailable
from shim import protocol
from shim.client import ShimClient
from shim.protocol import Closed, Connection, Message, ProtocolError, Wire
from shim.server import Answer, Server, choose_version

Pair = tuple[Connection, Connection]


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    left, right = socket.socketpair()
    ends = Connection(left), Connection(right)
    yield ends
    for end in ends:
        end.close()


async def test_header_body_and_descriptors_arrive(pair: Pair) -> None:
    reader, writer = os.pipe()
    await pair[0].send({"id": 1}, b"body", [writer])
    os.close(writer)
    message = await pair[1].receive()
    assert message is not None
    assert (message.header, message.body) == ({"id": 1}, b"body")
    assert not os.get_inheritable(message.fds[0])
    os.write(message.fds[0], b"x")
    assert os.read(reader, 1) == b"x"
    message.close()
    os.close(reader)


async def test_a_large_body_crosses_in_both_directions_at_once(pair: Pair) -> None:
    body = os.urandom(4 * 1024 * 1024)
    _, _, one, two = await asyncio.gather(
        pair[0].send({"id": 1}, body),
        pair[1].send({"id": 2}, body),
        pair[0].receive(),
        pair[1].receive(),
    )
    assert one is not None
    assert two is not None
    assert one.body == two.body == body


async def test_messages_sent_together_stay_apart(pair: Pair) -> None:
    fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(3)]
    await asyncio.gather(
        *(pair[0].send({"id": number}, b"%d" % number, [fd]) for number, fd in enumerate(fds))
    )
    protocol.close_all(fds)
    for number in range(3):
        message = await pair[1].receive()
        assert message is not None
        assert (message.header["id"], message.body, len(message.fds)) == (number, b"%d" % number, 1)
        message.close()


async def test_the_end_of_the_stream_is_none(pair: Pair) -> None:
    pair[0].close()
    assert await pair[1].receive() is None


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<II", protocol.MAX_HEADER + 1, 0),
        struct.pack("<II", 2, protocol.MAX_BODY + 1),
        struct.pack("<II", 2, 0) + b"[]",
        struct.pack("<II", 2, 0) + b"{x",
        struct.pack("<II", 9, 0) + b'{"fds":1}',
        struct.pack("<II", 4000, 0) + b"[" * 4000,
    ],
)
async def test_a_peer_that_breaks_the_protocol_is_dropped(data: bytes) -> None:
    left, right = socket.socketpair()
    connection = Connection(right)
    left.sendall(data)
    with pytest.raises(ProtocolError):
        await connection.receive()
    assert connection.is_closed
    left.close()


async def test_descriptors_that_were_not_announced_are_closed_and_refused() -> None:
    left, right = socket.socketpair()
    connection = Connection(right)
    reader, writer = os.pipe()
    left.sendmsg([struct.pack("<II", 2, 0) + b"{}"], protocol.rights([writer]))
    os.close(writer)
    with pytest.raises(ProtocolError, match="announced"):
        await connection.receive()
    assert os.read(reader, 1) == b""
    os.close(reader)
    left.close()


async def test_a_message_cut_short_is_an_error() -> None:
    left, right = socket.socketpair()
    connection = Connection(right)
    left.sendall(struct.pack("<II", 100, 0) + b"{")
    left.close()
    with pytest.raises(Closed):
        await connection.receive()


async def test_close_wakes_a_receiver(pair: Pair) -> None:
    task = asyncio.create_task(pair[0].receive())
    await asyncio.sleep(0)
    pair[0].close()
    with pytest.raises(Closed):
        await task


def test_too_large_a_message_is_not_sent() -> None:
    with pytest.raises(InvalidArgument, match="too large"):
        protocol.encode({"x": "y" * protocol.MAX_HEADER})


@given(st.binary(max_size=200))
def test_no_bytes_make_a_header_but_an_object(data: bytes) -> None:
    try:
        header = protocol.decode_header(data, [])
    except ProtocolError:
        return
    assert isinstance(json.loads(data), dict)
    assert isinstance(header, dict)


def test_blocking_ends_understand_each_other() -> None:
    left, right = socket.socketpair()
    fd = os.open("/dev/null", os.O_RDONLY)
    protocol.send_blocking(left, {"id": 7}, b"b", [fd])
    message = protocol.receive_blocking(right)
    assert message is not None
    assert (message.header, message.body, len(message.fds)) == ({"id": 7}, b"b", 1)
    message.close()
    os.close(fd)
    left.close()
    assert protocol.receive_blocking(right) is None
    right.close()


def test_versions() -> None:
    assert choose_version({"protocol": [1, 2]}) == {"protocol": 1}
    with pytest.raises(FailedPrecondition):
        choose_version({"protocol": [99]})
    with pytest.raises(InvalidArgument):
        choose_version({})


async def test_client_and_server() -> None:
    gate = asyncio.Event()
    events: list[Wire] = []

    async def echo(params: Wire, message: Message) -> Answer:
        return Answer(params, message.body)

    async def slow(_params: Wire, _message: Message) -> Answer:
        await gate.wait()
        return Answer()

    async def missing(_params: Wire, _message: Message) -> Answer:
        raise NotFound("no such thing", hint="look elsewhere")

    async def broken(_params: Wire, _message: Message) -> Answer:
        raise ValueError("a defect")

    server = Server(
        {"echo": echo, "slow": slow, "missing": missing, "broken": broken},
        lambda: {"event": "ready", "n": 1},
    )
    ours, theirs = socket.socketpair()
    server.adopt(theirs)
    client = await ShimClient.from_socket(ours, on_event=events.append)
    assert await client.wait_ready(5) == {"event": "ready", "n": 1}
    waiting = asyncio.create_task(client.call("slow"))
    reply = await client.call("echo", {"a": 1}, body=b"payload")
    assert (reply.result, reply.body) == ({"a": 1}, b"payload")
    with pytest.raises(NotFound, match="look elsewhere"):
        await client.call("missing")
    with pytest.raises(Internal, match="ValueError: a defect"):
        await client.call("broken")
    with pytest.raises(InvalidArgument, match="no method"):
        await client.call("nonsense")
    server.broadcast({"event": "pod.stopped"})
    gate.set()
    await waiting
    await client.call("echo")
    assert [event["event"] for event in events] == ["ready", "pod.stopped"]
    gate.clear()
    waiting = asyncio.create_task(client.call("slow"))
    await asyncio.sleep(0)
    await server.close()
    with pytest.raises(Unavailable):
        await waiting
    assert client.closed.done()
    await client.close()


async def test_a_server_is_deserted_once_the_last_one_has_gone() -> None:
    server = Server({}, lambda: None)
    await server.deserted(0)
    pairs = [socket.socketpair() for _ in range(2)]
    for served, caller in pairs:
        caller.setblocking(False)
        server.adopt(served)
    deserted = asyncio.create_task(server.deserted(0))
    for _, caller in pairs:
        assert not deserted.done()
        caller.shutdown(socket.SHUT_WR)
        assert await asyncio.get_running_loop().sock_recv(caller, 1) == b""
        caller.close()
    await deserted
    await server.close()
