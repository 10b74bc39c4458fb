"""Where the streaming server's commands and ports are: the daemon's containers and their shims."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cri import oci_spec
from cri.config import Streaming
from cri.daemon import Daemon
from cri.service.exec_sync import process_of
from cri.streaming.certificates import CertificateFiles
from cri.streaming.requests import Attach, Descriptors, Exec, Running
from cri.streaming.server import Options
from cri.vms import Shim
from hostlib import failpoint
from hostlib.errors import FailedPrecondition


@dataclass(frozen=True)
class _Exec:
    shim: Shim
    name: str

    async def wait(self) -> int:
        return await self.shim.exec_wait(self.name)

    async def resize(self, width: int, height: int) -> None:
        await self.shim.exec_resize(self.name, width, height)


@dataclass(frozen=True)
class _Attachment:
    shim: Shim
    container: str

    async def wait(self) -> int:
        return 0

    async def resize(self, width: int, height: int) -> None:
        await self.shim.container_resize(self.container, width, height)


class DaemonStreams:
    """`cri.streaming.requests.Backend` over a daemon.

    Between a URL and its use a minute may pass: what it is for is looked up again.
    """

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    async def exec(self, request: Exec, ends: Descriptors) -> Running:
        container, pod = self._daemon.running_container(request.container)
        terminal = request.streams.terminal
        process = oci_spec.exec_process(
            {"process": process_of(self._daemon, container, pod)}, request.argv, tty=terminal
        )
        shim = self._daemon.shim_of(pod)
        await failpoint.hit("stream.exec")
        name = await shim.exec_open(
            container.id,
            process,
            terminal=terminal,
            stdin=ends.stdin,
            stdout=ends.stdout,
            stderr=ends.stderr,
        )
        return _Exec(shim, name)

    async def attach(self, request: Attach, ends: Descriptors) -> Running:
        container, pod = self._daemon.running_container(request.container)
        shim = self._daemon.shim_of(pod)
        await failpoint.hit("stream.attach")
        await shim.attach_open(
            container.id, stdin=ends.stdin, stdout=ends.stdout, stderr=ends.stderr
        )
        return _Attachment(shim, container.id)

    async def forward(self, pod: str, port: int, end: int) -> None:
        found = self._daemon.index.pods.find(pod)
        if not found.ready:
            raise FailedPrecondition(f"pod sandbox {found.id} is not running")
        await failpoint.hit("stream.forward")
        await self._daemon.shim_of(found).forward_open(port, end)


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
