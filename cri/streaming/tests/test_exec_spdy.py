"""Exec over SPDY, with a backend of socket pairs."""

from __future__ import annotations

import asyncio
import json
import os

import pytest

from cri.streaming import server as server_module
from cri.streaming import sessions
from cri.streaming.remote_command import Outcome, decode_outcome
from cri.streaming.spdy import events
from cri.streaming.spdy.limits import Limits
from cri.streaming.spdy_streams import LIMITS
from cri.streaming.tests.guests import (
    ALL,
    IN_OUT,
    OUT,
    TERMINAL,
    FakeBackend,
    Guest,
    cat,
    exec_url,
    serving,
    until,
)
from cri.streaming.tests.spdy_client import Rejected, spdy
from hostlib.errors import NotFound, Unavailable

V4 = "v4.channel.k8s.io"


async def test_output_then_the_exit_code() -> None:
    backend = FakeBackend()

    async def program(guest: Guest) -> int:
        assert await guest.stdin.read_all() == b"question"
        await guest.stdout.write(b"answer")
        await guest.stderr.write(b"complaint")
        return 3

    backend.program = program
    async with serving(backend) as server, spdy(exec_url(server, ALL)) as client:
        ids = await client.command("stdin", "stdout", "stderr")
        await client.send(ids["stdin"], b"question", fin=True)
        assert await client.finished(ids["stdout"]) == b"answer"
        assert await client.finished(ids["stderr"]) == b"complaint"
        status = await client.finished(ids["error"])
        assert decode_outcome(status, json_status=True) == Outcome(3)
        # Go's clients stop reading at a GOAWAY: it must not come before they have left.
        assert not any(isinstance(event, events.GoAwayReceived) for event in client.heard)


@pytest.mark.parametrize("windows", [False, True])
async def test_large_streams_both_ways(windows: bool) -> None:
    backend = FakeBackend()
    backend.program = cat
    payload = os.urandom(20 * 1024 * 1024)
    async with (
        serving(backend) as server,
        spdy(exec_url(server, IN_OUT), windows=windows) as client,
    ):
        ids = await client.command("stdin", "stdout")
        sender = asyncio.create_task(client.send(ids["stdin"], payload, fin=True))
        assert await client.finished(ids["stdout"]) == payload
        assert decode_outcome(await client.finished(ids["error"]), json_status=True) == Outcome(0)
        await sender


@pytest.mark.parametrize(
    ("protocol", "text"),
    [
        ("v4.channel.k8s.io", None),
        ("v3.channel.k8s.io", b"command terminated with non-zero exit code: 7"),
        ("v2.channel.k8s.io", b"command terminated with non-zero exit code: 7"),
    ],
)
async def test_versions_tell_failure_in_their_way(protocol: str, text: bytes | None) -> None:
    backend = FakeBackend()

    async def program(guest: Guest) -> int:
        return 7

    backend.program = program
    async with serving(backend) as server, spdy(exec_url(server, OUT), protocol) as client:
        assert client.protocol == protocol
        ids = await client.command("stdout")
        status = await client.finished(ids["error"])
        if text is None:
            assert json.loads(status)["details"]["causes"] == [
                {"reason": "ExitCode", "message": "7"}
            ]
        else:
            assert status == text


async def test_v1_ends_stdin_and_resets_the_error_stream_at_once() -> None:
    backend = FakeBackend()
    backend.program = cat
    async with (
        serving(backend) as server,
        spdy(exec_url(server, IN_OUT), "channel.k8s.io") as client,
    ):
        ids = await client.command("stdin", "stdout")
        await client.until(lambda: client.streams[ids["error"]].reset)
        await client.until(lambda: client.streams[ids["stdin"]].ended)
        await client.send(ids["stdin"], b"still read", fin=True)
        assert await client.finished(ids["stdout"]) == b"still read"


async def test_the_first_known_protocol_is_taken_and_none_is_refused() -> None:
    backend = FakeBackend()
    backend.program = cat
    async with serving(backend) as server:
        async with spdy(
            exec_url(server, OUT), "v9.channel.k8s.io", "v3.channel.k8s.io", V4
        ) as client:
            assert client.protocol == "v3.channel.k8s.io"
        with pytest.raises(Rejected) as caught:
            async with spdy(exec_url(server, OUT), "v9.channel.k8s.io"):
                pass
        assert caught.value.status == 403
        assert "X-Accepted-Stream-Protocol-Versions: v4.channel.k8s.io" in caught.value.head


