from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from cli import remote
from cli.tests.streaming_fixtures import container, environment, thaw
from cri.api import v1_pb2
from cri.streaming.tests.guests import Guest, cat
from e2e.harness.terminal import Terminal
from hostlib.errors import NotFound


async def both(guest: Guest) -> int:
    await guest.stdout.write(b"out\n")
    await guest.stderr.write(b"err\n")
    return 3


async def forever(guest: Guest) -> int:
    await guest.stdout.write(b"up\r\n")
    await asyncio.get_running_loop().create_future()
    return 0


async def terminal_of(guest: Guest) -> int:
    """Tells sizes, and ends with the first key as its exit code."""
    seen = 0
    await guest.stdout.write(b"ready\r\n")
    key = asyncio.create_task(guest.stdin.read())
    while not key.done():
        resized = asyncio.create_task(guest.resized.wait())
        await asyncio.wait([key, resized], return_when=asyncio.FIRST_COMPLETED)
        resized.cancel()
        guest.resized.clear()
        for width, height in guest.sizes[seen:]:
            await guest.stdout.write(b"%dx%d\r\n" % (width, height))
        seen = len(guest.sizes)
    return key.result()[0]


async def test_output_comes_on_its_stream_and_the_exit_code_is_passed_on(tmp_path: Path) -> None:
    async with thaw(tmp_path) as it:
        it.backend.program = both
        done = await it.run("exec", "c", "sh", "-c", "x")
        assert (done.code, done.out, done.err) == (3, b"out\n", "err\n")
        assert list(it.runtime.requests["Exec"].cmd) == ["sh", "-c", "x"]
        assert not it.runtime.requests["Exec"].stdin


async def test_stdin_is_passed_on_to_its_end(tmp_path: Path) -> None:
    payload = os.urandom(3_000_000)
    async with thaw(tmp_path) as it:
        it.backend.program = cat
        done = await it.run("exec", "-i", "c", "cat", given=payload)
        assert (done.code, done.err) == (0, "")
        assert done.out == payload


async def test_a_file_and_nothing_are_stdin_too(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"content")
    async with thaw(tmp_path) as it:
        it.backend.program = cat
        for path, expected in ((str(file), b"content"), (os.devnull, b"")):
            given = os.open(path, os.O_RDONLY)
            process = await it.start("exec", "-i", "c", "cat", stdin=given)
            os.close(given)
            assert await process.communicate() == (expected, b"")
        closed = await asyncio.create_subprocess_exec(
            "sh", "-c", 'exec "$0" "$@" <&-', *it.argv("exec", "-i", "c", "cat"), env=environment()
        )
        assert await closed.wait() == 0


async def test_a_command_that_does_not_read_its_stdin_ends(tmp_path: Path) -> None:
    async def deaf(guest: Guest) -> int:
        return 7

    async with thaw(tmp_path) as it:
        it.backend.program = deaf
        assert (await it.run("exec", "-i", "c", "true")).code == 7


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ('exec: "x": executable file not found in $PATH', 127),
        ("exec /x: no such file or directory", 127),
        ('exec: "/etc": permission denied', 126),
        ("the machine stopped", 1),
    ],
)
async def test_a_command_that_cannot_be_run(tmp_path: Path, message: str, code: int) -> None:
    async with thaw(tmp_path) as it:
        it.backend.fail = NotFound(message, hint="do this")
        done = await it.run("exec", "c", "x")
        assert (done.code, done.out) == (code, b"")
        assert done.err == f"error: {message}\nhint: do this\n"


async def test_with_a_time_limit_the_codes_are_the_same(tmp_path: Path) -> None:
    async with thaw(tmp_path) as it:
        it.runtime.answers["ExecSync"] = NotFound("exec /x: no such file or directory")
        assert (await it.run("exec", "--timeout", "5", "c", "/x")).code == 127
        it.runtime.answers["ExecSync"] = v1_pb2.ExecSyncResponse(stdout=b"out", exit_code=2)
        done = await it.run("exec", "--timeout", "5", "c", "x")
        assert (done.code, done.out) == (2, b"out")
        assert (await it.run("exec", "-i", "--timeout", "5", "c", "x")).code == 1


async def test_nobody_reads_the_output(tmp_path: Path) -> None:
    broken = asyncio.Event()

    async def endless(guest: Guest) -> int:
        await guest.stdout.closed_by_peer()
        broken.set()
        return 0

    async with thaw(tmp_path) as it:
        it.backend.program = endless
        reading, writing = os.pipe()
        process = await asyncio.create_subprocess_exec(
            *it.argv("exec", "c", "yes"), stdout=writing, env=environment()
        )
        os.close(writing)
        await asyncio.to_thread(os.read, reading, 10)
        os.close(reading)
        assert await process.wait() == 128 + signal.SIGPIPE
        await broken.wait()


