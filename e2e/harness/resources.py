"""Limits of pods and containers, as they are asked for, changed and found in force."""

from __future__ import annotations

from cri.api import v1_pb2
from e2e.harness.pods import Container, Pod
from hostlib import cgroup

Resources = v1_pb2.LinuxContainerResources


def limited(resources: Resources) -> v1_pb2.LinuxContainerConfig:
    return v1_pb2.LinuxContainerConfig(resources=resources)


def update(container: Container, **fields: object) -> None:
    request = v1_pb2.UpdateContainerResourcesRequest(
        container_id=container.id,
        linux=Resources(**fields),  # type: ignore[arg-type]
    )
    container.pod.daemon.client.runtime(
        "UpdateContainerResources", request, v1_pb2.UpdateContainerResourcesResponse
    )


def update_pod(pod: Pod, **fields: Resources) -> None:
    request = v1_pb2.UpdatePodSandboxResourcesRequest(pod_sandbox_id=pod.id, **fields)
    pod.daemon.client.runtime(
        "UpdatePodSandboxResources", request, v1_pb2.UpdatePodSandboxResourcesResponse
    )


def setting(container: Container, name: str) -> str:
    """What a file of the container's own cgroup holds."""
    return container.sh(f"cat /sys/fs/cgroup/{name}")


def in_force(container: Container) -> Resources:
    return container.status().resources.linux


def group_memory(pod: Pod) -> int:
    """The memory limit of the pod's group on the host."""
    tree = cgroup.detect()
    path = f"/thaw-{pod.daemon.instance}/thaw-{pod.vm}"
    folder = tree.folders(path)["unified" if tree.version == 2 else "memory"]
    return int(
        (folder / ("memory.max" if tree.version == 2 else "memory.limit_in_bytes")).read_text()
    )
