"""All that happens to a pod, verb by verb, for tests in which one of them breaks off or fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from cri.api import v1_pb2
from e2e.harness.daemon import Daemon
from e2e.harness.pods import Container, Pod
from e2e.harness.refs import SHELL, SLEEP
from e2e.harness.registry import free_port
from e2e.harness.volumes import Supplies
from hostlib.errors import ThawError

T = TypeVar("T")
Verb = Callable[[Callable[[], T]], T]


def once(verb: Callable[[], T]) -> T:
    """Carries a verb out, as it is."""
    return verb()


def live(daemon: Daemon, supplies: Supplies, do: Verb[object] = once) -> None:
    """The life of one pod with one container, which has all of the `supplies`. `do` carries out
    each verb, each of which can be repeated where it failed."""
    made: dict[str, Pod | Container] = {}

    def run() -> None:
        ports = [v1_pb2.PortMapping(container_port=80, host_port=free_port())]
        made["pod"] = Pod.run(daemon, "victim", port_mappings=ports)

    do(run)
    pod = made["pod"]
    assert isinstance(pod, Pod)
    resources = v1_pb2.LinuxContainerResources(cpu_shares=512)
    update_pod = v1_pb2.UpdatePodSandboxResourcesRequest(pod_sandbox_id=pod.id, resources=resources)
    do(
        lambda: daemon.client.runtime(
            "UpdatePodSandboxResources", update_pod, v1_pb2.UpdatePodSandboxResourcesResponse
        )
    )

    def start() -> None:
        container = pod.create(SHELL, SLEEP, mounts=supplies.mounts, devices=supplies.devices)
        try:
            daemon.client.start_container(container.id)
        except ThawError:
            # As the kubelet does: the next attempt is another container.
            daemon.client.remove_container(container.id)
            raise
        made["container"] = container

    do(start)
    container = made["container"]
    assert isinstance(container, Container)
    do(lambda: container.sh("cat /config/key; echo x > /empty/x; echo x > /host/x"))
    update = v1_pb2.UpdateContainerResourcesRequest(container_id=container.id, linux=resources)
    do(
        lambda: daemon.client.runtime(
            "UpdateContainerResources", update, v1_pb2.UpdateContainerResourcesResponse
        )
    )
    do(lambda: daemon.client.stop_container(container.id))
    do(lambda: daemon.client.remove_container(container.id))
    do(lambda: daemon.client.stop_pod(pod.id))
    do(lambda: daemon.client.remove_pod(pod.id))