async def test_a_terminal_with_sizes_keys_and_exit_code(tmp_path: Path) -> None:
    async with thaw(tmp_path) as it:
        it.backend.program = terminal_of
        with Terminal(it.argv("exec", "-it", "c", "sh"), environment(), width=91, height=31) as tty:
            await asyncio.to_thread(tty.see, "ready")
            await asyncio.to_thread(tty.see, "91x31")
            assert not tty.restored
            tty.resize(101, 41)
            await asyncio.to_thread(tty.see, "101x41")
            # Ctrl-C is a key like all others.
            tty.type("\x03")
            assert await asyncio.to_thread(tty.end) == 3
            assert tty.restored


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT])
async def test_the_terminal_is_restored_after_a_signal(
    tmp_path: Path, number: signal.Signals
) -> None:
    async with thaw(tmp_path) as it:
        it.backend.program = forever
        with Terminal(it.argv("exec", "-it", "c", "sh"), environment()) as tty:
            await asyncio.to_thread(tty.see, "up")
            assert not tty.restored
            tty.process.send_signal(number)
            assert await asyncio.to_thread(tty.end) == 128 + number
            assert tty.restored


async def test_the_terminal_is_restored_when_the_server_is_gone(tmp_path: Path) -> None:
    async with thaw(tmp_path) as it:
        it.backend.program = forever
        with Terminal(it.argv("exec", "-it", "c", "sh"), environment()) as tty:
            await asyncio.to_thread(tty.see, "up")
            await it.server.stop()
            await asyncio.to_thread(tty.see, "error: the connection to the streaming server")
            assert await asyncio.to_thread(tty.end) == 1
            assert tty.restored


async def test_attach_shows_passes_on_and_ends_with_the_container(tmp_path: Path) -> None:
    async with thaw(tmp_path) as it:
        it.backend.program = cat
        it.runtime.answers["ContainerStatus"] = container(v1_pb2.CONTAINER_EXITED, 5, stdin=True)
        done = await it.run("attach", "c", given=b"hello")
        assert (done.code, done.out) == (5, b"hello")


async def test_attach_gives_stdin_to_a_container_that_has_it_alone(tmp_path: Path) -> None:
    async with thaw(tmp_path) as it:
        it.backend.program = both
        for config in ({}, {"stdin": True}):
            it.runtime.answers["ContainerStatus"] = container(v1_pb2.CONTAINER_EXITED, 0, **config)
            done = await it.run("attach", *(["--no-stdin"] if config else []), "c")
            assert (done.code, done.out, done.err) == (0, b"out\n", "err\n")
            assert not it.runtime.requests["Attach"].stdin


async def test_detaching_leaves_the_container(tmp_path: Path) -> None:
    async with thaw(tmp_path) as it:
        it.backend.program = terminal_of
        it.runtime.answers["ContainerStatus"] = container(
            v1_pb2.CONTAINER_RUNNING, stdin=True, tty=True
        )
        with Terminal(it.argv("attach", "c"), environment()) as tty:
            await asyncio.to_thread(tty.see, "ready")
            tty.type("\x10\x11")
            assert await asyncio.to_thread(tty.end) == 0
            assert tty.restored


@pytest.mark.parametrize("detach", [True, False])
async def test_run_in_a_terminal(tmp_path: Path, detach: bool) -> None:
    async with thaw(tmp_path) as it:
        started = asyncio.Event()
        loop = asyncio.get_running_loop()

        async def waiting(guest: Guest) -> int:
            await started.wait()
            return await terminal_of(guest)

        def start(_: v1_pb2.StartContainerRequest) -> v1_pb2.StartContainerResponse:
            # Whoever starts it has joined before.
            assert len(it.backend.tasks) == 1
            loop.call_soon_threadsafe(started.set)
            return v1_pb2.StartContainerResponse()

        it.backend.program = waiting
        image = v1_pb2.ImageStatusResponse(image=v1_pb2.Image(id="i"))
        it.runtime.answers |= {
            "ImageStatus": image,
            "RunPodSandbox": v1_pb2.RunPodSandboxResponse(pod_sandbox_id="p"),
            "CreateContainer": v1_pb2.CreateContainerResponse(container_id="c"),
            "StartContainer": start,
            "ContainerStatus": container(v1_pb2.CONTAINER_EXITED, 9, stdin=True, tty=True),
        }
        with Terminal(it.argv("run", "-it", "image", "sh"), environment()) as tty:
            await asyncio.to_thread(tty.see, "ready")
            tty.type("\x10\x11" if detach else "q")
            if detach:
                await asyncio.to_thread(tty.see, "detached; `thaw attach c`")
            assert await asyncio.to_thread(tty.end) == (0 if detach else 9)
            assert tty.restored
        made = it.runtime.requests["CreateContainer"].config
        assert (made.tty, made.stdin, made.stdin_once) == (True, True, False)
        assert ("RemovePodSandbox" in it.runtime.asked) is not detach


def test_the_words_of_all_runtimes_give_the_shells_codes() -> None:
    assert remote.start_code("exec failed: permission denied") == 126
    assert remote.start_code("permission denied") == 1
