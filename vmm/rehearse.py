"""The rehearsal: the whole life of a pod and a container, on a small built-in layer.

It runs twice. At the bake it leaves what the guest's kernel makes but once (caches, the devices'
filter, first pages) in the snapshot; in a VM that waits it has the code of a start translated.
There it is without an exec, whose own code takes memory: not every pod has one.
"""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hostlib import failpoint
from hostlib.devices import default_rules
from hostlib.errors import DeadlineExceeded, Internal
from vmm import restore

if TYPE_CHECKING:
    from vmm.agent.client import AgentClient
    from vmm.microvm import MicroVM

SLOT: Final = 0
LAYER: Final = "rehearsal"
_TIMEOUT: Final = 60.0
"""Seconds. Where the host is busy, what waits gives way to what runs, and takes its time."""

NETWORK: Final[restore.Wire] = {
    "mac": "52:54:00:00:00:01",
    "mtu": 1500,
    "addresses": ["192.0.2.2/24"],
    "routes": [{"dst": "0.0.0.0/0", "gateway": "192.0.2.1"}],
    "neighbours": [{"ip": "192.0.2.1", "mac": "52:54:00:00:00:02"}],
}
IDENTITY: Final[restore.Wire] = {
    "hostname": "pooled",
    "hosts": "127.0.0.1 localhost\n",
    "resolv_conf": "",
    "machine_id": "0" * 32,
    "boot_id": "00000000-0000-0000-0000-000000000000",
}
"""What a VM is bound to before its pod is known.

The tap leads nowhere yet, the addresses are RFC 5737's, and the pod's own replace all of it.
"""


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


async def run(vm: MicroVM, rehearsal: Path, *, with_exec: bool) -> None:
    """Bind the VM to nobody; fill a slot, mount, create, start, exec, end, delete, unmount, empty.

    Raises what the agent answers, `Internal` when the rehearsed exec fails, or `DeadlineExceeded`.
    """
    await failpoint.hit("vm.rehearse")
    try:
        async with asyncio.timeout(_TIMEOUT):
            await _run(vm, rehearsal, with_exec=with_exec)
    except TimeoutError as error:
        raise DeadlineExceeded(
            f"the rehearsal did not end in {_TIMEOUT:g} s", hint="is the host overloaded?"
        ) from error


async def _run(vm: MicroVM, rehearsal: Path, *, with_exec: bool) -> None:
    agent = vm.agent
    container = secrets.token_hex(32)
    await restore.restore_guest(vm, NETWORK, IDENTITY)
    await agent.request("clock.adjust", {"delta_ns": 1})
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
    if with_exec:
        await _exec(agent, container)
    await agent.request("container.kill", {"id": container, "signal": 9, "all": True})
    while await output.read():
        pass
    await agent.request("container.delete", {"id": container, "force": True})
    for stream in (output, errors):
        stream.reset()
    await agent.request("layer.unmount", {"layer": LAYER})
    await vm.detach(SLOT)


async def _exec(agent: AgentClient, container: str) -> None:
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
    for stream in (told, silent):
        stream.reset()
    if said != b"ready\n":
        raise Internal(f"the rehearsed exec said {said[:100]!r}")
