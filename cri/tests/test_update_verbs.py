"""The verbs that change a container's or a pod's resources, over a real gRPC connection."""

from __future__ import annotations

from typing import Any

import grpc
import grpc.aio
import pytest

from cri.api import v1_pb2 as v1
from cri.tests.client import Client
from hostlib.errors import FailedPrecondition

Code = grpc.StatusCode


async def update(client: Client, container: str, **fields: Any) -> None:
    await client.runtime.UpdateContainerResources(
        v1.UpdateContainerResourcesRequest(
            container_id=container, linux=v1.LinuxContainerResources(**fields)
        )
    )


async def resources(client: Client, container: str) -> v1.LinuxContainerResources:
    request = v1.ContainerStatusRequest(container_id=container)
    answer = await client.runtime.ContainerStatus(request)
    found: v1.LinuxContainerResources = answer.status.resources.linux
    return found


async def test_an_update_is_told_to_the_guest_and_reported(client: Client) -> None:
    pod = await client.run()
    asked = v1.LinuxContainerResources(memory_limit_in_bytes=1 << 26, oom_score_adj=3)
    container = await client.create(pod, linux=v1.LinuxContainerConfig(resources=asked))
    await update(client, container, cpu_quota=50_000, cpu_period=100_000)
    (shim,) = client.world.zygote.shims.values()
    name, _, told, score, cpus = next(each for each in shim.calls if each[0] == "container_update")
    assert told == {
        "memory": {"limit": 1 << 26},
        "cpu": {"quota": 50_000, "period": 100_000, "cpus": "0,1,2,3,4,5,6,7"},
    }
    assert (name, score, cpus) == ("container_update", 3, "")
    asked.cpu_quota, asked.cpu_period = 50_000, 100_000
    assert await resources(client, container) == asked
    shim.fail["container_update"] = FailedPrecondition("the guest refuses")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await update(client, container, cpu_quota=60_000)
    assert caught.value.code() is Code.FAILED_PRECONDITION
    assert await resources(client, container) == asked
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await update(client, container, memory_limit_in_bytes=1 << 40)
    assert caught.value.code() is Code.RESOURCE_EXHAUSTED


async def test_a_pods_sum_is_recorded_and_bounds_its_guest(client: Client) -> None:
    pod = await client.run()
    request = v1.UpdatePodSandboxResourcesRequest(
        pod_sandbox_id=pod, resources=v1.LinuxContainerResources(memory_limit_in_bytes=1 << 27)
    )
    await client.runtime.UpdatePodSandboxResources(request)
    (shim,) = client.world.zygote.shims.values()
    assert shim.pod is not None
    assert shim.pod.linux["resources"] == {"memory_limit_in_bytes": str(1 << 27)}
    assert ("pod_limit", 1 << 27) in shim.calls
    # A container without a limit: what the pod's others may have is no bound any more.
    container = await client.create(pod)
    assert shim.calls.index(("pod_limit", 0)) < [each[0] for each in shim.calls].index(
        "container_create"
    )
    await client.runtime.RemoveContainer(v1.RemoveContainerRequest(container_id=container))
    assert shim.calls[-1] == ("pod_limit", 1 << 27)
    request.resources.memory_limit_in_bytes = 1 << 40
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await client.runtime.UpdatePodSandboxResources(request)
    assert caught.value.code() is Code.RESOURCE_EXHAUSTED
