"""Thaw as a node, with the default configuration but for paths, subnet and registry."""

from __future__ import annotations

import contextlib
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.node import CNI_PLUGINS, Place, cni_config
from bench.rows import THAW
from cli.client import Client
from cri.api import thaw_pb2, v1_pb2
from e2e.harness import leaks
from e2e.harness.daemon import Daemon
from e2e.harness.registry import Registry
from e2e.harness.waiting import until
from hostlib.errors import Internal
from shim.records import read_vm_folder

REFILL_SECONDS = 180.0


class Thaw:
    """A thawd that the benchmark started."""

    name = THAW

    def __init__(self, place: Place, registry: Registry) -> None:
        self._place = place
        self._cni = place.folder / "thaw-cni"
        self._cni.mkdir(parents=True)
        settings: dict[str, Any] = {
            # The end-to-end tests keep a smaller pool than the default.
            "pool": None,
            "network": {"cni_conf_dir": str(self._cni), "cni_bin_dirs": [CNI_PLUGINS]},
        }
        subnet = f"10.{random.randrange(60, 250)}.0.0/16"
        self.daemon = Daemon(place.folder / "thaw", registry, subnet=subnet, settings=settings)

    @property
    def client(self) -> Client:
        return self.daemon.client

    @property
    def logs(self) -> Path:
        return self.daemon.logs

    @property
    def cgroup_parent(self) -> str:
        return self._place.cgroup_parent

    netns = Path("/proc/self/ns/net")

    def start(self) -> None:
        """Start, and wait until a pod can be run; a first start bakes."""
        self.daemon.start()
        until("the base snapshot is there", self.ready, 600)

    def ready(self) -> bool:
        """Whether all conditions of its status are true."""
        return all(condition.status for condition in self.client.status().status.conditions)

    def stop(self) -> list[str]:
        """End it and its pods; what is left then."""
        left = self.daemon.destroy()
        if left:
            self.daemon.erase()
        return left

    def pool(self) -> thaw_pb2.PoolShape:
        """The state of the default shape's pool."""
        return self.client.pool().shapes[0]

    def settle(self) -> None:
        deadline = time.monotonic() + REFILL_SECONDS
        # After a restore that failed the pool tries again by itself.
        while (shape := self.pool()).ready < shape.size:
            if time.monotonic() > deadline:
                raise Internal(f"the pool is not full: {shape.ready} wait; {shape.error}")
            time.sleep(0.02)

    def pids(self) -> list[int]:
        found = leaks.processes(str(self.daemon.folder), f"thaw-{self.daemon.instance}")
        return [int(line.split()[1]) for line in found]

    def daemon_pid(self) -> int:
        assert self.daemon.process is not None
        return self.daemon.process.pid

    def pod_pids(self, pod_id: str) -> tuple[list[int], list[int]]:
        record = read_vm_folder(self.daemon.state / "vms" / self.daemon.vm_of(pod_id)).vm
        if record is None:
            raise Internal(f"pod {pod_id} has no VM record")
        return [record.shim_pid], [record.qemu_pid]

    @contextlib.contextmanager
    def cni(self) -> Iterator[None]:
        """Pods that come meanwhile are connected by CNI instead of the built-in network."""
        config = cni_config(
            self._place.bridge(self.name), "10.252.0.0/16", self._place.folder / "thaw-ipam"
        )
        file = self._cni / "10-bench.conflist"
        file.with_suffix(".new").write_text(json.dumps(config))
        file.with_suffix(".new").rename(file)
        try:
            yield
        finally:
            file.unlink()

    def restart(self) -> float:
        """Kill the daemon and start it; milliseconds until it is ready and knows its pods."""
        pods = len(self._ready_pods())
        self.daemon.kill()
        begun = time.perf_counter()
        self.daemon.spawn()

        def back() -> bool:
            return self.daemon.answers() and self.ready() and len(self._ready_pods()) == pods

        until(f"thawd is back with {pods} pods", back, 120)
        return (time.perf_counter() - begun) * 1000

    def _ready_pods(self) -> list[v1_pb2.PodSandbox]:
        return [pod for pod in self.client.pods() if pod.state == v1_pb2.SANDBOX_READY]
