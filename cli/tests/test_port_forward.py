from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cli import forwarding
from cli.tests.streaming_fixtures import Thaw, thaw
from cli.verb_port_forward import parse
from cri.streaming.tests.guests import End, echo, until
from hostlib.errors import FailedPrecondition, InvalidArgument


@contextlib.asynccontextmanager
async def forwarding_to(
    it: Thaw, *ports: str
) -> AsyncIterator[tuple[asyncio.subprocess.Process, dict[str, int]]]:
    """The command, and its local ports by address; it ends by Ctrl-C."""
    process = await it.start("port-forward", "p", *ports)
    assert process.stdout is not None
    try:
        local: dict[str, int] = {}
        while len(local) < len(forwarding.ADDRESSES):
            line = (await process.stdout.readline()).decode()
            match = re.fullmatch(r"Forwarding from \[?(.*?)\]?:([0-9]+) -> [0-9]+\n", line)
            assert match, line
            local[match[1]] = int(match[2])
        yield process, local
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGINT)
        await process.communicate()


@pytest.mark.parametrize(
    ("text", "port"),
    [("80", (80, 80)), ("8080:80", (8080, 80)), (":80", (0, 80)), ("0:80", (0, 80))],
)
def test_ports(text: str, port: tuple[int, int]) -> None:
    assert parse(text) == forwarding.Port(*port)


@pytest.mark.parametrize("text", ["", ":", "80:", "x", "0", "65536", "65536:1", "1:2:3", "-1", "١"])
def test_what_is_no_port(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse(text)


def test_a_port_that_is_taken_is_refused_with_a_hint() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        with pytest.raises(FailedPrecondition, match=f"127.0.0.1 port {number}") as caught:
            forwarding.listen(forwarding.Port(number, 80))
    assert caught.value.hint is not None
    assert ":80" in caught.value.hint


async def test_both_families_carry_whole_payloads_with_half_closes(tmp_path: Path) -> None:
    payload = os.urandom(2_000_000)

    async def counts(end: End) -> None:
        # The answer comes after the end of the question.
        await end.write(b"%d" % len(await end.read_all()))

    async with thaw(tmp_path) as it:
        it.backend.ports = {7: echo, 8: counts}
        async with forwarding_to(it, ":7") as (_, local):
            assert len(set(local.values())) == 1
            for address, port in local.items():
                reader, writer = await asyncio.open_connection(address, port)
                writer.write(payload)
                writer.write_eof()
                assert await reader.read() == payload
                writer.close()
                await writer.wait_closed()
        async with forwarding_to(it, ":8") as (_, local):
            reader, writer = await asyncio.open_connection("127.0.0.1", local["127.0.0.1"])
            writer.write(payload)
            writer.write_eof()
            assert await reader.read() == b"2000000"
            writer.close()


async def test_connections_that_nobody_reads_hold_up_no_other(tmp_path: Path) -> None:
    async def floods(end: End) -> None:
        await end.closed_by_peer()

    async with thaw(tmp_path) as it:
        it.backend.ports = {7: echo, 9: floods}
        async with forwarding_to(it, ":9") as (_, slow), forwarding_to(it, ":7") as (_, fast):
            stalled = [
                await asyncio.open_connection("127.0.0.1", slow["127.0.0.1"], limit=1024)
                for _ in range(60)
            ]
            await until(lambda: it.backend.open == 60)
            await stalled[0][0].readexactly(4_000_000)
            _, extra = await asyncio.open_connection("127.0.0.1", slow["127.0.0.1"])
            await until(lambda: it.backend.open == 61)
            for port in (fast["127.0.0.1"],):
                opened = [await asyncio.open_connection("127.0.0.1", port) for _ in range(100)]
                for number, (_, writer) in enumerate(opened):
                    writer.write(b"%d\n" % number)
                for number, (reader, writer) in enumerate(opened):
                    assert await reader.readline() == b"%d\n" % number
                    writer.close()
            for _, writer in stalled:
                writer.close()
            extra.close()
            # Nothing of a client that left stays.
            await until(lambda: it.backend.open == 0)


async def test_a_refused_port_is_said_in_plain_words_and_others_go_on(tmp_path: Path) -> None:
    async with thaw(tmp_path) as it:
        it.backend.ports = {7: echo}
        async with forwarding_to(it, ":81") as (process, local):
            for _ in range(2):
                reader, writer = await asyncio.open_connection("127.0.0.1", local["127.0.0.1"])
                assert await reader.read() == b""
                writer.close()
                assert process.stderr is not None
                said = (await process.stderr.readline()).decode()
                assert said == (
                    f"error: port {local['127.0.0.1']} -> 81: "
                    "failed to connect to localhost:81: connection refused\n"
                )


async def test_ctrl_c_ends_it_and_a_lost_server_too(tmp_path: Path) -> None:
    async with thaw(tmp_path) as it:
        async with forwarding_to(it, ":7") as (process, _):
            process.send_signal(signal.SIGINT)
            assert await process.wait() == 128 + signal.SIGINT
        async with forwarding_to(it, ":7") as (process, _):
            await it.server.stop()
            assert await process.wait() == 1
            assert process.stderr is not None
            assert b"error: the connection to the streaming server was lost" in (
                await process.stderr.read()
            )
