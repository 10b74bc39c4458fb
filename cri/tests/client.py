"""A client of a daemon whose shims are fakes, over a real gRPC connection."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from cri.api import v1_pb2 as v1
from cri.tests.fakes import FakeShim, World


@dataclass
class Client:
    world: World
    runtime: Any
    image: Any
    thaw: Any
    logs: Path

    def sandbox(self, name: str = "web", attempt: int = 0) -> v1.PodSandboxConfig:
        return v1.PodSandboxConfig(
            metadata=v1.PodSandboxMetadata(
                name=name, uid="u", namespace="default", attempt=attempt
            ),
            log_directory=str(self.logs),
            labels={"app": name},
        )

    async def run(self, name: str = "web") -> str:
        request = v1.RunPodSandboxRequest(config=self.sandbox(name))
        return str((await self.runtime.RunPodSandbox(request)).pod_sandbox_id)

    def config(self, name: str = "c", **more: Any) -> v1.ContainerConfig:
        return v1.ContainerConfig(
            metadata=v1.ContainerMetadata(name=name),
            image=v1.ImageSpec(image="docker.io/library/shell:1"),
            log_path=f"{name}.log",
            **more,
        )

    async def create(self, pod: str, name: str = "c", **more: Any) -> str:
        request = v1.CreateContainerRequest(pod_sandbox_id=pod, config=self.config(name, **more))
        return str((await self.runtime.CreateContainer(request)).container_id)

    async def status(self, container: str) -> v1.ContainerStatus:
        request = v1.ContainerStatusRequest(container_id=container)
        found: v1.ContainerStatus = (await self.runtime.ContainerStatus(request)).status
        return found

    def shim(self, pod: str) -> FakeShim:
        return self.world.zygote.shims[self.world.daemon.index.pods.find(pod).vm.id]


def stub(module: Any, service: str, channel: grpc.aio.Channel) -> Any:
    """A stub of the generated module, which has no types."""
    return getattr(module, f"{service}Stub")(channel)


async def refused(call: Any, code: grpc.StatusCode, text: str = "") -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() == code, caught.value.details()
    assert text in (caught.value.details() or "")
