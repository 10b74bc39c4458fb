"""What pods and containers use, as CRI tells it, against what is done in guest and host."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterable

import httpx

from cri.api import v1_pb2
from e2e.harness.crictl import Crictl
from e2e.harness.daemon import Daemon
from e2e.harness.pods import Container, Pod
from e2e.harness.refs import SHELL, SLEEP
from e2e.harness.registry import free_port
from e2e.harness.waiting import until

MIB = 2**20
Metrics = dict[str, dict[tuple[str, ...], int]]


def stats_of(container: Container) -> v1_pb2.ContainerStats:
    request = v1_pb2.ContainerStatsRequest(container_id=container.id)
    client = container.pod.daemon.client
    return client.runtime("ContainerStats", request, v1_pb2.ContainerStatsResponse).stats


def stats_of_pod(pod: Pod) -> v1_pb2.LinuxPodSandboxStats:
    request = v1_pb2.PodSandboxStatsRequest(pod_sandbox_id=pod.id)
    client = pod.daemon.client
    return client.runtime("PodSandboxStats", request, v1_pb2.PodSandboxStatsResponse).stats.linux


def all_pods(daemon: Daemon) -> dict[str, v1_pb2.LinuxPodSandboxStats]:
    request = v1_pb2.ListPodSandboxStatsRequest()
    found = daemon.client.runtime(
        "ListPodSandboxStats", request, v1_pb2.ListPodSandboxStatsResponse
    )
    return {each.attributes.id: each.linux for each in found.stats}


def metrics_of(pod: Pod) -> tuple[Metrics, Metrics]:
    """Of the pod's only container and of the pod itself, by name and the values of own labels."""
    request = v1_pb2.ListPodSandboxMetricsRequest()
    client = pod.daemon.client
    answer = client.runtime("ListPodSandboxMetrics", request, v1_pb2.ListPodSandboxMetricsResponse)
    [found] = [each for each in answer.pod_metrics if each.pod_sandbox_id == pod.id]
    [inside] = found.container_metrics
    return by_name(inside.metrics), by_name(found.metrics)


def by_name(metrics: Iterable[v1_pb2.Metric]) -> Metrics:
    found: Metrics = {}
    for each in metrics:
        found.setdefault(each.name, {})[tuple(each.label_values[5:])] = each.value.value
    return found


def limited(mib: int) -> v1_pb2.LinuxContainerConfig:
    return v1_pb2.LinuxContainerConfig(
        resources=v1_pb2.LinuxContainerResources(
            memory_limit_in_bytes=mib * MIB, cpu_quota=25_000, cpu_period=100_000
        )
    )


