import asyncio
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from hostlib.errors import DeadlineExceeded, NotFound
from vmm import channel
from vmm.agent.client import AgentClient, AgentGone
from vmm.agent.codec import (
    INITIAL_CREDIT,
    AgentProtocolError,
    Decoder,
    Flag,
    Frame,
    Type,
    encode,
    encode_message,
)
from vmm.agent.stream import StreamReset


class Peer:
    """The guest's end, played by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.decoder = Decoder()
        self.frames: list[Frame] = []
        self.nonce = 0

    async def next(self) -> Frame:
        while not self.frames:
            self.frames += self.decoder.feed(await self.reader.read(65536))
        return self.frames.pop(0)

    async def request(self) -> tuple[int, dict[str, Any]]:
        frame = await self.next()
        assert frame.type is Type.REQUEST
        return frame.stream, json.loads(frame.payload)

    def send(self, kind: Type, stream: int, body: dict[str, Any]) -> None:
        self.writer.write(encode_message(self.nonce, kind, stream, body))

    def raw(self, kind: Type, stream: int, payload: bytes = b"", flags: Flag = Flag.NONE) -> None:
        self.writer.write(encode(Frame(self.nonce, kind, stream, payload, flags)))

    async def greet(self) -> None:
        hello = await self.next()
        assert (hello.type, hello.payload) == (Type.HELLO, b'{"protocol":1}')
        self.nonce = hello.nonce
        self.send(Type.HELLO, 0, {"protocol": 1, "agent": "t", "build": "b"})


@pytest.fixture(params=[channel.SERIAL, channel.VSOCK])
async def peer_socket(
    request: pytest.FixtureRequest,
) -> AsyncIterator[tuple[Peer, socket.socket]]:
    """The guest's end, and the host's as either channel gives it."""
    mine, theirs = socket.socketpair()

    async def dial() -> socket.socket:
        return mine

    serial = request.param == channel.SERIAL
    opened = channel.connected(mine) if serial else channel.dialled(70000, dial)
    ours = await opened(5)
    reader, writer = await asyncio.open_unix_connection(sock=theirs)
    yield Peer(reader, writer), ours
    writer.transport.abort()
    await asyncio.sleep(0)
    ours.close()


@pytest.fixture
async def session(
    peer_socket: tuple[Peer, socket.socket],
) -> AsyncIterator[tuple[Peer, AgentClient]]:
    peer, sock = peer_socket
    client, _ = await asyncio.gather(AgentClient.open(sock), peer.greet())
    yield peer, client
    await client.close()


Session = tuple[Peer, AgentClient]


async def test_garbage_and_frames_of_an_old_session_are_passed_over(
    peer_socket: tuple[Peer, socket.socket],
) -> None:
    peer, sock = peer_socket
    old = encode_message(1, Type.EVENT, 0, {"event": "old"})
    peer.writer.write(b"half a THAW frame" + old + old[:20])
    client, _ = await asyncio.gather(AgentClient.open(sock, nonce=77), peer.greet())
    assert client.nonce == 77
    assert client.hello["agent"] == "t"
    await client.close()


async def test_hello_without_answer(peer_socket: tuple[Peer, socket.socket]) -> None:
    with pytest.raises(DeadlineExceeded):
        await AgentClient.open(peer_socket[1], timeout=0.05)


async def test_hello_of_another_protocol(peer_socket: tuple[Peer, socket.socket]) -> None:
    peer, sock = peer_socket

    async def answer() -> None:
        peer.nonce = (await peer.next()).nonce
        peer.send(Type.HELLO, 0, {"protocol": 9})

    with pytest.raises(AgentProtocolError, match="protocol 9"):
        await asyncio.gather(AgentClient.open(sock), answer())


async def test_answers_in_any_order(session: Session) -> None:
    peer, client = session
    first = asyncio.create_task(client.request("a", {"n": 1}))
    second = asyncio.create_task(client.request("b"))
    one, two = await peer.request(), await peer.request()
    assert one[1] == {"method": "a", "params": {"n": 1}}
    peer.send(Type.RESPONSE, two[0], {"result": {"x": 2}})
    assert await second == {"x": 2}
    peer.send(Type.RESPONSE, one[0], {"error": {"code": "NOT_FOUND", "message": "no /bin/x"}})
    with pytest.raises(NotFound, match="no /bin/x"):
        await first


async def test_a_late_answer_is_no_error(session: Session) -> None:
    peer, client = session
    with pytest.raises(DeadlineExceeded):
        await client.request("slow", timeout=0.05)
    number, _ = await peer.request()
    peer.send(Type.RESPONSE, number, {"result": {}})
    again = asyncio.create_task(client.request("ping"))
    number, _ = await peer.request()
    peer.send(Type.RESPONSE, number, {"result": {}})
    assert await again == {}


async def test_events_before_and_after_the_callback(session: Session) -> None:
    peer, client = session
    peer.send(Type.EVENT, 0, {"event": "early"})
    await asyncio.sleep(0.01)
    seen: list[str] = []
    came = asyncio.Event()

    def callback(event: dict[str, Any]) -> None:
        seen.append(event["event"])
        if event["event"] == "late":
            came.set()

    client.on_event(callback)
    peer.send(Type.EVENT, 0, {"event": "late", "pad": "x" * 200_000})
    await came.wait()
    assert seen == ["early", "late"]


async def test_stream_both_ways_with_credit(session: Session) -> None:
    peer, client = session
    stream = client.open_stream()
    data = bytes(range(256)) * 2048
    writing = asyncio.create_task(stream.write(data))
    got = b""
    while len(got) < INITIAL_CREDIT:
        got += (await peer.next()).payload
    assert len(got) == INITIAL_CREDIT
    await asyncio.sleep(0.01)
    assert not writing.done()
    peer.raw(Type.CREDIT, stream.id, len(data).to_bytes(4, "little"))
    while len(got) < len(data):
        got += (await peer.next()).payload
    await writing
    assert got == data
    stream.close_write()
    assert (await peer.next()).flags is Flag.FIN
    peer.raw(Type.DATA, stream.id, b"x" * 65536)
    peer.raw(Type.DATA, stream.id, b"end", Flag.FIN)
    back = b""
    while piece := await stream.read():
        back += piece
    assert back == b"x" * 65536 + b"end"


async def test_credit_returns_as_data_is_consumed(session: Session) -> None:
    peer, client = session
    stream = client.open_stream()
    total, limit = 0, INITIAL_CREDIT
    for _ in range(4):
        peer.raw(Type.DATA, stream.id, bytes(65536))
        total += 65536
    while total:
        total -= len(await stream.read())
    frame = await peer.next()
    assert frame.type is Type.CREDIT
    assert int.from_bytes(frame.payload, "little") <= limit


async def test_a_slow_reader_stalls_no_other(session: Session) -> None:
    peer, client = session
    slow, quick = client.open_stream(), client.open_stream()
    for _ in range(4):
        peer.raw(Type.DATA, slow.id, bytes(65536))
    peer.raw(Type.DATA, quick.id, b"now")
    assert await quick.read() == b"now"


@pytest.mark.parametrize(
    "attack",
    [
        lambda peer, number: peer.raw(Type.DATA, 99, b"x"),
        lambda peer, number: [peer.raw(Type.DATA, number, bytes(65536)) for _ in range(5)],
        lambda peer, number: peer.raw(Type.DATA, number, b""),
        lambda peer, number: peer.raw(Type.CREDIT, number, b"abc"),
        lambda peer, number: peer.raw(Type.CREDIT, number, b"\xff\xff\xff\xff"),
        lambda peer, number: peer.send(Type.RESPONSE, 5, {"result": {}}),
        lambda peer, number: peer.send(Type.REQUEST, 5, {}),
        lambda peer, number: peer.send(Type.HELLO, 0, {"protocol": 1}),
        lambda peer, number: peer.raw(Type.EVENT, 0, b"nonsense"),
        lambda peer, number: [peer.send(Type.EVENT, 0, {"event": "e"}) for _ in range(300)],
    ],
)
async def test_a_hostile_guest_ends_the_session(session: Session, attack: Any) -> None:
    peer, client = session
    stream = client.open_stream()
    attack(peer, stream.id)
    assert isinstance(await client.closed, AgentProtocolError)
    with pytest.raises(AgentProtocolError):
        await stream.read()
    with pytest.raises(AgentProtocolError):
        await client.request("ping")


@pytest.mark.parametrize("payload", [b"nonsense", b"{}", b"[]", b'{"result":1}'])
async def test_an_answer_that_is_none_is_not_waited_for(session: Session, payload: bytes) -> None:
    peer, client = session
    asked = asyncio.create_task(client.request("ping"))
    number, _ = await peer.request()
    peer.raw(Type.RESPONSE, number, payload)
    with pytest.raises(AgentProtocolError):
        await asked
    assert isinstance(client.closed.result(), AgentProtocolError)


async def test_resets(session: Session) -> None:
    peer, client = session
    mine, theirs = client.open_stream(), client.open_stream()
    mine.reset()
    assert (await peer.next()).type is Type.RESET
    peer.raw(Type.DATA, mine.id, b"still under way")
    peer.raw(Type.RESET, theirs.id)
    with pytest.raises(StreamReset):
        await theirs.read()
    peer.raw(Type.CREDIT, theirs.id, b"\1\0\0\0")
    await asyncio.sleep(0.01)
    assert not client.closed.done()


async def test_the_guest_goes_away(session: Session) -> None:
    peer, client = session
    stream = client.open_stream()
    waiting = [asyncio.create_task(client.request("ping")), asyncio.create_task(stream.read())]
    await peer.request()
    peer.writer.transport.abort()
    for task in waiting:
        with pytest.raises(AgentGone):
            await task
    assert isinstance(client.closed.result(), AgentGone)
