"""Processes in a container besides its own: exec_sync collects their output, an open exec has
streams of its own."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

from hostlib.errors import (
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    ThawError,
)
from hostlib.tasks import Tasks
from shim import relay
from shim.layers import Machine
from shim.relay import Hangups, Outward, break_off, inward
from shim.server import Answer
from shim.streams import DRAIN_TIMEOUT, Capture, drain

KILL_WAIT: Final = 5.0
"""Seconds that a call which is given up waits for its process group to be reported as ended."""

MAX_UNCLAIMED: Final = 256
"""Exit codes that are kept for those who ask later."""

MAX_OPEN: Final = 512
"""Open execs of one pod, at a time."""

Wire = dict[str, Any]


class Execs:
    """The processes that were started in a pod's containers, by the agent's id; fed by its events.

    Output ends with the last process that holds it, or 5 s after the end of the one that was
    started: a child that lives on and keeps it open holds up nobody.
    """

    def __init__(self, hangups: Hangups) -> None:
        self._hangups = hangups
        self._waiting: dict[str, asyncio.Future[int]] = {}
        self._early: dict[str, int] = {}
        self._open: dict[str, asyncio.Task[int]] = {}
        self._ended: dict[str, asyncio.Task[int]] = {}
        self._tasks = Tasks()

    def on_exit(self, event: Wire) -> None:
        """The agent's event `process.exit`; it may come before the answer that names the exec."""
        name, code = str(event.get("exec")), event.get("exit_code")
        code = code if isinstance(code, int) and 0 <= code <= 255 else 255
        future = self._waiting.get(name)
        if future is None:
            # The oldest goes: it belongs to an exec that was given up.
            self._early[name] = code
            if len(self._early) > MAX_UNCLAIMED:
                del self._early[next(iter(self._early))]
        elif not future.done():
            future.set_result(code)

    def fail(self, error: ThawError) -> None:
        """The VM ended: so did every exec."""
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(error)
                # Nobody may be waiting.
                future.exception()

    async def run(self, vm: Machine, container: str, process: Wire, timeout: float) -> Answer:
        """Run `process` in `container`; `timeout` in seconds, 0 for none.

        Returns when the process has ended and its output too. Raises what the agent answers
        (`NotFound`, `PermissionDenied`), and `DeadlineExceeded` after killing the process group.
        One that a slow guest has not started by then is killed once it has.
        """
        if timeout < 0:
            raise InvalidArgument("a time-out below 0")
        streams = {name: vm.agent.open_stream() for name in ("stdout", "stderr")}
        captures = [Capture(), Capture()]
        readers: list[asyncio.Task[None]] = []
        name = ""
        # Whoever waits no more for its start, the guest carries it out.
        starting = asyncio.create_task(
            self._start(vm, container, process, streams), name=f"exec {_first(process)}"
        )
        try:
            async with asyncio.timeout(timeout or None):
                name, exited = await asyncio.shield(starting)
                readers = [
                    asyncio.create_task(capture.run(stream), name=f"exec {name}")
                    for capture, stream in zip(captures, streams.values(), strict=True)
                ]
                code = await asyncio.shield(exited)
        except (TimeoutError, asyncio.CancelledError) as error:
            name = ""
            killing = self._tasks.start(self._kill(vm, starting), f"end of {starting.get_name()}")
            await asyncio.wait([killing], timeout=KILL_WAIT)
            if isinstance(error, asyncio.CancelledError):
                raise
            raise DeadlineExceeded(
                f"command {_first(process)!r} timed out after {timeout:g} s and was killed"
            ) from error
        else:
            await drain(readers)
        finally:
            self._waiting.pop(name, None)
            for reader in readers:
                reader.cancel()
            for stream in streams.values():
                break_off(stream)
        out, err = (bytes(capture.data) for capture in captures)
        return Answer({"exit_code": code, "stdout_bytes": len(out)}, out + err)

    async def open(
        self,
        vm: Machine,
        container: str,
        process: Wire,
        sockets: Mapping[str, socket.socket],
        *,
        terminal: bool,
    ) -> str:
        """Start `process` with `sockets` as its stdin, stdout, stderr, those that there are; its
        name for `wait` and `resize`. The sockets are ours from now on.

        Raises what the agent answers, and `ResourceExhausted`.
        """
        try:
            if terminal and "stderr" in sockets:
                raise InvalidArgument("a terminal has no stderr of its own")
            if len(self._open) >= MAX_OPEN:
                raise ResourceExhausted(f"{MAX_OPEN} execs are open in this pod")
            streams = {name: vm.agent.open_stream() for name in sockets}
            try:
                name, exited = await self._start(vm, container, process, streams, terminal=terminal)
            except BaseException:
                for stream in streams.values():
                    break_off(stream)
                raise
        except BaseException:
            for sock in sockets.values():
                sock.close()
            raise
        work = self._relay(name, exited, streams, sockets)
        self._open[name] = self._tasks.start(work, f"exec {name}")
        return name

    async def _relay(
        self,
        name: str,
        exited: asyncio.Future[int],
        streams: Mapping[str, Any],
        sockets: Mapping[str, socket.socket],
    ) -> int:
        inputs: list[asyncio.Task[None]] = []
        outputs: dict[asyncio.Task[None], Outward] = {}
        for kind, sock in sockets.items():
            stream = streams[kind]
            if kind == "stdin":
                inputs.append(asyncio.create_task(inward(sock, stream)))
            else:
                self._hangups.watch(sock, partial(break_off, stream))
                pump = Outward(stream, sock)
                outputs[asyncio.create_task(pump.run())] = pump
        try:
            code = await asyncio.shield(exited)
            await relay.drain(outputs, DRAIN_TIMEOUT)
            return code
        finally:
            self._waiting.pop(name, None)
            await _cancel([*outputs, *inputs])
            for sock in sockets.values():
                self._hangups.forget(sock)
                sock.close()
            if (task := self._open.pop(name, None)) is not None:
                self._ended[name] = task
                if len(self._ended) > MAX_UNCLAIMED:
                    del self._ended[next(iter(self._ended))]

    async def wait(self, name: str) -> int:
        """The exit code of an open exec, when it and its output have ended.

        Raises `NotFound` for one that was asked for before, and what ended the VM where it ends
        first.
        """
        task = self._open.get(name) or self._ended.get(name)
        if task is None:
            raise NotFound(f"there is no exec {name[:20]}")
        try:
            return await asyncio.shield(task)
        finally:
            self._ended.pop(name, None)

    async def resize(self, vm: Machine, name: str, width: int, height: int) -> None:
        """Set the size of an exec's terminal, in characters."""
        await vm.agent.request("process.resize", {"exec": name, "width": width, "height": height})

    async def close(self) -> None:
        """End the background work; the VM must have ended."""
        await self._tasks.close()

    async def _start(
        self,
        vm: Machine,
        container: str,
        process: Wire,
        streams: Mapping[str, Any],
        *,
        terminal: bool = False,
    ) -> tuple[str, asyncio.Future[int]]:
        numbers = {
            name: streams[name].id if name in streams else 0
            for name in ("stdin", "stdout", "stderr")
        }
        started = await vm.agent.request(
            "process.exec",
            {
                "container": container,
                "process": process,
                "streams": numbers,
                "terminal": terminal,
            },
        )
        name = str(started.get("exec"))
        return name, self._expect(name)

    def _expect(self, name: str) -> asyncio.Future[int]:
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting[name] = future
        if name in self._early:
            future.set_result(self._early.pop(name))
        return future

    async def _kill(
        self, vm: Machine, starting: asyncio.Task[tuple[str, asyncio.Future[int]]]
    ) -> None:
        """Kill what was to be started, as soon as it has been; returns when it has ended."""
        with contextlib.suppress(ThawError, TimeoutError):
            name, exited = await starting
            try:
                await vm.agent.request(
                    "process.kill", {"exec": name, "signal": int(signal.SIGKILL), "group": True}
                )
                async with asyncio.timeout(KILL_WAIT):
                    await asyncio.shield(exited)
            finally:
                self._waiting.pop(name, None)


async def _cancel(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)


def _first(process: Wire) -> str:
    args = process.get("args")
    return str(args[0])[:200] if isinstance(args, list) and args else ""
