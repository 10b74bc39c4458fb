"""The rehearsal: a whole container life on a small built-in layer, through the agent."""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hostlib import failpoint
from hostlib.devices import default_rules
from hostlib.errors import Internal

if TYPE_CHECKING:
    from vmm.microvm import MicroVM

SLOT: Final = 0
LAYER: Final = "rehearsal"
_TIMEOUT: Final = 30.0


def process(*args: str) -> dict[str, Any]:
    """An OCI process object, as plain as can be."""
    return {
        "terminal": False,
        "user": {"uid": 0, "gid": 0},
        "args": list(args),
        "env": ["PATH=/bin"],
        "cwd": "/",
        "noNewPrivileges": True,
    }


def spec(*args: str) -> dict[str, Any]:
    """An OCI runtime spec with the mounts and namespaces that ordinary containers have."""
    return {
        "ociVersion": "1.2.0",
        "process": process(*args),
        "root": {"path": "rootfs", "readonly": False},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {
                "destination": "/dev",
                "type": "tmpfs",
                "source": "tmpfs",
                "options": ["nosuid", "strictatime", "mode=755", "size=65536k"],
            },
            {
                "destination": "/dev/pts",
                "type": "devpts",
                "source": "devpts",
                "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"],
            },
            {
                "destination": "/sys",
                "type": "sysfs",
                "source": "sysfs",
                "options": ["nosuid", "noexec", "nodev", "ro"],
            },
        ],
        "linux": {
            "namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "cgroup")],
            "resources": {"devices": default_rules()},
        },
    }


async def run(vm: MicroVM, rehearsal: Path) -> None:
    """Fill a slot, mount, create, start, exec, end, delete, unmount, empty the slot.

    Raises what the agent answers, or `Internal` when the rehearsed exec fails.
    """
    await failpoint.hit("vm.rehearse")
    agent = vm.agent
    container = secrets.token_hex(32)
    async with asyncio.timeout(_TIMEOUT):
        await vm.attach(SLOT, rehearsal)
        await agent.request("layer.mount", {"slot": SLOT, "layer": LAYER})
        output, errors = agent.open_stream(), agent.open_stream()
        await agent.request(
            "container.create",
            {
                "id": container,
                "spec": spec("/bin/sleep", "60"),
                "layers": [LAYER],
                "streams": {"stdin": 0, "stdout": output.id, "stderr": errors.id},
            },
        )
        await agent.request("container.start", {"id": container})
        told, silent = agent.open_stream(), agent.open_stream()
        await agent.request(
            "process.exec",
            {
                "container": container,
                "process": process("/bin/echo", "ready"),
                "streams": {"stdin": 0, "stdout": told.id, "stderr": silent.id},
            },
        )
        said = b""
        while piece := await told.read():
            said += piece
        if said != b"ready\n":
            raise Internal(f"the rehearsed exec said {said[:100]!r}")
        await agent.request("container.kill", {"id": container, "signal": 9, "all": True})
        while await output.read():
            pass
        await agent.request("container.delete", {"id": container, "force": True})
        for stream in (output, errors, told, silent):
            stream.reset()
        await agent.request("layer.unmount", {"layer": LAYER})
        await vm.detach(SLOT)