def test_processors_memory_disk_and_processes_are_what_a_container_does(daemon: Daemon) -> None:
    pod = Pod.run(daemon)
    quiet = pod.start(SHELL, SLEEP, name="quiet")
    busy = pod.start(SHELL, SLEEP, name="busy", linux=limited(96))
    before, idle = stats_of(busy), stats_of(quiet)
    assert before.memory.available_bytes.value <= 96 * MIB - before.memory.working_set_bytes.value
    assert idle.memory.available_bytes.value == 0
    inodes = before.writable_layer.inodes_used.value

    # Files written, and files in memory that nobody reads again.
    busy.sh("mkdir /work && for i in $(seq 20); do echo $i > /work/$i; done")
    busy.sh("dd if=/dev/zero of=/work/big bs=1M count=24 && sync && sync")
    busy.sh("for i in 1 2 3; do sleep 1000 >/dev/null 2>&1 & done")
    # A quarter of a processor is what it may have, and what it takes.
    busy.sh("(while :; do :; done) >/dev/null 2>&1 &")
    time.sleep(1.5)
    first = stats_of(busy)
    time.sleep(2.5)
    after = stats_of(busy)

    layer = after.writable_layer
    assert 24 * MIB <= layer.used_bytes.value < 26 * MIB
    assert 22 <= layer.inodes_used.value - inodes <= 26
    assert idle.writable_layer.fs_id == layer.fs_id
    assert stats_of(quiet).writable_layer.used_bytes.value < MIB

    memory = after.memory
    assert memory.usage_bytes.value >= 24 * MIB
    # What was written once and is on the disk is no part of the working set.
    assert 0 < memory.working_set_bytes.value <= memory.usage_bytes.value - 12 * MIB
    assert memory.page_faults.value >= before.memory.page_faults.value > 0

    used = after.cpu.usage_core_nano_seconds.value - first.cpu.usage_core_nano_seconds.value
    window = after.cpu.timestamp - first.cpu.timestamp
    assert used > 0
    rate = after.cpu.usage_nano_cores.value
    assert abs(rate - used * 10**9 // window) < 10**7
    assert 0 < rate < 700_000_000
    assert after.cpu.psi.Some.Total > first.cpu.psi.Some.Total
    for kind in (after.memory, after.cpu, after.io):
        assert kind.psi.HasField("Some")
        assert kind.psi.HasField("Full")
    assert after.HasField("swap")

    whole = stats_of_pod(pod)
    # Two of the test's containers, three that sleep, one that is busy.
    assert whole.process.process_count.value == 6
    by_name = {each.attributes.metadata.name: each for each in whole.containers}
    assert set(by_name) == {"quiet", "busy"}

    # A container that ended is still told of, with what it wrote.
    daemon.client.stop_container(busy.id)
    ended = stats_of(busy)
    assert not ended.HasField("cpu")
    assert not ended.HasField("memory")
    assert ended.writable_layer.used_bytes.value >= 24 * MIB
    daemon.client.stop_pod(pod.id)
    assert stats_of(busy).writable_layer.used_bytes.value == ended.writable_layer.used_bytes.value


def test_a_pod_costs_what_its_vm_does_and_has_all_interfaces(daemon: Daemon) -> None:
    may = v1_pb2.LinuxSandboxSecurityContext(privileged=True)
    pod = Pod.run(daemon, linux=v1_pb2.LinuxPodSandboxConfig(security_context=may))
    box = pod.start(
        SHELL,
        SLEEP,
        linux=v1_pb2.LinuxContainerConfig(
            security_context=v1_pb2.LinuxContainerSecurityContext(privileged=True)
        ),
    )
    before = stats_of_pod(pod)
    # QEMU, its translated code and the shim are more than what the one process takes.
    inside = before.containers[0].memory.working_set_bytes.value
    assert before.memory.working_set_bytes.value > inside + 20 * MIB
    assert before.memory.usage_bytes.value >= before.memory.working_set_bytes.value
    assert before.cpu.usage_core_nano_seconds.value > 0

    box.sh("ip link add second0 type dummy && ip addr add 192.0.2.9/24 dev second0")
    box.sh("ip link set second0 up")
    box.sh("ping -c 3 -W 1 192.0.2.77 >/dev/null 2>&1 || true")
    box.sh("dd if=/dev/urandom of=/dev/shm/kept bs=1M count=30")
    # The host answers as much as it is sent.
    box.sh("ping -c 3 -s 20000 -W 5 $(ip route | sed -n 's/^default via \\([^ ]*\\).*/\\1/p')")
    after = stats_of_pod(pod)
    names = [each.name for each in after.network.interfaces]
    assert "eth0" in names
    assert "second0" in names
    assert "lo" not in names
    assert after.network.default_interface.name == "eth0"
    received = after.network.default_interface.rx_bytes.value
    assert received >= before.network.default_interface.rx_bytes.value + 60_000
    assert after.network.default_interface.tx_bytes.value >= 60_000
    # What the guest takes for itself is the host's loss.
    assert after.memory.usage_bytes.value > before.memory.usage_bytes.value + 20 * MIB
    assert after.cpu.usage_core_nano_seconds.value > before.cpu.usage_core_nano_seconds.value
    assert after.cpu.usage_nano_cores.value > 0


def test_a_pod_whose_guest_is_silent_holds_up_no_other(own: Daemon) -> None:
    deaf, pod = Pod.run(own), Pod.run(own)
    silent, box = deaf.start(SHELL, SLEEP), pod.start(SHELL, SLEEP)
    wrote = stats_of(silent).writable_layer.used_bytes.value
    record = own.records()[deaf.vm]
    os.kill(record["qemu_pid"], signal.SIGSTOP)
    try:
        for _ in range(2):
            found = all_pods(own)
            assert set(found) == {deaf.id, pod.id}
            assert found[pod.id].containers[0].attributes.id == box.id
            assert found[pod.id].containers[0].cpu.usage_core_nano_seconds.value > 0
            # Of the other what the host knows, and who is in it.
            assert found[deaf.id].memory.usage_bytes.value > 0
            assert not found[deaf.id].HasField("network")
            [its] = found[deaf.id].containers
            assert its.attributes.id == silent.id
            assert not its.HasField("cpu")
            assert its.writable_layer.used_bytes.value == wrote
    finally:
        os.kill(record["qemu_pid"], signal.SIGCONT)
    until("it answers again", lambda: all_pods(own)[deaf.id].HasField("network"))


def test_crictl_shows_stats_and_metrics(daemon: Daemon) -> None:
    crictl = Crictl(daemon)
    begun = time.time_ns()
    pod = Pod.run(daemon, "shown")
    box = pod.start(SHELL, SLEEP)
    stats = crictl.json("stats", "--id", box.id)["stats"]
    assert [each["attributes"]["id"] for each in stats] == [box.id]
    assert int(stats[0]["memory"]["workingSetBytes"]["value"]) > 0
    assert int(stats[0]["writableLayer"]["inodesUsed"]["value"]) > 0
    assert box.id[:13] in crictl.out("stats")
    found = crictl.json("statsp", "--id", pod.id)["stats"]
    assert [each["attributes"]["metadata"]["name"] for each in found] == ["shown"]
    assert found[0]["linux"]["network"]["defaultInterface"]["name"] == "eth0"
    described = json.loads(crictl.out("metricdescs"))["descriptors"]
    assert all(each["help"].endswith(".") for each in described)
    keys = {each["name"]: each["labelKeys"] for each in described}
    assert keys["container_memory_rss"] == ["pod", "namespace", "container", "id", "image"]
    [metrics] = json.loads(crictl.out("metricsp"))["podMetrics"]
    assert metrics["podSandboxId"] == pod.id
    [inside] = metrics["containerMetrics"]
    assert inside["containerId"] == box.id
    values = {each["name"]: each for each in inside["metrics"]}
    usage = values["container_memory_working_set_bytes"]
    assert usage["labelValues"] == ["shown", "e2e", "main", box.id, SHELL]
    assert int(usage["value"]["value"]) > 0
    assert usage["metricType"] == "GAUGE"
    for each in (*metrics["metrics"], *inside["metrics"]):
        assert len(each["labelValues"]) == len(keys[each["name"]]), each
        assert begun < int(each["timestamp"]) < time.time_ns()
    whole = {each["name"]: each for each in metrics["metrics"]}["container_memory_usage_bytes"]
    assert whole["labelValues"] == ["shown", "e2e", "", pod.id, ""]
    assert int(whole["value"]["value"]) > int(usage["value"]["value"])


def test_metrics_of_files_and_disks_are_what_the_guest_says(daemon: Daemon) -> None:
    pod = Pod.run(daemon)
    box = pod.start(SHELL, SLEEP)
    box.sh("dd if=/dev/zero of=/big bs=1M count=4 && sync")
    before, of_pod = metrics_of(pod)
    files = [("container_file_descriptors", int(box.sh("ls /proc/1/fd | wc -l")))]
    limit = box.sh("grep 'Max open files' /proc/1/limits").split()[3]
    files += [("container_ulimits_soft", int(limit)), ("container_sockets", 0)]
    for name, number in files:
        assert list(before[name].values()) == [number], name
    assert list(before["container_ulimits_soft"]) == [("max_open_files",)]
    assert before["container_hugetlb_usage_bytes"] == {("2MB",): 0}
    written = before["container_fs_writes_bytes_total"][("scratch",)]
    assert written >= 4 * MIB
    by_disk = before["container_blkio_device_usage_total"]
    assert sum(number for labels, number in by_disk.items() if labels[-1] == "Write") == written
    assert of_pod["container_fs_sector_writes_total"][("scratch",)] * 512 >= written
    box.sh("nc -l -p 9000 >/dev/null 2>&1 & until grep -q :2328 /proc/net/tcp*; do sleep 0.1; done")
    after, _ = metrics_of(pod)
    assert after["container_sockets"] == {(): 1}
    assert after["container_file_descriptors"][()] > before["container_file_descriptors"][()]


def test_prometheus_reads_the_daemons_own_metrics(make_daemon: Callable[..., Daemon]) -> None:
    listen = f"127.0.0.1:{free_port()}"
    daemon = make_daemon(settings={"metrics": {"listen": listen}}).start()
    daemon.client.pull_image(SHELL)
    pod = Pod.run(daemon)
    pod.start(SHELL, SLEEP)
    lines = httpx.get(f"http://{listen}/metrics", trust_env=False, timeout=60).text.splitlines()
    values = {
        name: float(number)
        for name, _, number in (line.rpartition(" ") for line in lines if line[:1] != "#")
    }
    assert values['thawd_rpc_duration_seconds_count{method="RunPodSandbox"}'] == 1
    assert values['thawd_pods{state="ready"}'] == 1
    assert values['thawd_containers{state="running"}'] == 1
    assert values["thawd_image_received_bytes_total"] > 100_000
    taken = [values[f'thawd_pool_takes_total{{result="{each}"}}'] for each in ("hit", "miss")]
    assert sum(taken) == 1
    restored = [
        value for name, value in values.items() if name.startswith("thawd_vm_restore_duration")
    ]
    assert sum(restored) > 0
