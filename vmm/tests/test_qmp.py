"""The monitor's client against a peer that says what the test wants."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostlib.errors import DeadlineExceeded
from vmm.qemu.qmp import MAX_MESSAGE, Qmp, QmpFailed, QmpGone

GREETING = b'{"QMP": {"version": {}, "capabilities": ["oob"]}}\r\n'


class Peer:
    """QEMU's end."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.fds: list[int] = []
        self._pending = b""

    async def say(self, data: bytes | dict[str, Any]) -> None:
        if isinstance(data, dict):
            data = json.dumps(data).encode() + b"\r\n"
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def hear(self) -> dict[str, Any]:
        """The next command; descriptors that came along are kept."""
        while b"\n" not in self._pending:
            try:
                data, fds, _, _ = socket.recv_fds(self.sock, 65536, 4)
            except BlockingIOError:
                await asyncio.sleep(0)
                continue
            assert data, "the client hung up"
            self.fds += fds
            self._pending += data
        line, self._pending = self._pending.split(b"\n", 1)
        heard: dict[str, Any] = json.loads(line)
        return heard

    async def answer(self, **members: Any) -> dict[str, Any]:
        heard = await self.hear()
        await self.say({"id": heard["id"], **members})
        return heard


@pytest.fixture
async def ends() -> AsyncIterator[tuple[Qmp, Peer]]:
    mine, other = socket.socketpair()
    peer = Peer(other)
    await peer.say(GREETING)
    qmp, _ = await asyncio.gather(Qmp.connect(mine), peer.answer(**{"return": {}}))
    yield qmp, peer
    await qmp.close()
    await qmp.close()
    other.close()


async def test_a_command_is_answered_whatever_comes_between(ends: tuple[Qmp, Peer]) -> None:
    qmp, peer = ends
    wanted = asyncio.create_task(qmp.execute("query-status", {"deep": True}))
    heard = await peer.hear()
    assert heard["execute"] == "query-status" and heard["arguments"] == {"deep": True}
    await peer.say({"event": "RESUME", "timestamp": {}})
    await peer.say({"id": heard["id"] + 1000, "return": "of nobody"})
    answer = json.dumps({"id": heard["id"], "return": {"status": "running"}}).encode()
    for byte in answer + b"\n":
        await peer.say(bytes([byte]))
    assert await wanted == {"status": "running"}


async def test_a_refusal_has_qemus_words(ends: tuple[Qmp, Peer]) -> None:
    qmp, peer = ends
    refused = {"class": "GenericError", "desc": "no such node"}
    with pytest.raises(QmpFailed, match="blockdev-del: no such node"):
        await asyncio.gather(qmp.execute("blockdev-del"), peer.answer(error=refused))
    done, _ = await asyncio.gather(qmp.execute("stop"), peer.answer(**{"return": {}}))
    assert done == {}


async def test_a_descriptor_goes_along_and_stays_the_callers(ends: tuple[Qmp, Peer]) -> None:
    qmp, peer = ends
    reader, writer = os.pipe()
    try:
        await asyncio.gather(qmp.execute("getfd", fd=writer), peer.answer(**{"return": {}}))
        os.write(peer.fds[0], b"through theirs")
        assert os.read(reader, 100) == b"through theirs"
        os.fstat(writer)
    finally:
        for fd in (reader, writer, *peer.fds):
            os.close(fd)


async def test_events_reach_those_who_listen(ends: tuple[Qmp, Peer]) -> None:
    qmp, peer = ends
    with qmp.listen("MIGRATION") as events:
        for name, status in (("MIGRATION", "setup"), ("STOP", "?"), ("MIGRATION", "completed")):
            await peer.say({"event": name, "data": {"status": status}})
        assert (await events.get())["data"] == {"status": "setup"}
        assert (await events.get())["data"] == {"status": "completed"}
    await peer.say({"event": "MIGRATION"})
    await asyncio.gather(qmp.execute("stop"), peer.answer(**{"return": {}}))
    assert events.empty()


async def test_a_flood_of_events_keeps_the_newest(ends: tuple[Qmp, Peer]) -> None:
    qmp, peer = ends
    with qmp.listen("MIGRATION") as events:
        for number in range(1000):
            await peer.say({"event": "MIGRATION", "number": number})
        await asyncio.gather(qmp.execute("stop"), peer.answer(**{"return": {}}))
        assert events.qsize() <= 256
        newest = [events.get_nowait() for _ in range(events.qsize())][-1]
        assert newest["number"] == 999


async def test_a_peer_that_hangs_up_ends_what_waits_and_what_comes(ends: tuple[Qmp, Peer]) -> None:
    qmp, peer = ends
    waiting = asyncio.create_task(qmp.execute("cont"))
    await peer.hear()
    peer.sock.close()
    with pytest.raises(QmpGone, match="cont"):
        await waiting
    with pytest.raises(QmpGone, match="stop"):
        await qmp.execute("stop")


async def test_a_command_without_an_answer_ends_by_its_time(ends: tuple[Qmp, Peer]) -> None:
    qmp, peer = ends
    with pytest.raises(DeadlineExceeded, match="cont"):
        await qmp.execute("cont", timeout=0.01)
    late = await peer.hear()
    await peer.say({"id": late["id"], "return": "late"})
    done, _ = await asyncio.gather(qmp.execute("stop"), peer.answer(**{"return": 1}))
    assert done == 1


@pytest.mark.parametrize("said", [b"", b"[]\n", b"{]\n", b"\xff\xfe\n", b"x" * (MAX_MESSAGE + 2)])
async def test_what_is_no_greeting_ends_the_connection(said: bytes) -> None:
    mine, other = socket.socketpair()
    with other:
        peer = Peer(other)
        connecting = asyncio.create_task(Qmp.connect(mine))
        try:
            await peer.say(said)
        except ConnectionError:
            pass
        other.shutdown(socket.SHUT_WR)
        with pytest.raises(QmpGone, match="did not come up"):
            await connecting
        assert mine.fileno() == -1


async def test_a_silent_monitor_is_given_up() -> None:
    mine, other = socket.socketpair()
    with other, pytest.raises(DeadlineExceeded, match="monitor did not answer"):
        await Qmp.connect(mine, timeout=0.01)
    assert mine.fileno() == -1


PIECES = st.one_of(
    st.binary(max_size=60),
    st.sampled_from([b"\n", b"{}\n", b'{"id":2}\n', b'{"id":[]}\n', b"[" * 5000 + b"\n"]),
)


@given(st.lists(PIECES))
def test_no_bytes_break_it(pieces: list[bytes]) -> None:
    """What QEMU sends is untrusted once a guest has taken it over: a command ends, or the link."""

    async def run() -> None:
        mine, other = socket.socketpair()
        with other:
            peer = Peer(other)
            await peer.say(GREETING)
            qmp, _ = await asyncio.gather(Qmp.connect(mine), peer.answer(**{"return": {}}))
            command = asyncio.create_task(qmp.execute("cont"))
            await peer.hear()
            for piece in pieces:
                await peer.say(piece)
            other.shutdown(socket.SHUT_WR)
            await asyncio.wait([command], timeout=20)
            error = command.exception()
            assert error is None or isinstance(error, QmpGone | QmpFailed)
            await qmp.close()

    asyncio.run(run())
