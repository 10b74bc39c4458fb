"""What is asked for is told again, field by field; cri/api/coverage.toml names these tests."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cri.api import v1_pb2 as v1
from e2e.harness.daemon import Daemon
from e2e.harness.pods import Container, Pod, container, sandbox
from e2e.harness.refs import SHELL, SLEEP, WEBAPP
from e2e.harness.waiting import until
from hostlib import errors

DNS = v1.DNSConfig(servers=["192.0.2.53"], searches=["a.test", "b.test"], options=["ndots:3"])


def pod_status(daemon: Daemon, pod_id: str, *, verbose: bool = False) -> Any:
    return daemon.client.pod_status(pod_id, verbose=verbose)


def listed(daemon: Daemon, **fields: Any) -> list[str]:
    request = v1.ListPodSandboxRequest(filter=v1.PodSandboxFilter(**fields))
    answer = daemon.client.runtime("ListPodSandbox", request, v1.ListPodSandboxResponse)
    return sorted(item.id for item in answer.items)


def containers(daemon: Daemon, **fields: Any) -> list[str]:
    request = v1.ListContainersRequest(filter=v1.ContainerFilter(**fields))
    answer = daemon.client.runtime("ListContainers", request, v1.ListContainersResponse)
    return sorted(item.id for item in answer.containers)


def test_a_pod_sandbox(daemon: Daemon) -> None:
    config = sandbox(daemon, "fields", hostname="other", dns_config=DNS)
    config.metadata.attempt = 3
    config.labels["tier"] = "back"
    config.annotations["note"] = "kept"
    begun = time.time_ns()
    pod = Pod(daemon, daemon.client.run_pod(config, "thaw"), config)
    answer = pod_status(daemon, pod.id, verbose=True)
    status = answer.status
    assert status.id == pod.id
    assert len(pod.id) == 64
    asked = status.metadata
    assert (asked.name, asked.uid, asked.namespace) == ("fields", "uid-fields", "e2e")
    assert asked.attempt == 3
    assert status.state == v1.SANDBOX_READY
    assert begun < status.created_at < time.time_ns()
    assert status.network.ip.count(".") == 3
    assert dict(status.labels) == {"suite": "e2e", "tier": "back"}
    assert dict(status.annotations) == {"note": "kept"}
    assert status.runtime_handler == "thaw"
    assert status.linux.namespaces.HasField("options")
    assert json.loads(answer.info["info"])["pid"] > 0
    assert not pod_status(daemon, pod.id).info
    (item,) = daemon.client.pods()
    for name in ("id", "metadata", "state", "created_at", "labels", "annotations"):
        assert getattr(item, name) == getattr(status, name), name
    assert item.runtime_handler == "thaw"
    inside = pod.start(SHELL, SLEEP)
    assert inside.sh("hostname") == "other"
    assert inside.sh("cat /etc/resolv.conf").split("\n") == [
        "search a.test b.test",
        "nameserver 192.0.2.53",
        "options ndots:3",
    ]
    answer = pod_status(daemon, pod.id)
    assert [each.id for each in answer.containers_statuses] == [inside.id]
    assert answer.containers_statuses[0].state == v1.CONTAINER_RUNNING
    assert status.created_at < answer.timestamp < time.time_ns()
    assert inside.log_file.parent == daemon.logs / "fields"
    assert inside.log_file.exists()
    again = sandbox(daemon, "fields")
    again.metadata.attempt = 4
    assert daemon.client.run_pod(again) != pod.id
    daemon.client.stop_pod(pod.id)
    assert pod.state == v1.SANDBOX_NOTREADY
    assert {each.id: each.state for each in daemon.client.pods()}[pod.id] == v1.SANDBOX_NOTREADY


def test_stop_and_remove_take_the_id_that_is_named(daemon: Daemon) -> None:
    first, second = Pod.run(daemon), Pod.run(daemon)
    inside = first.start(SHELL, SLEEP, name="a"), first.create(SHELL, SLEEP, name="b")
    daemon.client.stop_container(inside[0].id)
    assert inside[0].status().state == v1.CONTAINER_EXITED
    daemon.client.remove_container(inside[1].id)
    assert containers(daemon) == [inside[0].id]
    daemon.client.stop_pod(first.id)
    assert (first.state, second.state) == (v1.SANDBOX_NOTREADY, v1.SANDBOX_READY)
    daemon.client.remove_pod(first.id)
    assert listed(daemon) == [second.id]
    assert containers(daemon) == []


def test_filters(daemon: Daemon) -> None:
    red = Pod.run(daemon)
    config = sandbox(daemon)
    config.labels["colour"] = "blue"
    blue = Pod(daemon, daemon.client.run_pod(config), config)
    runs = red.start(SHELL, SLEEP, name="runs", labels={"colour": "green"})
    made = blue.create(SHELL, SLEEP, name="made")
    both = sorted([red.id, blue.id])
    assert listed(daemon) == both
    assert listed(daemon, id=red.id) == [red.id]
    assert listed(daemon, label_selector={"colour": "blue"}) == [blue.id]
    daemon.client.stop_pod(blue.id)
    ready, ended = v1.SANDBOX_READY, v1.SANDBOX_NOTREADY
    assert listed(daemon, state=v1.PodSandboxStateValue(state=ready)) == [red.id]
    assert listed(daemon, state=v1.PodSandboxStateValue(state=ended)) == [blue.id]
    assert len(containers(daemon)) == 2
    assert containers(daemon, id=made.id) == [made.id]
    assert containers(daemon, pod_sandbox_id=red.id) == [runs.id]
    assert containers(daemon, label_selector={"colour": "green"}) == [runs.id]
    running = v1.ContainerStateValue(state=v1.CONTAINER_RUNNING)
    assert containers(daemon, state=running) == [runs.id]
    created = v1.ContainerStateValue(state=v1.CONTAINER_CREATED)
    assert runs.id not in containers(daemon, state=created)


def test_a_container(daemon: Daemon) -> None:
    pod = Pod.run(daemon)
    image_id = daemon.client.pull_image(SHELL)
    config = container(
        SHELL,
        ["/bin/sh", "-c"],
        args=['echo "$0 $PWD $WORD"; exit 7', "zero"],
        env={"WORD": "said"},
        working_dir="/etc",
        labels={"a": "b"},
        annotations={"c": "d"},
        stop_signal=v1.SIGNAL_SIGUSR1,
    )
    config.image.annotations["e"] = "f"
    config.metadata.attempt = 2
    config.mounts.add(container_path="/data", host_path=str(daemon.logs), readonly=True)
    config.log_path = "main/2.log"
    begun = time.time_ns()
    made = daemon.client.create_container(pod.id, config, pod.config)
    status = daemon.client.container_status(made)
    assert (status.id, status.state) == (made, v1.CONTAINER_CREATED)
    assert (status.metadata.name, status.metadata.attempt) == ("main", 2)
    assert begun < status.created_at < time.time_ns()
    assert (status.started_at, status.finished_at, status.reason) == (0, 0, "")
    assert status.image.image == SHELL
    assert status.image.user_specified_image == SHELL
    assert dict(status.image.annotations) == {"e": "f"}
    assert (status.image_ref, status.image_id) == (image_id, image_id)
    assert dict(status.labels) == {"a": "b"}
    assert dict(status.annotations) == {"c": "d"}
    assert status.log_path == str(daemon.logs / pod.config.metadata.name / "main/2.log")
    assert [each.container_path for each in status.mounts] == ["/data"]
    assert status.mounts[0].host_path == str(daemon.logs)
    assert status.mounts[0].readonly
    assert status.stop_signal == v1.SIGNAL_SIGUSR1
    daemon.client.start_container(made)
    status = Container(pod, made, config).wait()
    # Its end may be told before the answer to its start.
    assert status.created_at < status.started_at <= status.finished_at < time.time_ns()
    assert (status.exit_code, status.reason) == (7, "Error")
    log = (daemon.logs / pod.config.metadata.name / "main/2.log").read_text()
    assert log.endswith("stdout F zero /etc said\n")
    (item,) = daemon.client.containers()
    for name in ("id", "metadata", "state", "created_at", "labels", "annotations", "image_ref"):
        assert getattr(item, name) == getattr(status, name), name
    assert (item.pod_sandbox_id, item.image_id) == (pod.id, image_id)
    assert item.image == status.image
    request = v1.ContainerStatusRequest(container_id=made, verbose=True)
    answer = daemon.client.runtime("ContainerStatus", request, v1.ContainerStatusResponse)
    assert json.loads(answer.info["info"])["sandboxID"] == pod.id
    request.verbose = False
    answer = daemon.client.runtime("ContainerStatus", request, v1.ContainerStatusResponse)
    assert not answer.info


def test_a_container_that_cannot_start_has_a_message(daemon: Daemon) -> None:
    pod = Pod.run(daemon)
    made = pod.create(SHELL, ["/none/such"])
    with pytest.raises(errors.ThawError):
        daemon.client.start_container(made.id)
    status = made.status()
    assert (status.state, status.exit_code) == (v1.CONTAINER_EXITED, 128)
    assert status.reason == "StartError"
    assert "/none/such" in status.message


def test_exec_sync(daemon: Daemon) -> None:
    inside = Pod.run(daemon).start(SHELL, SLEEP)
    script = "echo out; echo err >&2; exit 3"
    request = v1.ExecSyncRequest(container_id=inside.id, cmd=["/bin/sh", "-c", script])
    answer = daemon.client.runtime("ExecSync", request, v1.ExecSyncResponse)
    assert (answer.stdout, answer.stderr, answer.exit_code) == (b"out\n", b"err\n", 3)
    request = v1.ExecSyncRequest(container_id=inside.id, cmd=["/bin/sleep", "60"], timeout=1)
    # Not the client's own.
    with pytest.raises(errors.DeadlineExceeded, match="timed out"):
        daemon.client.runtime("ExecSync", request, v1.ExecSyncResponse, 120)


def test_images(daemon: Daemon) -> None:
    image_id = daemon.client.pull_image(WEBAPP)
    request = v1.ImageStatusRequest(image=v1.ImageSpec(image=WEBAPP), verbose=True)
    answer = daemon.client.image("ImageStatus", request, v1.ImageStatusResponse)
    image = answer.image
    assert image.id == image_id
    assert WEBAPP in image.repo_tags
    assert image.repo_digests[0].startswith(WEBAPP.removesuffix(":latest") + "@sha256:")
    assert image.size > 1_000_000
    assert image.username == "app"
    assert image.spec.image
    assert "info" in answer.info
    request.verbose = False
    assert not daemon.client.image("ImageStatus", request, v1.ImageStatusResponse).info
    only = v1.ListImagesRequest(filter=v1.ImageFilter(image=v1.ImageSpec(image=WEBAPP)))
    found = daemon.client.image("ListImages", only, v1.ListImagesResponse).images
    assert [each.id for each in found] == [image_id]
    assert found[0] == image
    assert len(daemon.client.images()) > 1
    (usage,) = daemon.client.image(
        "ImageFsInfo", v1.ImageFsInfoRequest(), v1.ImageFsInfoResponse
    ).image_filesystems
    assert usage.fs_id.mountpoint == str(daemon.root / "images" / "images")
    assert usage.used_bytes.value > image.size // 4
    assert usage.inodes_used.value > 1
    assert time.time_ns() - 10**12 < usage.timestamp < time.time_ns() + 10**9


def test_the_runtime(daemon: Daemon) -> None:
    version = daemon.client.version()
    assert (version.version, version.runtime_name) == ("0.1.0", "thaw")
    assert version.runtime_version[0].isdigit()
    assert version.runtime_api_version == "v1"
    answer = daemon.client.status(verbose=True)
    told = {each.type: each for each in answer.status.conditions}
    assert set(told) == {"RuntimeReady", "NetworkReady"}
    assert all(each.status for each in told.values())
    assert [each.name for each in answer.runtime_handlers] == ["", "thaw"]
    assert all(each.features.recursive_read_only_mounts for each in answer.runtime_handlers)
    assert all(each.features.user_namespaces for each in answer.runtime_handlers)
    assert answer.features.mount_options
    assert answer.features.supplemental_groups_policy
    assert json.loads(answer.info["config"])["root"] == str(daemon.root)
    assert not daemon.client.status().info


def test_a_malformed_pod_cidr_is_refused(daemon: Daemon) -> None:
    def update(cidr: str) -> None:
        network = v1.NetworkConfig(pod_cidr=cidr)
        request = v1.UpdateRuntimeConfigRequest(runtime_config={"network_config": network})
        daemon.client.runtime("UpdateRuntimeConfig", request, v1.UpdateRuntimeConfigResponse)

    update("10.1.0.0/24,fd00::/64")
    with pytest.raises(errors.InvalidArgument, match=r"10\.1\.0\.0/240"):
        update("10.1.0.0/240")


def test_a_runtime_that_is_not_ready(make_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    """It says why, and answers all the same."""
    settings = {"cgroup_driver": "cgroupfs", "guest": {"dir": str(tmp_path)}}
    daemon = make_daemon(settings=settings).start()
    condition = until("there is nothing to run", daemon.runtime_problem)
    assert (condition.status, condition.reason) == (False, "BaseSnapshotFailed")
    assert f"no guest image in {tmp_path}" in condition.message
    answer = daemon.client.runtime(
        "RuntimeConfig", v1.RuntimeConfigRequest(), v1.RuntimeConfigResponse
    )
    assert answer.HasField("linux")
    assert answer.linux.cgroup_driver == v1.CGROUPFS


def test_windows_is_refused(daemon: Daemon) -> None:
    config = sandbox(daemon)
    config.windows.SetInParent()
    with pytest.raises(errors.InvalidArgument, match="Windows"):
        daemon.client.run_pod(config)
    pod = Pod.run(daemon)
    with pytest.raises(errors.InvalidArgument, match="Windows"):
        pod.create(SHELL, SLEEP, windows=v1.WindowsContainerConfig())
