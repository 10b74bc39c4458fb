"""thawd's own parts: lists, look-ups, a pod's life, and its start beside many shims."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, cast

import psutil

from bench.scale.figure import Figure, seconds_of, used
from cri import recover
from cri.api import v1_pb2 as v1
from cri.config import Config
from cri.daemon import Daemon
from cri.index import POD_UID, Container, Pod
from cri.service import (
    container_create,
    container_list,
    container_start,
    container_status,
    sandbox_list,
    sandbox_remove,
    sandbox_run,
    sandbox_status,
    sandbox_stop,
)
from cri.shims import Shims
from cri.snapshots import Snapshots
from cri.tests.fakes import FakeImages, FakeNetwork, World, make_world
from cri.vms import Vm
from hostlib import ids
from shim import records
from shim.records import (
    ContainerMetadata,
    ContainerRecord,
    ImageRecord,
    PodMetadata,
    PodNetworkRecord,
    PodRecord,
    VMRecord,
)

_MIB: Final = 1024 * 1024
_KUBELETS_MOST: Final = 16 * _MIB
"""Bytes of an answer that the kubelet takes (its gRPC client's maxMsgSize)."""

ANNOTATIONS: Final = {
    "kubernetes.io/config.seen": "2026-01-01T00:00:00.000000000Z",
    "kubernetes.io/config.source": "api",
}


def _labels(number: int) -> dict[str, str]:
    return {
        "app": "web",
        "pod-template-hash": "5d4f8c7b9",
        "io.kubernetes.pod.name": f"web-5d4f8c7b9-{number:05}",
        "io.kubernetes.pod.namespace": "default",
        POD_UID: f"00000000-0000-4000-8000-{number:012}",
    }


def a_pod(number: int) -> tuple[PodRecord, ContainerRecord]:
    """A pod with one container, as the kubelet asks for it."""
    labels = _labels(number)
    metadata = PodMetadata(labels["io.kubernetes.pod.name"], labels[POD_UID], "default")
    network = PodNetworkRecord(ips=(f"10.88.{number // 256}.{number % 256}",), cni={"kind": "fake"})
    pod = PodRecord(
        ids.new_object_id(), metadata, 1, labels, ANNOTATIONS, network=network,
        config={"metadata": {"name": metadata.name}, "labels": labels},
    )  # fmt: skip
    container = ContainerRecord(
        ids.new_object_id(), pod.id, ContainerMetadata("web"), 1,
        ImageRecord("docker.io/library/nginx:1", "sha256:" + "1" * 64),
        {**labels, "io.kubernetes.container.name": "web"}, ANNOTATIONS, state="running",
    )  # fmt: skip
    return pod, container


def _crowd(daemon: Daemon, count: int) -> list[tuple[PodRecord, ContainerRecord]]:
    made = [a_pod(number) for number in range(count)]
    for pod, container in made:
        vm_id = ids.new_vm_id()
        folder, netns = daemon.vms_folder / vm_id, daemon.netns_folder / vm_id
        daemon.add_pod(Pod(pod, Vm(vm_id, folder, netns, "1x2048", "key", None)))
        daemon.index.containers.add(Container(container))
        records.scratch_disk(daemon.scratch_folder, vm_id).touch()
    return made


def lists(count: int, folder: Path) -> list[Figure]:
    """Lists, look-ups and events with `count` pods in the index."""

    async def work() -> list[Figure]:
        process = psutil.Process()
        daemon = make_world(folder).daemon
        before = process.memory_info().rss
        made = _crowd(daemon, count)
        everything, all_containers = v1.ListPodSandboxRequest(), v1.ListContainersRequest()
        pods = (await sandbox_list.run(daemon, everything)).SerializeToString()
        containers = (await container_list.run(daemon, all_containers)).SerializeToString()
        grown = process.memory_info().rss - before

        async def list_all() -> None:
            (await sandbox_list.run(daemon, everything)).SerializeToString()
            (await container_list.run(daemon, all_containers)).SerializeToString()

        pod, container = made[count // 2]
        selector = {POD_UID: pod.metadata.uid}
        by_uid = v1.ListContainersRequest(filter=v1.ContainerFilter(label_selector=selector))
        exited = records.to_dict(replace(container, state="exited"))
        vm_id = daemon.index.pods.find(pod.id).vm.id
        gone = v1.StopPodSandboxRequest(pod_sandbox_id=ids.new_object_id())

        async def ask() -> None:
            assert len((await container_list.run(daemon, by_uid)).containers) == 1

        async def tell() -> None:
            daemon.handle_event(vm_id, {"event": "container.exited", "container": exited})

        async def miss() -> None:
            await sandbox_stop.run(daemon, gone)

        each = max(len(pods), len(containers)) / count
        return [
            Figure(
                "list of all, pod and container", await seconds_of(list_all, 10) * 1e6 / count, "us"
            ),
            Figure("list of one pod's containers", await seconds_of(ask, 200) * 1e6, "us"),
            Figure("event of a shim", await seconds_of(tell, 200) * 1e6, "us"),
            Figure("call for a pod that is gone", await seconds_of(miss, 200) * 1e6, "us"),
            Figure("bytes in a list", each, "bytes"),
            Figure("thawd's memory", grown / count / 1024, "KiB"),
        ]

    return asyncio.run(work())


def lives(count: int, folder: Path) -> list[Figure]:
    """One pod's life through all its calls, beside `count` others."""

    async def work() -> list[Figure]:
        world = make_world(folder)
        _crowd(world.daemon, count)
        await world.daemon.snapshots.ensure("1x2048")
        figure = Figure(
            "a pod's life, all calls", await seconds_of(lambda: _life(world), 10) * 1e3, "ms"
        )
        await world.daemon.close()
        return [figure]

    return asyncio.run(work())


async def _life(world: World) -> None:
    daemon = world.daemon
    sandbox = v1.PodSandboxConfig(
        metadata=v1.PodSandboxMetadata(name="one", uid="one", namespace="default"),
        labels=_labels(10**6),
    )
    answer = await sandbox_run.run(daemon, v1.RunPodSandboxRequest(config=sandbox))
    pod_id = answer.pod_sandbox_id
    config = v1.ContainerConfig(
        metadata=v1.ContainerMetadata(name="web"),
        image=v1.ImageSpec(image="docker.io/library/shell:1"),
    )
    request = v1.CreateContainerRequest(
        pod_sandbox_id=pod_id, config=config, sandbox_config=sandbox
    )
    container_id = (await container_create.run(daemon, request)).container_id
    await container_start.run(daemon, v1.StartContainerRequest(container_id=container_id))
    await container_status.run(daemon, v1.ContainerStatusRequest(container_id=container_id))
    await sandbox_status.run(daemon, v1.PodSandboxStatusRequest(pod_sandbox_id=pod_id))
    await sandbox_stop.run(daemon, v1.StopPodSandboxRequest(pod_sandbox_id=pod_id))
    await sandbox_remove.run(daemon, v1.RemovePodSandboxRequest(pod_sandbox_id=pod_id))


def adoption(count: int, folder: Path) -> list[Figure]:
    """A start beside `count` shims that live in another process and answer on real sockets."""
    config = Config(root=folder / "root", state=folder / "state")
    for each in (config.root / "scratch", config.state / "vms", config.state / "netns"):
        each.mkdir(parents=True)
    for number in range(count):
        vm_id = ids.new_vm_id()
        home = config.state / "vms" / vm_id
        home.mkdir()
        pod, container = a_pod(number)
        shape = {"vcpus": 1, "memory_mib": 2048}
        for record in (VMRecord(vm_id, 0, 0, "key", shape, state="running"), pod, container):
            records.write(home, record)
    argv = [sys.executable, "-m", "bench.scale.shims", str(config.state / "vms")]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as shims:
        assert shims.stdout is not None
        assert shims.stdout.readline() == b"ready\n"
        found = asyncio.run(_adopt(config, count))
        shims.communicate()
    return found


async def _adopt(config: Config, count: int) -> list[Figure]:
    shims = Shims(config, cast("Any", None))
    network = FakeNetwork()
    daemon = Daemon(
        config, cast("Any", FakeImages()), network, shims, Snapshots(config.state, shims)
    )
    before, begun, started = len(os.listdir("/proc/self/fd")), used(), time.monotonic()
    recovered = await recover.recover(daemon)
    took, waited = used() - begun, time.monotonic() - started
    assert (recovered.pods, recovered.lost) == (count, 0)
    assert all(pod.vm.shim is not None for pod in daemon.index.pods), "a shim was not adopted"
    # RAM is held once, whatever the number of those that have it.
    descriptors = len(os.listdir("/proc/self/fd")) - before - 1
    await daemon.close()
    return [
        Figure("adoption", took * 1e3 / count, "ms"),
        Figure("adoption, time that passes", waited * 1e3 / count, "ms of time"),
        Figure("thawd's open files", descriptors / count, "files"),
    ]
