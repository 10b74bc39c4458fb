"""containerd with runc as a node, in a network and a mount namespace of its own.

The namespaces have no name: they go with the last process in them. The registry is a second process
on the same storage, since loopback is another one in there.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any, Final

import psutil

from bench.images import PAUSE
from bench.node import CNI_PLUGINS, Place, cni_config
from bench.rows import PEER
from cli.client import Client
from e2e.harness import leaks
from e2e.harness.daemon import PROJECT
from e2e.harness.registry import Registry
from e2e.harness.waiting import until
from hostlib import errors
from hostlib.process import ENVIRONMENT

BIN: Final = PROJECT / ".build" / "peer" / "bin"

_START: Final = """
ip link set lo up
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/lib
exec "$0" --config "$1"
"""
"""containerd, its shims and CNI have fixed places below /run and /var/lib: they get empty ones."""


def built() -> bool:
    """Whether tools/peer.sh has built it, as it is now."""
    done = subprocess.run([str(PROJECT / "tools" / "peer.sh"), "--check"], check=False)
    return done.returncode == 0


def config(folder: Path, sandbox_image: str) -> dict[str, Any]:
    """containerd's settings: the defaults, but for paths and what this host cannot do."""
    runtime = {"runtime_type": "io.containerd.runc.v2", "options": {"SystemdCgroup": False}}
    runtime["options"]["BinaryName"] = str(BIN / "runc")  # type: ignore[index]
    return {
        "version": 4,
        "imports": [],
        "root": str(folder / "root"),
        "state": "/run/containerd",
        "plugins": {
            "io.containerd.server.v1.grpc": {"address": str(folder / "containerd.sock")},
            "io.containerd.internal.v1.opt": {"path": str(folder / "opt")},
            "io.containerd.cri.v1.images": {
                "pinned_images": {"sandbox": sandbox_image},
                "registry": {"config_path": str(folder / "hosts")},
            },
            "io.containerd.cri.v1.runtime": {
                # Lowering oom_score_adj takes a capability that containers of CI often lack.
                "restrict_oom_score_adj": True,
                "cni": {"bin_dirs": [CNI_PLUGINS], "conf_dir": str(folder / "cni")},
                "containerd": {"runtimes": {"runc": runtime}},
            },
        },
    }


def toml(settings: dict[str, Any], path: tuple[str, ...] = ()) -> str:
    """Nested settings as TOML; JSON's scalars and lists are TOML's."""
    lines = [f"[{'.'.join(json.dumps(key) for key in path)}]"] if path else []
    tables = []
    for key, value in settings.items():
        if isinstance(value, dict):
            tables.append(toml(value, (*path, key)))
        else:
            lines.append(f"{json.dumps(key)} = {json.dumps(value)}")
    return "\n".join([*lines, "", *tables])


def listens(tcp: str, port: int) -> bool:
    """Whether the text of a ``/proc/PID/net/tcp`` has a listener at 127.0.0.1:`port`."""
    address = f"0100007F:{port:04X}"
    rows = (line.split() for line in tcp.splitlines()[1:])
    return any(row[1] == address and row[3] == "0A" for row in rows)


class Peer:
    """A containerd that the benchmark started."""

    name = PEER

    def __init__(self, place: Place, registry: Registry) -> None:
        self._place = place
        self._registry = registry
        self.folder = place.folder / "peer"
        self.logs = self.folder / "pods"
        self.log = self.folder / "containerd.log"
        self._client: Client | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._own_registry: subprocess.Popen[bytes] | None = None
        for name in ("pods", "root", "cni", "hosts"):
            (self.folder / name).mkdir(parents=True)
        registry.write_hosts(self.folder / "hosts")
        network = cni_config(place.bridge(self.name), "10.253.0.0/16", self.folder / "ipam")
        (self.folder / "cni" / "10-bench.conflist").write_text(json.dumps(network))
        self._config = self.folder / "config.toml"
        self._config.write_text(toml(config(self.folder, PAUSE)))

    @property
    def client(self) -> Client:
        if self._client is None:
            self._client = Client(f"unix://{self.folder / 'containerd.sock'}")
        return self._client

    @property
    def cgroup_parent(self) -> str:
        return self._place.cgroup_parent

    @property
    def netns(self) -> Path:
        return Path(f"/proc/{self.daemon_pid()}/ns/net")

    def daemon_pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start, and wait until it answers and its registry listens."""
        enter = ["unshare", "--net", "--mount", "--propagation", "private", "sh", "-ec", _START]
        self._process = self._spawn(
            [*enter, str(BIN / "containerd"), str(self._config)],
            {"PATH": f"{BIN}:{ENVIRONMENT['PATH']}"},
        )
        until("containerd answers", self._answers, 60)
        settings = str(self._registry.folder / "registry.json")
        self._own_registry = self._spawn(
            ["nsenter", f"--net={self.netns}", "docker-registry", "serve", settings], {}
        )
        tcp = Path(f"/proc/{self._own_registry.pid}/net/tcp")
        until("its registry listens", lambda: listens(tcp.read_text(), self._registry.port), 30)

    def _spawn(self, argv: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            # In a session of its own: Ctrl-C is for the benchmark, which ends it in order.
            return subprocess.Popen(
                argv,
                stdout=log,
                stderr=log,
                cwd="/",
                env={**ENVIRONMENT, **environment},
                start_new_session=True,
            )

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise AssertionError(f"containerd ended: {self.log.read_text()[-3000:]}")
        with contextlib.suppress(errors.ThawError):
            self.client.version()
            # It has a condition of its own beside CRI's two.
            told = {each.type: each.status for each in self.client.status().status.conditions}
            return told["RuntimeReady"] and told["NetworkReady"]
        return False

    def settle(self) -> None:
        """It does nothing of importance in the background."""

    def pids(self) -> list[int]:
        registry = self._own_registry.pid if self._own_registry is not None else 0
        pods = set(self._pod_processes())
        found = {int(line.split()[1]) for line in leaks.processes(str(self.folder))} - {registry}
        return sorted(found | pods)

    def _pod_processes(self) -> list[int]:
        """containerd's shims with all their children."""
        shims = [p for p in psutil.process_iter(["cmdline"]) if self._is_shim(p)]
        return [p.pid for shim in shims for p in (shim, *shim.children(recursive=True))]

    def _is_shim(self, process: psutil.Process, pod_id: str = "") -> bool:
        argv = process.info["cmdline"] or []
        return str(self.folder / "containerd.sock") in argv and (not pod_id or pod_id in argv)

    def pod_pids(self, pod_id: str) -> tuple[list[int], list[int]]:
        for process in psutil.process_iter(["cmdline"]):
            if self._is_shim(process, pod_id):
                return [process.pid], [p.pid for p in process.children(recursive=True)]
        raise errors.Internal(f"pod {pod_id} has no shim")

    def stop(self) -> list[str]:
        """End it and its pods by all means; what is left then."""
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(errors.ThawError):
                for pod in self.client.pods():
                    self.client.stop_pod(pod.id)
                    self.client.remove_pod(pod.id)
        for pid in self._pod_processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in (self._own_registry, self._process):
            if process is not None:
                process.terminate()
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        if self._client is not None:
            self._client.close()
            self._client = None
        with contextlib.suppress(AssertionError):
            until("nothing is left", lambda: not leaks.processes(str(self.folder)), 10)
        return [*leaks.processes(str(self.folder)), *leaks.mounts(str(self.folder))]