async def test_a_terminal_is_resized_to_the_newest_size() -> None:
    backend = FakeBackend()

    async def program(guest: Guest) -> int:
        while guest.sizes[-1:] != [(120, 40)]:
            guest.resized.clear()
            await guest.resized.wait()
        return 0

    backend.program = program
    async with serving(backend) as server, spdy(exec_url(server, TERMINAL)) as client:
        ids = await client.command("stdin", "stdout", "resize")
        sizes = [(80, 24), (0, 7), (100, 30), (120, 40)]
        for width, height in sizes:
            text = json.dumps({"Width": width, "Height": height}).encode()
            await client.send(ids["resize"], text)
        assert decode_outcome(await client.finished(ids["error"]), json_status=True) == Outcome(0)


async def test_a_status_waits_for_the_window_of_a_slow_reader(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Whatever was not said before the server goes away is not said at all.
    monkeypatch.setattr(sessions, "LINGER", 0.0)
    backend = FakeBackend()
    window = 65536
    # What is left of the connection's window does not hold the status.
    output = window - 10

    async def program(guest: Guest) -> int:
        await guest.stdout.write(bytes(output))
        return 4

    backend.program = program
    limits = Limits(stream_window=window, session_window=window)
    async with (
        serving(backend) as server,
        spdy(exec_url(server, OUT), windows=True, limits=limits) as client,
    ):
        client.acknowledging = False
        ids = await client.command("stdout")
        assert len(await client.finished(ids["stdout"])) == output
        client.connection.acknowledge(ids["stdout"], output)
        client.flush()
        status = await client.finished(ids["error"])
        assert decode_outcome(status, json_status=True) == Outcome(4)


async def test_a_malformed_size_does_no_harm() -> None:
    backend = FakeBackend()
    backend.program = cat
    async with serving(backend) as server, spdy(exec_url(server, TERMINAL)) as client:
        ids = await client.command("stdin", "stdout", "resize")
        await client.send(ids["resize"], b"no size}{")
        await client.send(ids["stdin"], b"x", fin=True)
        assert await client.finished(ids["stdout"]) == b"x"


async def test_a_command_that_cannot_be_started_is_a_failure_with_its_reason() -> None:
    backend = FakeBackend()
    backend.fail = NotFound('exec: "nosuch": executable file not found in $PATH')
    async with serving(backend) as server, spdy(exec_url(server, ALL)) as client:
        ids = await client.command("stdin", "stdout", "stderr")
        assert await client.finished(ids["stdout"]) == b""
        assert await client.finished(ids["stderr"]) == b""
        status = json.loads(await client.finished(ids["error"]))
        assert status["status"] == "Failure"
        assert status["reason"] == "InternalError"
        assert status["message"].endswith('exec: "nosuch": executable file not found in $PATH')


async def test_a_shim_that_dies_is_told() -> None:
    backend = FakeBackend()

    async def program(guest: Guest) -> int:
        raise Unavailable("the shim closed the connection")

    backend.program = program
    async with serving(backend) as server, spdy(exec_url(server, OUT)) as client:
        ids = await client.command("stdout")
        status = json.loads(await client.finished(ids["error"]))
        assert "the shim closed the connection" in status["message"]


async def test_a_client_that_leaves_closes_the_commands_streams() -> None:
    backend = FakeBackend()
    started, ended = asyncio.Event(), asyncio.Event()

    async def program(guest: Guest) -> int:
        started.set()
        assert await guest.stdin.read_all() == b""
        await guest.stdout.closed_by_peer()
        ended.set()
        return 0

    backend.program = program
    async with serving(backend) as server:
        async with spdy(exec_url(server, IN_OUT)) as client:
            await client.command("stdin", "stdout")
            await started.wait()
        await ended.wait()


async def test_a_client_that_leaves_behind_unread_input_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server_module, "SWEEP", 0.1)
    backend = FakeBackend()
    ended = asyncio.Event()

    async def deaf(guest: Guest) -> int:
        await until(guest.stdout.hung_up)
        ended.set()
        return 0

    backend.program = deaf
    async with serving(backend) as server, spdy(exec_url(server, IN_OUT)) as client:
        ids = await client.command("stdin", "stdout")
        # A little more than the server takes in: then it reads no more, and sees no end either.
        await client.send(ids["stdin"], bytes(LIMITS.unacknowledged + 512 * 1024))
        await client.close()
        await ended.wait()


