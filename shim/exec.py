"""exec_sync: one command in a container, its output and exit code."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from typing import Any, Final

from hostlib.errors import DeadlineExceeded, InvalidArgument, ThawError
from shim.layers import Machine
from shim.server import Answer
from shim.streams import Capture, drain

KILL_WAIT: Final = 5.0
"""Seconds for a killed process group to be reported as ended."""

MAX_UNCLAIMED: Final = 256


class Execs:
    """The processes that exec_sync runs, by the agent's id; fed by its events."""

    def __init__(self) -> None:
        self._waiting: dict[str, asyncio.Future[int]] = {}
        self._early: dict[str, int] = {}

    def on_exit(self, event: dict[str, Any]) -> None:
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

    async def run(
        self, vm: Machine, container: str, process: dict[str, Any], timeout: float
    ) -> Answer:
        """Run `process` in `container`; `timeout` in seconds, 0 for none.

        Returns when the process has ended and its output too, or 5 s after its end where a child
        holds the output open. Raises what the agent answers (`NotFound`, `PermissionDenied`), and
        `DeadlineExceeded` after killing the process group.
        """
        if timeout < 0:
            raise InvalidArgument("a time-out below 0")
        agent = vm.agent
        streams = [agent.open_stream(), agent.open_stream()]
        captures = [Capture(), Capture()]
        readers: list[asyncio.Task[None]] = []
        name = ""
        try:
            async with asyncio.timeout(timeout or None):
                started = await agent.request(
                    "process.exec",
                    {
                        "container": container,
                        "process": process,
                        "streams": {"stdin": 0, "stdout": streams[0].id, "stderr": streams[1].id},
                    },
                )
                name = str(started.get("exec"))
                exited = self._expect(name)
                readers = [
                    asyncio.create_task(capture.run(stream), name=f"exec {name}")
                    for capture, stream in zip(captures, streams, strict=True)
                ]
                code = await asyncio.shield(exited)
        except TimeoutError as error:
            await self._kill(vm, name)
            raise DeadlineExceeded(
                f"command {_first(process)!r} timed out after {timeout:g} s and was killed"
            ) from error
        except asyncio.CancelledError:
            await self._kill(vm, name)
            raise
        else:
            await drain(readers)
        finally:
            self._waiting.pop(name, None)
            for reader in readers:
                reader.cancel()
            for stream in streams:
                _end(stream)
        out, err = (bytes(capture.data) for capture in captures)
        return Answer({"exit_code": code, "stdout_bytes": len(out)}, out + err)

    def _expect(self, name: str) -> asyncio.Future[int]:
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting[name] = future
        if name in self._early:
            future.set_result(self._early.pop(name))
        return future

    async def _kill(self, vm: Machine, name: str) -> None:
        if not name:
            return
        with contextlib.suppress(ThawError, TimeoutError):
            await vm.agent.request(
                "process.kill", {"exec": name, "signal": int(signal.SIGKILL), "group": True}
            )
            future = self._waiting.get(name)
            if future is not None and not future.done():
                async with asyncio.timeout(KILL_WAIT):
                    await asyncio.shield(future)


def _end(stream: Any) -> None:
    """Both directions are over: a stream that ended is forgotten, another is broken off."""
    with contextlib.suppress(ThawError):
        stream.reset()


def _first(process: dict[str, Any]) -> str:
    args = process.get("args")
    return str(args[0])[:200] if isinstance(args, list) and args else ""
