"""What the port answers to those who are no clients of Kubernetes, odd or hostile."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from urllib.parse import urlsplit

import httpx
import pytest

from cri.streaming.link import MAX_UNSENT, MOST_READ
from cri.streaming.server import MAX_UNASKED, StreamingServer
from cri.streaming.tests.guests import (
    IN_OUT,
    OUT,
    FakeBackend,
    Guest,
    cat,
    exec_url,
    forward_url,
    serving,
    until,
)
from cri.streaming.tests.spdy_client import Rejected, spdy, upgrade

UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "SPDY/3.1",
    "X-Stream-Protocol-Version": "v4.channel.k8s.io",
}


async def talk(server: StreamingServer, data: bytes) -> bytes:
    """All that the server answers to these bytes until it closes."""
    url = urlsplit(server.base)
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    writer.write(data)
    answer = await reader.read()
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return answer


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_url_is_good_once_by_either_method(method: str) -> None:
    backend = FakeBackend()
    backend.program = cat
    async with serving(backend) as server:
        url = exec_url(server, OUT)
        async with spdy(url, method=method) as client:
            await client.command("stdout")
        with pytest.raises(Rejected) as caught:
            async with spdy(url, method=method):
                pass
        assert caught.value.status == 404


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("POST", "/exec/", 404),
        ("GET", "/exec/" + "A" * 44, 404),
        ("POST", "/metrics", 404),
        ("PUT", "/exec/" + "A" * 44, 405),
        ("HEAD", "/exec/" + "A" * 44, 405),
    ],
)
async def test_what_is_not_there(method: str, path: str, status: int) -> None:
    async with serving(FakeBackend()) as server, httpx.AsyncClient() as client:
        answer = await client.request(method, server.base + path, headers=UPGRADE)
        assert answer.status_code == status


async def test_requests_without_an_upgrade() -> None:
    async with serving(FakeBackend()) as server, httpx.AsyncClient() as client:
        answer = await client.get(exec_url(server, OUT))
        assert (answer.status_code, "X-Stream-Protocol-Version" in answer.text) == (400, True)
        for name in ("Connection", "Upgrade"):
            headers = UPGRADE | {name: "close" if name == "Connection" else "h2c"}
            answer = await client.post(exec_url(server, OUT), headers=headers)
            assert (answer.status_code, "missing upgrade" in answer.text) == (400, True)


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"Sec-WebSocket-Version": "8"}, 426),
        ({"Sec-WebSocket-Key": "short"}, 400),
        ({"Sec-WebSocket-Key": "!!"}, 400),
    ],
)
async def test_websocket_handshakes_that_are_wrong(changes: dict[str, str], status: int) -> None:
    headers = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "MDEyMzQ1Njc4OWFiY2RlZg==",
    } | changes
    async with serving(FakeBackend()) as server, httpx.AsyncClient() as client:
        assert (await client.get(exec_url(server, OUT), headers=headers)).status_code == status
        url = forward_url(server, 80)
        assert (await client.post(url, headers=headers)).status_code == 405


async def test_a_body_is_dropped_and_a_large_one_refused() -> None:
    async with serving(FakeBackend()) as server, httpx.AsyncClient() as client:
        url = server.base + "/exec/none"
        assert (await client.post(url, content=b"x" * 1000)).status_code == 404
        assert (await client.post(url, content=b"x" * 100_000)).status_code == 413


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\n\r\n", b"400"),
        (b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 70_000 + b"\r\n\r\n", b"431"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 20_000 + b"\r\n\r\n", b"431"),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", b"431"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", b"400"),
        (b"GET //[ HTTP/1.1\r\nHost: x\r\n\r\n", b"400"),
    ],
)
async def test_requests_that_are_malformed_or_too_large(data: bytes, status: bytes) -> None:
    async with serving(FakeBackend()) as server:
        answer = await talk(server, data)
        assert answer.split()[1] == status


async def test_a_slow_request_is_given_up() -> None:
    async with serving(FakeBackend(), creation=0.2) as server:
        assert await talk(server, b"GET /exec/x HTTP/1.1\r\nHost: ") == b""


async def test_clients_that_ask_for_nothing_cannot_shut_others_out() -> None:
    backend = FakeBackend()
    backend.program = cat
    async with serving(backend) as server:
        url = urlsplit(server.base)
        silent = [
            await asyncio.open_connection(url.hostname, url.port) for _ in range(MAX_UNASKED + 8)
        ]
        async with spdy(exec_url(server, OUT)) as client:
            await client.command("stdout")
        # The oldest were closed.
        assert await silent[0][0].read() == b""
        for _, writer in silent:
            writer.close()


async def test_clients_beyond_the_limit_are_told() -> None:
    backend = FakeBackend()
    backend.program = cat
    async with serving(backend, connections=2) as server:
        urls = [exec_url(server, IN_OUT) for _ in range(3)]
        async with spdy(urls[0]) as one, spdy(urls[1]) as two:
            await one.command("stdin", "stdout")
            await two.command("stdin", "stdout")
            with pytest.raises(Rejected) as caught:
                async with spdy(urls[2]):
                    pass
            assert (caught.value.status, "Retry-After" in caught.value.head) == (503, True)
            await one.close()
            await two.close()
        # The URL was not used up by that.
        while True:
            with contextlib.suppress(Rejected):
                async with spdy(urls[2]) as client:
                    await client.command("stdin", "stdout")
                    break


async def test_streams_may_come_with_the_request() -> None:
    backend = FakeBackend()

    async def program(guest: Guest) -> int:
        await guest.stdout.write(b"answer")
        return 0

    backend.program = program
    async with serving(backend) as server:
        url = exec_url(server, OUT)
        async with spdy(forward_url(server), "portforward.k8s.io") as other:
            for name in ("error", "stdout"):
                other.connection.open_stream({"streamtype": name})
            frames = b"".join(other.connection.data_to_send())
        parts = urlsplit(url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        writer.write(upgrade(url, ["v4.channel.k8s.io"]) + frames)
        found = b""
        while b'"status":"Success"' not in found:
            found += await reader.read(65536)
        assert b"answer" in found
        writer.close()


async def test_tiny_frames_do_not_hold_up_others() -> None:
    backend = FakeBackend()
    backend.program = cat
    async with (
        serving(backend) as server,
        spdy(exec_url(server, IN_OUT)) as hostile,
        spdy(exec_url(server, IN_OUT)) as client,
    ):
        ids = await hostile.command("stdin", "stdout")
        # Four megabytes of frames of one byte, in which only the loop's turns let others in.
        frame = bytes(4) + b"\x00\x00\x00\x01" + b"x"
        frame = ids["stdin"].to_bytes(4, "big") + frame[4:]
        hostile.writer.write(frame * 400_000)
        others = await client.command("stdin", "stdout")
        await client.send(others["stdin"], b"meanwhile", fin=True)
        assert await client.finished(others["stdout"]) == b"meanwhile"
        assert len(hostile.streams[ids["stdout"]].data) < 400_000


async def test_pings_without_end_do_not_pile_up_answers() -> None:
    backend = FakeBackend()
    backend.program = cat
    async with serving(backend) as server, spdy(exec_url(server, IN_OUT)) as client:
        await client.command("stdin", "stdout")
        client.reading.clear()
        ping = bytes.fromhex("8003000600000004 00000001")
        (link,) = server.links
        # Small buffers in the kernel, so that little fills them.
        client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        link.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        client.writer.write(ping * 400_000)
        await until(lambda: not link.reading)
        assert link.unsent <= MAX_UNSENT + MOST_READ


async def test_the_server_listens_on_ipv6_and_wildcards_are_named_by_the_loopback() -> None:
    backend = FakeBackend()
    backend.program = cat
    for address, host in (("::1", "[::1]"), ("::", "[::1]"), ("0.0.0.0", "127.0.0.1")):
        async with serving(backend, address=address) as server:
            assert server.base.startswith(f"http://{host}:")
            async with spdy(exec_url(server, OUT)) as client:
                await client.command("stdout")
