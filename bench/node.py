"""What is measured: a container runtime behind its CRI socket, whichever it is."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from cli.client import Client
from e2e.harness import leaks
from e2e.harness.waiting import until
from hostlib.process import ENVIRONMENT

CNI_PLUGINS: Final = "/usr/lib/cni"


class Node(Protocol):
    """A runtime that runs."""

    @property
    def name(self) -> str: ...

    @property
    def client(self) -> Client: ...

    @property
    def logs(self) -> Path:
        """The folder of the pods' logs."""

    @property
    def cgroup_parent(self) -> str: ...

    @property
    def netns(self) -> Path:
        """The network namespace from which its pods are reached."""

    def settle(self) -> None:
        """Wait until what it does in the background after pods came and went is done."""

    def pids(self) -> list[int]:
        """All processes of the runtime and its pods."""

    def daemon_pid(self) -> int: ...

    def pod_pids(self, pod_id: str) -> tuple[list[int], list[int]]:
        """The processes that a pod costs: its shim, and all others."""


@dataclass(frozen=True)
class Place:
    """Where one run of the benchmarks keeps what it makes: every global name has `mark` in it."""

    folder: Path
    mark: str

    @classmethod
    def new(cls, folder: Path) -> Place:
        return cls(folder, f"thaw-bench-{secrets.token_hex(3)}")

    @property
    def short(self) -> str:
        """For names of links, which hold 15 bytes."""
        return self.mark.removeprefix("thaw-bench-")

    @property
    def cgroup_parent(self) -> str:
        return f"/{self.mark}"

    def bridge(self, who: str) -> str:
        return f"b{who[0]}-{self.short}"

    def left(self) -> list[str]:
        """What is on the host of this run."""
        folder = str(self.folder)
        return [
            *leaks.processes(folder, self.mark),
            *leaks.mounts(folder),
            *leaks.links(f"-{self.short}"),
            *leaks.cgroups(self.mark),
        ]

    def remove(self) -> None:
        """Remove all of it, by force what should have ended before; then `left` finds nothing."""
        for found in leaks.processes(str(self.folder), self.mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(found.split()[1]), signal.SIGKILL)
        with contextlib.suppress(AssertionError):
            until("they have ended", lambda: not leaks.processes(self.mark), 5)
        for found in sorted(leaks.cgroups(self.mark), reverse=True):
            with contextlib.suppress(OSError):
                os.rmdir(found.removeprefix("cgroup "))
        for found in leaks.links(f"-{self.short}"):
            argv = ["ip", "link", "delete", found.split()[1]]
            subprocess.run(argv, capture_output=True, check=False, env=dict(ENVIRONMENT))
        shutil.rmtree(self.folder, ignore_errors=True)


def cni_config(bridge: str, subnet: str, leases: Path) -> dict[str, Any]:
    """The network of both runtimes: Debian's bridge plugin, addresses by host-local."""
    plugin = {
        "type": "bridge",
        "bridge": bridge,
        "isGateway": True,
        "ipMasq": False,
        "ipam": {
            "type": "host-local",
            "dataDir": str(leases),
            "ranges": [[{"subnet": subnet}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    return {"cniVersion": "1.0.0", "name": "bench", "plugins": [plugin]}
