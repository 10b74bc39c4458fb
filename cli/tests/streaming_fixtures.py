"""`thaw` as a process, between a fake runtime and a streaming server with fake guests."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from cli.tests.fake_runtime import FakeRuntime, serving_runtime
from cri.api import v1_pb2
from cri.streaming.certificates import CertificateFiles
from cri.streaming.requests import Attach, Exec, Forward, Wanted
from cri.streaming.server import StreamingServer
from cri.streaming.tests.guests import FakeBackend, serving


@dataclass
class Done:
    code: int
    out: bytes
    err: str


@dataclass
class Thaw:
    """The command, the runtime it asks, and who is behind the runtime's URLs."""

    runtime: FakeRuntime
    backend: FakeBackend
    server: StreamingServer

    def argv(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "cli.main", "--address", self.runtime.address, *arguments]

    async def start(
        self, *arguments: str, stdin: int = subprocess.PIPE
    ) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *self.argv(*arguments),
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
        )

    async def run(self, *arguments: str, given: bytes | None = None) -> Done:
        """With nothing given, stdin has no end while it runs."""
        process = await self.start(*arguments)
        try:
            if given is not None:
                out, err = await process.communicate(given)
            else:
                assert process.stdout is not None
                assert process.stderr is not None
                out, err = await asyncio.gather(process.stdout.read(), process.stderr.read())
                await process.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        return Done(process.returncode or 0, out, err.decode())


def environment() -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "PYTHONDEVMODE": "1", "TERM": "xterm"}


@contextlib.asynccontextmanager
async def thaw(folder: Path, tls: CertificateFiles | None = None) -> AsyncIterator[Thaw]:
    """A container `c` runs, and a pod `p`."""
    backend = FakeBackend()
    with serving_runtime(folder) as runtime:
        async with serving(backend, tls=tls) as server:
            loop = asyncio.get_running_loop()

            def url(request: Exec | Attach | Forward) -> str:
                async def issue() -> str:
                    return server.url(request)

                return asyncio.run_coroutine_threadsafe(issue(), loop).result()

            def streams(request: v1_pb2.ExecRequest | v1_pb2.AttachRequest) -> Wanted:
                return Wanted(request.stdin, request.stdout, request.stderr, request.tty)

            runtime.answers |= {
                "Exec": lambda asked: v1_pb2.ExecResponse(
                    url=url(Exec(asked.container_id, tuple(asked.cmd), streams(asked)))
                ),
                "Attach": lambda asked: v1_pb2.AttachResponse(
                    url=url(Attach(asked.container_id, streams(asked)))
                ),
                "PortForward": lambda asked: v1_pb2.PortForwardResponse(
                    url=url(Forward(asked.pod_sandbox_id, tuple(asked.port)))
                ),
            }
            yield Thaw(runtime, backend, server)


def container(
    state: v1_pb2.ContainerState, exit_code: int = 0, **config: bool
) -> v1_pb2.ContainerStatusResponse:
    return v1_pb2.ContainerStatusResponse(
        status=v1_pb2.ContainerStatus(id="c", state=state, exit_code=exit_code),
        info={"info": json.dumps({"config": config})},
    )
