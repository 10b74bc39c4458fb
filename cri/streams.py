"""Where the streaming server's commands and ports are: the daemon's containers and their shims."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from cri.daemon import Daemon
from cri.oci import spec as oci_spec
from cri.service.exec_sync import process_of
from cri.streaming.certificates import CertificateFiles
from cri.streaming.requests import Attach, Descriptors, Exec, Running
from cri.streaming.server import Options
from cri.streaming_config import Streaming
from cri.vms import Shim
from hostlib import failpoint
from hostlib.errors import FailedPrecondition

T = TypeVar("T")


class _Calls:
    """Carries calls to their end though the client leaves meanwhile: to cancel one in the middle of
    its message ends the connection with the shim, and to the daemon that is the shim's death."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    async def make(self, call: Coroutine[Any, Any, T]) -> T:
        task = asyncio.create_task(call)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return await asyncio.shield(task)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            # Who made the call has it, or is gone.
            task.exception()


@dataclass(frozen=True)
class _Exec:
    calls: _Calls
    shim: Shim
    name: str

    async def wait(self) -> int:
        return await self.calls.make(self.shim.exec_wait(self.name))

    async def resize(self, width: int, height: int) -> None:
        await self.calls.make(self.shim.exec_resize(self.name, width, height))


@dataclass(frozen=True)
class _Attachment:
    calls: _Calls
    shim: Shim
    container: str

    async def wait(self) -> int:
        return 0

    async def resize(self, width: int, height: int) -> None:
        await self.calls.make(self.shim.container_resize(self.container, width, height))


class DaemonStreams:
    """`cri.streaming.requests.Backend` over a daemon.

    Between a URL and its use a minute may pass: what it is for is looked up again.
    """

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._calls = _Calls()

    async def exec(self, request: Exec, ends: Descriptors) -> Running:
        container, pod = self._daemon.running_container(request.container)
        terminal = request.streams.terminal
        process = oci_spec.exec_process(
            {"process": process_of(self._daemon, container, pod)}, request.argv, tty=terminal
        )
        shim = self._daemon.shim_of(pod)

        async def call(ends: Descriptors) -> str:
            await failpoint.hit("stream.exec")
            return await shim.exec_open(
                container.id,
                process,
                terminal=terminal,
                stdin=ends.stdin,
                stdout=ends.stdout,
                stderr=ends.stderr,
            )

        return _Exec(self._calls, shim, await self._calls.make(_with_copies(ends, call)))

    async def attach(self, request: Attach, ends: Descriptors) -> Running:
        container, pod = self._daemon.joinable_container(request.container)
        shim = self._daemon.shim_of(pod)

        async def call(ends: Descriptors) -> None:
            await failpoint.hit("stream.attach")
            await shim.attach_open(
                container.id, stdin=ends.stdin, stdout=ends.stdout, stderr=ends.stderr
            )

        await self._calls.make(_with_copies(ends, call))
        return _Attachment(self._calls, shim, container.id)

    async def forward(self, pod: str, port: int, end: int) -> None:
        found = self._daemon.index.pods.find(pod)
        if not found.ready:
            raise FailedPrecondition(f"pod sandbox {found.id} is not running")
        shim = self._daemon.shim_of(found)

        async def call(ends: Descriptors) -> None:
            await failpoint.hit("stream.forward")
            assert ends.stdin is not None
            await shim.forward_open(port, ends.stdin)

        await self._calls.make(_with_copies(Descriptors(end), call))


def _with_copies(
    ends: Descriptors, call: Callable[[Descriptors], Coroutine[Any, Any, T]]
) -> Coroutine[Any, Any, T]:
    """A call with duplicates of the descriptors: the caller closes its own when it is cancelled."""
    given = dataclasses.asdict(ends).items()
    copies = {name: os.dup(number) for name, number in given if number is not None}

    async def work() -> T:
        try:
            return await call(Descriptors(**copies))
        finally:
            for number in copies.values():
                os.close(number)

    return work()


def options(streaming: Streaming) -> Options:
    """The section as the streaming server wants it."""
    tls = None
    if streaming.tls_cert:
        authority = Path(streaming.tls_client_ca) if streaming.tls_client_ca else None
        tls = CertificateFiles(Path(streaming.tls_cert), Path(streaming.tls_key), authority)
    return Options(
        streaming.address,
        streaming.port,
        tls,
        streaming.idle_timeout_seconds,
        streaming.creation_timeout_seconds,
        streaming.max_connections,
    )
