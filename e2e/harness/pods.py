"""Pods and containers as a kubelet would ask for them, and what tests want to know of them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from cli import logfile
from cri.api import v1_pb2
from e2e.harness.daemon import Daemon
from e2e.harness.waiting import until

_numbers = itertools.count(1)


def sandbox(
    daemon: Daemon, name: str = "", *, log_directory: str | None = None, **fields: Any
) -> v1_pb2.PodSandboxConfig:
    """A sandbox configuration with a name of its own."""
    name = name or f"pod{next(_numbers)}"
    return v1_pb2.PodSandboxConfig(
        metadata=v1_pb2.PodSandboxMetadata(name=name, uid=f"uid-{name}", namespace="e2e"),
        hostname=fields.pop("hostname", name),
        log_directory=str(daemon.logs / name) if log_directory is None else log_directory,
        labels={"suite": "e2e"},
        **fields,
    )


def container(
    image: str,
    command: Sequence[str] = (),
    *,
    name: str = "main",
    env: Mapping[str, str] | None = None,
    **fields: Any,
) -> v1_pb2.ContainerConfig:
    """A container configuration."""
    return v1_pb2.ContainerConfig(
        metadata=v1_pb2.ContainerMetadata(name=name),
        image=v1_pb2.ImageSpec(image=image),
        command=list(command),
        envs=[v1_pb2.KeyValue(key=k, value=v.encode()) for k, v in (env or {}).items()],
        log_path=f"{name}.log",
        **fields,
    )


@dataclass
class Pod:
    """A pod that was made, with the daemon it is on."""

    daemon: Daemon
    id: str
    config: v1_pb2.PodSandboxConfig

    @classmethod
    def run(cls, daemon: Daemon, name: str = "", *, handler: str = "", **fields: Any) -> Pod:
        config = sandbox(daemon, name, **fields)
        return cls(daemon, daemon.client.run_pod(config, handler), config)

    @property
    def vm(self) -> str:
        return self.daemon.vm_of(self.id)

    @property
    def ip(self) -> str:
        return str(self.daemon.client.pod_status(self.id).status.network.ip)

    @property
    def state(self) -> int:
        return int(self.daemon.client.pod_status(self.id).status.state)

    def create(self, image: str, command: Sequence[str] = (), **fields: Any) -> Container:
        config = container(image, command, **fields)
        made = self.daemon.client.create_container(self.id, config, self.config)
        return Container(self, made, config)

    def start(self, image: str, command: Sequence[str] = (), **fields: Any) -> Container:
        made = self.create(image, command, **fields)
        self.daemon.client.start_container(made.id)
        return made

    def remove(self) -> None:
        self.daemon.client.stop_pod(self.id)
        self.daemon.client.remove_pod(self.id)

    def get(self, port: int = 80, path: str = "/") -> httpx.Response:
        """The answer to an HTTP GET at the pod's address, once something listens there."""
        url = f"http://{self.ip}:{port}{path}"

        def ask() -> httpx.Response | None:
            try:
                return httpx.get(url, trust_env=False, timeout=5)
            except httpx.TransportError:
                return None

        return until(f"{url} answers", ask)


@dataclass
class Container:
    """A container that was made."""

    pod: Pod
    id: str
    config: v1_pb2.ContainerConfig

    @property
    def log_file(self) -> Path:
        return Path(self.pod.config.log_directory) / self.config.log_path

    def status(self) -> v1_pb2.ContainerStatus:
        return self.pod.daemon.client.container_status(self.id)

    def sh(self, script: str, timeout: int = 60) -> str:
        """What a shell script says inside; AssertionError when it fails."""
        answer = self.pod.daemon.client.exec_sync(self.id, ["/bin/sh", "-c", script], timeout)
        assert answer.exit_code == 0, (script, answer.exit_code, answer.stdout, answer.stderr)
        return answer.stdout.decode().strip()

    def output(self, stream: str = "stdout") -> str:
        """What it wrote so far."""
        if not self.log_file.exists():
            return ""
        lines = logfile.read(str(self.log_file))
        return b"".join(line.content for line in lines if line.stream == stream).decode()

    def wait(self, timeout: float = 60) -> v1_pb2.ContainerStatus:
        """Its status once it ended."""
        until(
            "the container ends",
            lambda: self.status().state == v1_pb2.CONTAINER_EXITED,
            timeout,
        )
        return self.status()
