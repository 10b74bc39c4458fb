"""Pods on any node, asked for as a kubelet does; and how a sequence of calls is timed."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from bench.images import ONE_LAYER
from bench.node import Node
from cri.api import v1_pb2
from e2e.harness.pods import container
from e2e.harness.refs import SLEEP
from hostlib.errors import Internal

_numbers = itertools.count(1)
_lock = threading.Lock()

REMOVERS: Final = 4
"""How many pods are removed at a time, where nothing is measured."""


def config(node: Node) -> v1_pb2.PodSandboxConfig:
    """A sandbox configuration with a name of its own."""
    with _lock:
        name = f"pod{next(_numbers)}"
    return v1_pb2.PodSandboxConfig(
        metadata=v1_pb2.PodSandboxMetadata(name=name, uid=f"uid-{name}", namespace="bench"),
        hostname=name,
        log_directory=str(node.logs / name),
        linux=v1_pb2.LinuxPodSandboxConfig(cgroup_parent=node.cgroup_parent),
    )


@dataclass
class Pod:
    """A pod that was made."""

    node: Node
    id: str
    config: v1_pb2.PodSandboxConfig

    @classmethod
    def run(cls, node: Node) -> Pod:
        asked = config(node)
        return cls(node, node.client.run_pod(asked), asked)

    @classmethod
    def up(cls, node: Node, image: str = ONE_LAYER, command: Sequence[str] = SLEEP) -> Pod:
        """A pod with one container that runs."""
        pod = cls.run(node)
        pod.start(image, command)
        return pod

    @property
    def ip(self) -> str:
        return str(self.node.client.pod_status(self.id).status.network.ip)

    def create(self, image: str, command: Sequence[str] = (), name: str = "main") -> str:
        """Create a container; its id."""
        asked = container(image, command, name=name)
        return self.node.client.create_container(self.id, asked, self.config)

    def start(self, image: str, command: Sequence[str] = (), name: str = "main") -> str:
        """Create and start a container; its id."""
        made = self.create(image, command, name)
        self.node.client.start_container(made)
        return made

    def remove(self) -> None:
        self.node.client.stop_pod(self.id)
        self.node.client.remove_pod(self.id)


def true(node: Node, container_id: str) -> None:
    """ExecSync of true. Raises `Internal` where it fails."""
    answer = node.client.exec_sync(container_id, ["/bin/true"])
    if answer.exit_code != 0:
        raise Internal(f"true failed: {answer.stderr!r}")


def remove_all(pods: Iterable[Pod]) -> None:
    """Remove pods, some at a time."""
    with ThreadPoolExecutor(REMOVERS) as threads:
        list(threads.map(Pod.remove, pods))
