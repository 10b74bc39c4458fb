"""A pod as the kubelet drives it: init containers in turn, restarts, several containers at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from cri.api import v1_pb2
from e2e.harness.daemon import Daemon
from e2e.harness.pods import Container, Pod, sandbox
from e2e.harness.refs import SHELL, SLEEP
from e2e.harness.waiting import until
from hostlib import errors


def attempt(pod: Pod, name: str, number: int, script: str, *mounts: v1_pb2.Mount) -> Container:
    """A container that runs a script; its log is named as the kubelet names it."""
    config = v1_pb2.ContainerConfig(
        metadata=v1_pb2.ContainerMetadata(name=name, attempt=number),
        image=v1_pb2.ImageSpec(image=SHELL),
        command=["/bin/sh", "-c", script],
        log_path=f"{name}/{number}.log",
        mounts=mounts,
    )
    client = pod.daemon.client
    return Container(pod, client.create_container(pod.id, config, pod.config), config)


def test_a_sandbox_that_is_made_anew(daemon: Daemon, tmp_path: Path) -> None:
    """As the kubelet does when one has ended: the next attempt runs beside what is left of the
    last, which can be asked for until it is removed. Its emptyDirs are empty."""
    client = daemon.client
    empty = tmp_path / "pods/uid-again/volumes/kubernetes.io~empty-dir/data"
    empty.mkdir(parents=True)
    data = v1_pb2.Mount(container_path="/data", host_path=str(empty))
    first = Pod.run(daemon, "again")
    old = attempt(first, "main", 0, "echo old | tee /data/old; exit 4", data)
    client.start_container(old.id)
    ended = old.wait()
    client.stop_pod(first.id)
    config = sandbox(daemon, "again")
    config.metadata.attempt = 1
    second = Pod(daemon, client.run_pod(config), config)
    new = attempt(second, "main", 1, "ls /data; echo new; exec sleep 100000", data)
    client.start_container(new.id)
    until("it runs", lambda: new.output() == "new\n")
    assert {pod.id: (pod.metadata.attempt, pod.state) for pod in client.pods()} == {
        first.id: (0, v1_pb2.SANDBOX_NOTREADY),
        second.id: (1, v1_pb2.SANDBOX_READY),
    }
    shown = {each.id: each.metadata.attempt for each in client.containers()}
    assert shown == {old.id: 0, new.id: 1}
    assert old.status() == ended
    assert ended.finished_at <= client.pod_status(second.id).status.created_at
    client.remove_pod(first.id)
    assert [each.id for each in client.containers()] == [new.id]
    assert old.output() == "old\n"
    assert new.sh("echo on") == "on"


def test_a_pod_with_init_containers_and_restarts(daemon: Daemon) -> None:
    client = daemon.client
    pod = Pod.run(daemon)
    side = pod.start(SHELL, SLEEP, name="side")
    ended: list[v1_pb2.ContainerStatus] = []
    for number, code in enumerate([0, 3, 0]):
        # As the kubelet does: the next one once the last one's end is known; it stays until then.
        script = f"echo attempt {number}; echo $(hostname) >/dev/shm/x; exit {code}"
        made = attempt(pod, "init", number, script)
        assert made.status().state == v1_pb2.CONTAINER_CREATED
        with pytest.raises(errors.AlreadyExists, match=made.id):
            attempt(pod, "init", number, "true")
        client.start_container(made.id)
        found = made.wait()
        assert (found.exit_code, found.reason) == (code, "Error" if code else "Completed")
        assert found.metadata.attempt == number
        if ended:
            assert ended[-1].finished_at <= found.created_at
        # Its end may be told before the answer to its start.
        assert found.created_at <= found.started_at <= found.finished_at
        ended.append(found)
        assert made.output() == f"attempt {number}\n"
    assert len({each.id for each in ended}) == 3

    # All at once: what runs, and each end with its own code.
    status = client.pod_status(pod.id)
    listed = {each.id: each for each in status.containers_statuses}
    assert {each.id for each in client.containers()} == {side.id, *(each.id for each in ended)}
    assert listed[side.id].state == v1_pb2.CONTAINER_RUNNING
    assert [listed[each.id] for each in ended] == ended
    assert status.timestamp >= ended[-1].finished_at

    # The kubelet drops the oldest; the others and the logs are as they were.
    client.remove_container(ended[0].id)
    with pytest.raises(errors.NotFound):
        client.container_status(ended[0].id)
    assert client.container_status(ended[1].id) == ended[1]
    assert (daemon.logs / pod.config.metadata.name / "init" / "0.log").exists()

    # A name is free again once its attempt is gone.
    again = attempt(pod, "init", 0, "exit 9")
    client.start_container(again.id)
    assert again.wait().exit_code == 9
    assert side.sh("echo alive") == "alive"

    # The end of the pod ends what runs, and changes nothing of what had ended.
    client.stop_pod(pod.id)
    found = client.container_status(side.id)
    assert (found.state, found.exit_code, found.reason) == (v1_pb2.CONTAINER_EXITED, 137, "Error")
    assert client.container_status(ended[2].id) == ended[2]
    with pytest.raises(errors.FailedPrecondition, match="not ready"):
        attempt(pod, "late", 0, "true")
