"""Stats and metrics over a real gRPC connection, with shims that say what a test wants."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc

from cri.api import v1_pb2 as v1
from cri.stats import collect
from cri.stats.family import LABELS
from cri.tests.client import Client, refused
from hostlib.errors import Unavailable

MIB = 2**20


def group(cpu_usec: int = 2_500_000, **more: Any) -> dict[str, Any]:
    return {
        "cpu": {"usage_usec": cpu_usec, "user_usec": cpu_usec, "system_usec": 0},
        "memory": {
            "current": 9 * MIB, "inactive_file": 2 * MIB, "anon": 5 * MIB, "file": 4 * MIB,
            "limit": 16 * MIB, "pgfault": 11, "pgmajfault": 3, "swap": 1,
        },
        "io": {"rbytes": 5, "wbytes": 6, "rios": 1, "wios": 2},
        "disks": {"8:16": [5, 6]},
        "huge": {"current": 2 * MIB, "max": 1},
        "tasks": 4,
        "tasks_limit": 100,
        "processes": 3,
        "pressure": {
            each: {
                kind: {"total": 3_000_000, "avg10": 1.0, "avg60": 2.0, "avg300": 3.0}
                for kind in ("some", "full")
            }
            for each in ("cpu", "memory", "io")
        },
        "upper": {"bytes": 4096, "inodes": 7},
        "open_files": {"all": 9, "sockets": 2},
        "open_files_limit": 1024,
        **more,
    }  # fmt: skip


def say(client: Client, pod: str, *containers: str) -> None:
    client.shim(pod).stats = {
        "pod": group(),
        "containers": {each: group() for each in containers},
        "interfaces": [
            {"name": name, "received": [1, 2, 3, 4], "sent": [5, 6, 7, 8]}
            for name in ("eth1", "eth0")
        ],
        "scratch": {
            "bytes": 1000, "bytes_free": 500, "inodes": 100, "inodes_free": 50,
            "io": [1, 2, 3, 4000, 5, 6, 7, 8000, 9, 10000, 11000],
        },
    }  # fmt: skip


async def running(client: Client, name: str = "web") -> tuple[str, str]:
    pod = await client.run(name)
    container = await client.create(pod)
    await client.runtime.StartContainer(v1.StartContainerRequest(container_id=container))
    say(client, pod, container)
    return pod, container


async def stats(client: Client, container: str) -> v1.ContainerStats:
    request = v1.ContainerStatsRequest(container_id=container)
    found: v1.ContainerStats = (await client.runtime.ContainerStats(request)).stats
    return found


async def test_a_container(client: Client) -> None:
    _, container = await running(client)
    found = await stats(client, container[:13])
    assert found.attributes.id == container
    assert found.attributes.metadata.name == "c"
    assert found.cpu.usage_core_nano_seconds.value == 2_500_000_000
    assert found.cpu.usage_nano_cores.value > 0
    assert found.cpu.psi.Some.Total == 3_000_000_000
    assert (found.cpu.psi.Full.Avg10, found.cpu.psi.Full.Avg300) == (1.0, 3.0)
    memory = found.memory
    assert memory.usage_bytes.value == 9 * MIB
    assert memory.working_set_bytes.value == 7 * MIB
    assert memory.available_bytes.value == 9 * MIB
    assert memory.rss_bytes.value == 5 * MIB
    assert (memory.page_faults.value, memory.major_page_faults.value) == (11, 3)
    assert memory.psi.HasField("Full")
    assert found.io.psi.Some.Avg60 == 2.0
    assert found.swap.swap_usage_bytes.value == 1
    assert found.writable_layer.used_bytes.value == 4096
    assert found.writable_layer.inodes_used.value == 7
    fs_info = await client.image.ImageFsInfo(v1.ImageFsInfoRequest())
    assert found.writable_layer.fs_id == fs_info.container_filesystems[0].fs_id


async def test_a_container_that_ended_answers_with_what_it_wrote(client: Client) -> None:
    pod, container = await running(client)
    client.shim(pod).exits(container, 0)
    for gone in (False, True):
        if gone:
            await client.runtime.StopPodSandbox(v1.StopPodSandboxRequest(pod_sandbox_id=pod))
        found = await stats(client, container)
        assert not found.HasField("cpu")
        assert not found.HasField("memory")
        assert found.writable_layer.used_bytes.value == 4096
        listed = await client.runtime.ListContainerStats(v1.ListContainerStatsRequest())
        assert [each.attributes.id for each in listed.stats] == [container]
    await refused(
        client.runtime.ContainerStats(v1.ContainerStatsRequest(container_id="f" * 64)),
        grpc.StatusCode.NOT_FOUND,
    )


async def test_a_pod(client: Client) -> None:
    pod, container = await running(client)
    request = v1.PodSandboxStatsRequest(pod_sandbox_id=pod)
    found = (await client.runtime.PodSandboxStats(request)).stats
    assert found.attributes.id == pod
    assert found.attributes.metadata.namespace == "default"
    linux = found.linux
    assert linux.network.default_interface.name == "eth0"
    assert [each.name for each in linux.network.interfaces] == ["eth1", "eth0"]
    assert linux.network.interfaces[0].rx_bytes.value == 1
    assert linux.network.interfaces[0].tx_errors.value == 7
    assert linux.process.process_count.value == 3
    assert [each.attributes.id for each in linux.containers] == [container]
    assert linux.cpu.psi.Some.Total == 3_000_000_000
    await client.runtime.StopPodSandbox(v1.StopPodSandboxRequest(pod_sandbox_id=pod))
    await refused(
        client.runtime.PodSandboxStats(request), grpc.StatusCode.FAILED_PRECONDITION, "not ready"
    )
    listed = await client.runtime.ListPodSandboxStats(v1.ListPodSandboxStatsRequest())
    assert not listed.stats


async def test_filters(client: Client) -> None:
    one, first = await running(client, "one")
    two, second = await running(client, "two")

    async def containers(**wanted: Any) -> list[str]:
        request = v1.ListContainerStatsRequest(filter=v1.ContainerStatsFilter(**wanted))
        found = await client.runtime.ListContainerStats(request)
        stream = v1.StreamContainerStatsRequest(filter=request.filter)
        told = [
            each.attributes.id
            async for message in client.runtime.StreamContainerStats(stream)
            for each in message.container_stats
        ]
        listed = [each.attributes.id for each in found.stats]
        assert told == listed
        return listed

    async def pods(**wanted: Any) -> list[str]:
        request = v1.ListPodSandboxStatsRequest(filter=v1.PodSandboxStatsFilter(**wanted))
        found = await client.runtime.ListPodSandboxStats(request)
        stream = v1.StreamPodSandboxStatsRequest(filter=request.filter)
        told = [
            each.attributes.id
            async for message in client.runtime.StreamPodSandboxStats(stream)
            for each in message.pod_sandbox_stats
        ]
        listed = [each.attributes.id for each in found.stats]
        assert told == listed
        return listed

    assert await containers() == [first, second]
    assert await containers(id=first[:20]) == [first]
    assert await containers(pod_sandbox_id=two) == [second]
    assert await containers(label_selector={"no": "where"}) == []
    assert await containers(id=first, pod_sandbox_id=two) == []
    assert await pods() == [one, two]
    assert await pods(id=two[:20]) == [two]
    assert await pods(label_selector={"app": "one"}) == [one]


async def test_a_silent_guest_costs_others_nothing(client: Client) -> None:
    quiet, its = await running(client, "quiet")
    broken, _ = await running(client, "broken")
    pod, container = await running(client)
    await stats(client, its)
    client.shim(quiet).silent = True
    client.shim(broken).fail["pod_stats"] = Unavailable("gone")
    listed = await client.runtime.ListPodSandboxStats(v1.ListPodSandboxStatsRequest())
    by_id = {each.attributes.id: each.linux for each in listed.stats}
    assert set(by_id) == {quiet, broken, pod}
    assert by_id[pod].containers[0].cpu.usage_core_nano_seconds.value
    assert not by_id[quiet].HasField("network")
    assert by_id[quiet].HasField("memory")
    silent = by_id[quiet].containers[0]
    assert not silent.HasField("cpu")
    assert silent.writable_layer.used_bytes.value == 4096
    assert container in {each.attributes.id for each in by_id[pod].containers}


async def test_pods_are_read_side_by_side_and_a_bounded_number_at_once(
    client: Client, monkeypatch: Any
) -> None:
    monkeypatch.setattr(collect, "AT_ONCE", 3)
    under_way = most = 0
    pods = [await client.run(f"pod{number}") for number in range(8)]
    for pod in pods:
        say(client, pod)
        shim = client.shim(pod)

        async def slow(shim: Any = shim) -> Any:
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            await asyncio.sleep(0.02)
            under_way -= 1
            return shim.stats

        shim.pod_stats = slow  # type: ignore[method-assign]
    listed = await client.runtime.ListPodSandboxStats(v1.ListPodSandboxStatsRequest())
    assert [each.attributes.id for each in listed.stats] == pods
    assert most == 3


async def test_many_who_ask_at_once_share_one_reading(client: Client) -> None:
    pod, _ = await running(client)
    shim = client.shim(pod)
    calls = shim.calls
    calls.clear()
    gate, asking = asyncio.Event(), asyncio.Event()
    daemon = client.world.daemon

    async def held() -> Any:
        calls.append(("pod_stats",))
        asking.set()
        await gate.wait()
        return shim.stats

    shim.pod_stats = held  # type: ignore[method-assign]
    found = daemon.index.pods.find(pod)
    asked = [asyncio.create_task(daemon.collector.read(found)) for _ in range(20)]
    await asking.wait()
    gate.set()
    readings = await asyncio.gather(*asked)
    assert len(calls) == 1
    assert all(each is readings[0] for each in readings)


async def test_metrics_fit_their_descriptors(client: Client) -> None:
    pod, container = await running(client)
    request = v1.ListMetricDescriptorsRequest()
    described = (await client.runtime.ListMetricDescriptors(request)).descriptors
    keys = {each.name: list(each.label_keys) for each in described}
    assert len(keys) == len(described)
    assert all(found[:5] == list(LABELS) for found in keys.values())
    assert LABELS == ("pod", "namespace", "container", "id", "image")
    answer = await client.runtime.ListPodSandboxMetrics(v1.ListPodSandboxMetricsRequest())
    [found] = answer.pod_metrics
    assert found.pod_sandbox_id == pod
    [inside] = found.container_metrics
    assert inside.container_id == container
    for each in (*found.metrics, *inside.metrics):
        assert len(each.label_values) == len(keys[each.name]), each.name
        assert each.timestamp > 0
    series = [(each.name, tuple(each.label_values)) for each in (*found.metrics, *inside.metrics)]
    assert len(series) == len(set(series))
    values = {each.name: each for each in inside.metrics}
    who = ["web", "default", "c", container, "docker.io/library/shell:1"]
    usage = values["container_cpu_usage_seconds_total"]
    assert list(usage.label_values) == [*who, "total"]
    assert (usage.value.value, usage.metric_type) == (2, v1.COUNTER)
    assert values["container_memory_working_set_bytes"].value.value == 7 * MIB
    assert values["container_memory_working_set_bytes"].metric_type == v1.GAUGE
    assert values["container_fs_usage_bytes"].value.value == 4096
    assert values["container_pressure_io_stalled_seconds_total"].value.value == 3
    moved = [each for each in inside.metrics if each.name == "container_blkio_device_usage_total"]
    assert [(list(each.label_values[5:]), each.value.value) for each in moved] == [
        (["8:16", "8", "16", "Read"], 5), (["8:16", "8", "16", "Write"], 6),
    ]  # fmt: skip
    for name, label, number in (
        ("container_file_descriptors", None, 9),
        ("container_sockets", None, 2),
        ("container_ulimits_soft", "max_open_files", 1024),
        ("container_hugetlb_usage_bytes", "2MB", 2 * MIB),
        ("container_hugetlb_failcnt", "2MB", 1),
    ):
        assert values[name].value.value == number, name
        assert list(values[name].label_values[5:]) == ([label] if label else [])
    disk = {
        each.name.removeprefix("container_fs_"): (each.value.value, each.metric_type)
        for each in found.metrics
        if each.name.startswith("container_fs_")
    }
    assert disk == {
        "reads_merged_total": (2, v1.COUNTER),
        "sector_reads_total": (3, v1.COUNTER),
        "read_seconds_total": (4, v1.COUNTER),
        "writes_merged_total": (6, v1.COUNTER),
        "sector_writes_total": (7, v1.COUNTER),
        "write_seconds_total": (8, v1.COUNTER),
        "io_current": (9, v1.GAUGE),
        "io_time_seconds_total": (10, v1.COUNTER),
        "io_time_weighted_seconds_total": (11, v1.COUNTER),
    }
    network = [
        each for each in found.metrics if each.name == "container_network_receive_bytes_total"
    ]
    assert [list(each.label_values) for each in network] == [
        ["web", "default", "", pod, "", "eth1"], ["web", "default", "", pod, "", "eth0"],
    ]  # fmt: skip
    # All that is described is told of a container with limits, as critest looks for it.
    unset = {
        "container_spec_cpu_period", "container_spec_cpu_quota", "container_spec_cpu_shares"
    }  # fmt: skip
    assert {each.name for each in (*found.metrics, *inside.metrics)} >= set(keys) - unset
    streamed = [
        each
        async for message in client.runtime.StreamPodSandboxMetrics(
            v1.StreamPodSandboxMetricsRequest()
        )
        for each in message.pod_sandbox_metrics
    ]
    assert [each.pod_sandbox_id for each in streamed] == [pod]
