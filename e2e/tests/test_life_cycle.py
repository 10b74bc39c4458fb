"""A pod as the kubelet drives it: init containers in turn, restarts, several containers at once."""

from __future__ import annotations

import pytest

from cri.api import v1_pb2
from e2e.harness.daemon import Daemon
from e2e.harness.pods import Container, Pod
from e2e.harness.refs import SHELL, SLEEP
from hostlib import errors


def attempt(pod: Pod, name: str, number: int, script: str) -> Container:
    """A container that runs a script; its log is named as the kubelet names it."""
    config = v1_pb2.ContainerConfig(
        metadata=v1_pb2.ContainerMetadata(name=name, attempt=number),
        image=v1_pb2.ImageSpec(image=SHELL),
        command=["/bin/sh", "-c", script],
        log_path=f"{name}/{number}.log",
    )
    client = pod.daemon.client
    return Container(pod, client.create_container(pod.id, config, pod.config), config)


def test_a_pod_with_init_containers_and_restarts(daemon: Daemon) -> None:
    client = daemon.client
    pod = Pod.run(daemon)
    side = pod.start(SHELL, SLEEP, name="side")
    ended: list[v1_pb2.ContainerStatus] = []
    for number, code in enumerate([0, 3, 0]):
        # As the kubelet does: the next one once the last one's end is known; it stays until then.
        script = f"echo attempt {number}; echo $(hostname) >/dev/shm/x; sleep 0.2; exit {code}"
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
        assert found.created_at <= found.started_at < found.finished_at
        assert found.finished_at - found.started_at > 200_000_000
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
