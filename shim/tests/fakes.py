"""A microVM and its agent without QEMU: what is asked of them is kept, answers can be set."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hostlib.errors import ThawError, Unavailable


@dataclass(frozen=True)
class Exit:
    text: str


class FakeStream:
    def __init__(self, number: int) -> None:
        self.id = number
        self._data: asyncio.Queue[bytes] = asyncio.Queue()
        self.was_reset = False

    def feed(self, *parts: bytes) -> None:
        for part in parts:
            self._data.put_nowait(part)

    async def read(self, limit: int = 0) -> bytes:
        return await self._data.get()

    def reset(self) -> None:
        self.was_reset = True
        self._data.put_nowait(b"")


@dataclass
class FakeAgent:
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    answers: dict[str, Any] = field(default_factory=dict)
    streams: list[FakeStream] = field(default_factory=list)
    callback: Callable[[dict[str, Any]], None] | None = None

    def __post_init__(self) -> None:
        self.closed: asyncio.Future[ThawError] = asyncio.get_running_loop().create_future()

    async def request(
        self, method: str, params: dict[str, Any] | None = None, *, timeout: float = 30.0
    ) -> dict[str, Any]:
        self.calls.append((method, params or {}))
        answer = self.answers.get(method, {})
        if callable(answer):
            answer = answer(params or {})
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, dict)
        return answer

    def asked(self, method: str) -> list[dict[str, Any]]:
        return [params for name, params in self.calls if name == method]

    def open_stream(self) -> FakeStream:
        self.streams.append(FakeStream(len(self.streams) + 1))
        return self.streams[-1]

    def on_event(self, callback: Callable[[dict[str, Any]], None]) -> None:
        self.callback = callback

    def emit(self, **event: Any) -> None:
        assert self.callback is not None
        self.callback(event)


class FakeVM:
    """Stands in for `vmm.microvm.MicroVM`."""

    def __init__(self) -> None:
        self.most = None
        self.agent = FakeAgent()
        self.agent.answers["restore"] = confirm_all
        self.agent.answers["ping"] = lambda _params: {"realtime_ns": time.time_ns()}
        self.agent.answers["container.kill"] = self._kill_container
        self.exited: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self.pid = 2**22 + 1
        self.worker_uid = 0x70001234
        self.slots: dict[int, Path | int] = {}
        self.running = False
        self.attach_error: ThawError | None = None

    def _kill_container(self, params: dict[str, Any]) -> dict[str, Any]:
        if params["signal"] == 9:
            for stream in self.agent.streams:
                stream.feed(b"")
            self.agent.emit(event="container.exit", id=params["id"], exit_code=137)
        return {}

    async def resume(self) -> None:
        self.running = True

    async def symptoms(self) -> str:
        return "it looks unwell"

    async def attach(self, slot: int, source: Path | int, *, read_only: bool = True) -> None:
        if self.attach_error is not None:
            raise self.attach_error
        assert slot not in self.slots
        self.slots[slot] = source

    async def detach(self, slot: int) -> None:
        self.slots.pop(slot, None)

    def die(self, reason: str) -> None:
        if not self.exited.done():
            self.exited.set_result(Exit(reason))
        for stream in self.agent.streams:
            stream.feed(b"")
        if not self.agent.closed.done():
            self.agent.closed.set_result(Unavailable("channel closed"))

    async def kill(self) -> None:
        self.running = False
        self.die("killed")


def confirm_all(params: dict[str, Any]) -> dict[str, Any]:
    """The agent's answer to `restore`: every step that was asked for, in order."""
    steps = ["reseed", "clock"]
    steps += [name for name in ("network", "identity") if name in params]
    return {"steps": [{"step": name, "ns": 1} for name in [*steps, "generation"]]}