async def test_a_stream_that_is_reset_is_closed_for_the_command_alone() -> None:
    backend = FakeBackend()

    async def program(guest: Guest) -> int:
        await guest.stdout.closed_by_peer()
        await guest.stderr.write(b"stdout is gone")
        return 0

    backend.program = program
    async with serving(backend) as server, spdy(exec_url(server, ALL)) as client:
        ids = await client.command("stdin", "stdout", "stderr")
        client.connection.reset(ids["stdout"])
        client.flush()
        assert await client.finished(ids["stderr"]) == b"stdout is gone"
        assert decode_outcome(await client.finished(ids["error"]), json_status=True) == Outcome(0)


async def test_a_command_that_closes_its_stdin_is_not_waited_for() -> None:
    backend = FakeBackend()

    async def program(guest: Guest) -> int:
        assert await guest.stdin.read(5) == b"first"
        guest.stdin.close()
        await guest.stdout.write(b"done")
        return 0

    backend.program = program
    async with serving(backend) as server, spdy(exec_url(server, IN_OUT)) as client:
        ids = await client.command("stdin", "stdout")
        # Far more than all buffers hold: it must be dropped, or it would stop the connection.
        await client.send(ids["stdin"], b"first" + bytes(16 * 1024 * 1024), fin=True)
        assert await client.finished(ids["stdout"]) == b"done"
        assert decode_outcome(await client.finished(ids["error"]), json_status=True) == Outcome(0)


async def test_a_client_that_does_not_read_stops_its_command_and_nobody_else() -> None:
    backend = FakeBackend()
    written = 0

    async def flood(guest: Guest) -> int:
        nonlocal written
        for _ in range(1024):
            await guest.stdout.write(bytes(65536))
            written += 65536
        return 0

    backend.program = flood
    async with serving(backend) as server, spdy(exec_url(server, OUT)) as slow:
        ids = await slow.command("stdout")
        slow.reading.clear()
        backend.program = cat
        for _ in range(20):
            async with spdy(exec_url(server, IN_OUT)) as client:
                others = await client.command("stdin", "stdout")
                await client.send(others["stdin"], b"quick", fin=True)
                assert await client.finished(others["stdout"]) == b"quick"
        # Sockets' buffers, and ours, on the way; not 64 MiB.
        assert written < 24 * 1024 * 1024
        slow.reading.set()
        assert len(await slow.finished(ids["stdout"])) == 1024 * 65536


async def test_streams_that_do_not_come_end_the_connection() -> None:
    backend = FakeBackend()
    backend.program = cat
    async with serving(backend, creation=0.2) as server, spdy(exec_url(server, IN_OUT)) as client:
        await client.open(streamtype="error")
        await client.until_closed()


async def test_unknown_and_second_streams_are_ignored() -> None:
    backend = FakeBackend()
    backend.program = cat
    async with serving(backend) as server, spdy(exec_url(server, IN_OUT)) as client:
        for name in ("nonsense", "stderr", "error", "error"):
            await client.send(await client.open(streamtype=name), b"whatever")
        ids = {name: await client.open(streamtype=name) for name in ("stdin", "stdout")}
        await client.send(ids["stdin"], b"x", fin=True)
        assert await client.finished(ids["stdout"]) == b"x"


async def test_an_idle_connection_is_closed_and_a_busy_one_is_not() -> None:
    backend = FakeBackend()
    backend.program = cat
    async with (
        serving(backend, idle=2.0) as server,
        spdy(exec_url(server, IN_OUT)) as busy,
        spdy(exec_url(server, IN_OUT)) as idle,
    ):
        await idle.command("stdin", "stdout")
        await busy.command("stdin", "stdout")
        waiting = asyncio.create_task(idle.until_closed())
        while not waiting.done():
            busy.connection.ping()
            busy.flush()
            await asyncio.sleep(0.05)
        assert not busy.closed


async def test_a_client_that_breaks_the_protocol_is_told_and_closed() -> None:
    backend = FakeBackend()
    ended = asyncio.Event()

    async def program(guest: Guest) -> int:
        await guest.stdin.read_all()
        ended.set()
        return 0

    backend.program = program
    async with serving(backend) as server, spdy(exec_url(server, IN_OUT)) as client:
        await client.command("stdin", "stdout")
        # A SYN_STREAM for an even id.
        client.writer.write(bytes.fromhex("80030001 0000000a 00000002 00000000 0000"))
        await client.until_closed()
        assert any(isinstance(event, events.GoAwayReceived) for event in client.heard)
        await ended.wait()
