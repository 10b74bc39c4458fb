from __future__ import annotations

import asyncio
import os
import pty
import signal
import termios
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli import interrupts, terminal
from cli.tests.streaming_fixtures import environment, thaw
from cri.streaming.tests.guests import Guest

keys = st.lists(st.sampled_from([b"\x10", b"\x11", b"a", b"\x03"]), max_size=12).map(b"".join)


@given(st.lists(keys, max_size=6))
def test_the_detach_keys_are_found_however_they_come(pieces: list[bytes]) -> None:
    typed = b"".join(pieces)
    detach = terminal.DetachKeys()
    passed = b""
    for piece in pieces:
        passed += detach.feed(piece)
        if detach.pressed:
            break
    before, found, _ = typed.partition(b"\x10\x11")
    assert detach.pressed == bool(found)
    held = not found and typed.endswith(b"\x10")
    assert passed + (b"\x10" if held else b"") == before


def test_a_terminal_is_raw_for_a_while_also_when_that_fails() -> None:
    ours, theirs = pty.openpty()
    try:
        before = termios.tcgetattr(theirs)
        with pytest.raises(ZeroDivisionError), terminal.raw(theirs):
            local = termios.tcgetattr(theirs)[3]
            assert not local & (termios.ECHO | termios.ICANON | termios.ISIG)
            raise ZeroDivisionError
        assert termios.tcgetattr(theirs) == before
    finally:
        os.close(ours)
        os.close(theirs)


def test_what_is_no_terminal_is_left_alone(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file, terminal.raw(file.fileno()):
        pass


async def test_a_terminal_that_hung_up_is_at_its_end() -> None:
    ours, theirs = pty.openpty()
    os.close(ours)
    assert await terminal.read(theirs) == b""
    os.close(theirs)


@pytest.fixture
def handler() -> Iterator[Callable[[int, Any], Any]]:
    """The handler of all those signals, whatever it was."""

    def one(number: int, frame: Any) -> None:
        raise AssertionError("this one is not to be called")

    old = {number: signal.signal(number, one) for number in interrupts.ENDING}
    yield one
    for number, before in old.items():
        signal.signal(number, before)


@pytest.mark.parametrize("number", interrupts.ENDING)
def test_a_signal_cancels_and_the_handlers_are_back(
    number: signal.Signals, handler: Callable[[int, Any], Any]
) -> None:
    cleaned = []

    async def work() -> None:
        os.kill(os.getpid(), number)
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            cleaned.append(True)

    with pytest.raises(interrupts.Interrupted) as caught:
        interrupts.run(work())
    assert caught.value.number == number
    assert cleaned
    assert signal.getsignal(number) is handler


def test_what_is_ignored_stays_so(handler: Callable[[int, Any], Any]) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)

    async def work() -> str:
        os.kill(os.getpid(), signal.SIGHUP)
        return "done"

    assert interrupts.run(work()) == "done"
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


async def test_a_signal_ends_it_while_nobody_reads_its_output(tmp_path: Path) -> None:
    async def endless(guest: Guest) -> int:
        await guest.stdout.closed_by_peer()
        return 0

    async with thaw(tmp_path) as it:
        it.backend.program = endless
        reading, writing = os.pipe()
        process = await asyncio.create_subprocess_exec(
            *it.argv("exec", "c", "yes"), stdout=writing, env=environment()
        )
        os.close(writing)
        await asyncio.to_thread(os.read, reading, 1)
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 128 + signal.SIGTERM
        os.close(reading)
