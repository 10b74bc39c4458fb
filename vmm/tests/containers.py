"""Containers in a microVM for tests: busybox as their image, run and asked through the agent."""

from __future__ import annotations

import asyncio
import base64
import io
import secrets
import tarfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from hostlib import process as host_process
from vmm.agent.stream import Stream
from vmm.microvm import MicroVM
from vmm.rehearse import process, spec

BUSYBOX: Final = Path("/bin/busybox")
TIMEOUT: Final = 60.0
_APPLETS: Final = (
    *("cat", "chmod", "cp", "dd", "echo", "grep", "head", "id", "kill", "ln", "ls", "mkdir"),
    *("mknod", "mount", "mv", "nc", "seq", "sh", "sleep", "stat", "touch", "tr", "true", "wget"),
    *("wc", "yes"),
)

CAPABILITIES: Final = ("CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_MKNOD", "CAP_KILL", "CAP_SYS_CHROOT")
"""Some of those that containers have by default."""


async def busybox_layer(target: Path) -> None:
    """Write a squashfs with busybox, /etc and /dev; no /run, no /proc, no /sys."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in ("bin", "dev", "etc"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(entry)
        binary = BUSYBOX.read_bytes()
        entry = tarfile.TarInfo("bin/busybox")
        entry.mode, entry.size = 0o755, len(binary)
        archive.addfile(entry, io.BytesIO(binary))
        links = {f"bin/{name}": "busybox" for name in _APPLETS}
        links["etc/resolv.conf"] = "../run/systemd/resolve/stub-resolv.conf"
        for name, to in links.items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, to
            archive.addfile(entry)
    target.unlink(missing_ok=True)
    sqfstar = host_process.find("sqfstar", package="squashfs-tools")
    await host_process.run(
        sqfstar, "-quiet", "-no-progress", "-noI", "-noD", str(target), stdin=buffer.getvalue()
    )


async def until(true: Callable[[], Awaitable[bool]]) -> None:
    """Ask the guest again and again until it says so."""
    async with asyncio.timeout(TIMEOUT):
        while not await true():  # noqa: ASYNC110 - a guest tells nothing by itself
            await asyncio.sleep(0.05)


@dataclass
class Container:
    guest: Guest
    id: str
    streams: tuple[Stream, Stream]

    async def start(self) -> None:
        await self.guest.vm.agent.request("container.start", {"id": self.id})

    async def exec(self, script: str, **members: Any) -> tuple[int, str]:
        """A shell's exit code and output; `members` are of the process object."""
        agent = self.guest.vm.agent
        streams = agent.open_stream(), agent.open_stream()
        told = await agent.request(
            "process.exec",
            {
                "container": self.id,
                "process": process("/bin/sh", "-c", f"exec 2>&1; {script}") | members,
                "streams": _numbers(streams),
            },
        )
        output = await asyncio.wait_for(_all(streams[0]), TIMEOUT)
        return await self.guest.ended(str(told["exec"])), output

    async def sh(self, script: str, **members: Any) -> str:
        """A shell's output; it must succeed."""
        code, output = await self.exec(script, **members)
        assert code == 0, output
        return output.strip()

    async def output(self) -> str:
        """All that the container says on stdout and stderr, in this order, until its end."""
        return "".join([await asyncio.wait_for(_all(one), TIMEOUT) for one in self.streams])

    async def delete(self) -> None:
        await self.guest.vm.agent.request("container.delete", {"id": self.id, "force": True})


def _numbers(streams: tuple[Stream, Stream]) -> dict[str, int]:
    return {"stdin": 0, "stdout": streams[0].id, "stderr": streams[1].id}


async def _all(stream: Stream) -> str:
    said = b""
    while piece := await stream.read():
        said += piece
    return said.decode()


@dataclass
class Guest:
    """A running microVM with the layer `base`."""

    vm: MicroVM
    _ends: dict[str, asyncio.Future[int]] = field(default_factory=dict)

    async def prepare(self, layer: Path) -> None:
        self.vm.agent.on_event(self._on_event)
        await self.vm.attach(0, layer)
        await self.vm.agent.request("layer.mount", {"slot": 0, "layer": "base"})

    def _end(self, name: str) -> asyncio.Future[int]:
        return self._ends.setdefault(name, asyncio.get_running_loop().create_future())

    def _on_event(self, event: dict[str, Any]) -> None:
        self._end(str(event.get("id") or event.get("exec"))).set_result(event["exit_code"])

    async def ended(self, name: str) -> int:
        """The exit code of a container or an exec, once it has one."""
        return await asyncio.wait_for(self._end(name), TIMEOUT)

    async def create(self, script: str, **changes: Any) -> Container:
        """A container that runs a shell script; `changes` go into the spec, `linux` member by
        member, lists of mounts at the front."""
        wanted = spec("/bin/sh", "-c", script)
        wanted["mounts"] = [*changes.pop("mounts", []), *wanted["mounts"]]
        wanted["linux"] |= changes.pop("linux", {})
        wanted["process"] |= changes.pop("process", {})
        wanted |= changes
        streams = self.vm.agent.open_stream(), self.vm.agent.open_stream()
        made = Container(self, secrets.token_hex(32), streams)
        await self.vm.agent.request(
            "container.create",
            {
                "id": made.id,
                "spec": wanted,
                "layers": ["base"],
                "streams": _numbers(made.streams),
            },
        )
        return made

    async def run(self, script: str = "sleep 600", **changes: Any) -> Container:
        made = await self.create(script, **changes)
        await made.start()
        return made

    async def restore(self, **steps: Any) -> dict[str, Any]:
        entropy = base64.b64encode(secrets.token_bytes(64)).decode()
        params = {"entropy": entropy, "realtime_ns": time.time_ns()} | steps
        return await self.vm.agent.request("restore", params)


def capabilities(*names: str) -> dict[str, list[str]]:
    """A process's capability sets."""
    return {kind: list(names) for kind in ("bounding", "effective", "permitted")}
