"""Bad requests get the right code, a message that names what is wrong, and change nothing."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cri.api import v1_pb2
from e2e.harness.daemon import Daemon
from e2e.harness.pods import Pod, sandbox
from e2e.harness.refs import SHELL, SLEEP
from e2e.harness.registry import free_port
from e2e.harness.waiting import until
from hostlib import errors


@pytest.mark.parametrize(
    ("reference", "error"),
    [
        ("", errors.InvalidArgument),
        ("registry.test/UPPER/case", errors.InvalidArgument),
        ("registry.test/a@sha256:short", errors.InvalidArgument),
        ("registry.test/demo/shell:none-such", errors.NotFound),
        ("registry.test/none/such:latest", errors.NotFound),
        ("no-such-host.invalid/image:1", errors.Unavailable),
        (f"127.0.0.1:{free_port()}/image:1", errors.Unavailable),
    ],
)
def test_pulls_that_cannot_work(
    daemon: Daemon, reference: str, error: type[errors.ThawError]
) -> None:
    with pytest.raises(error):
        daemon.client.pull_image(reference)


def test_an_unknown_handler(daemon: Daemon) -> None:
    with pytest.raises(errors.ThawError, match="no-such-handler") as caught:
        Pod.run(daemon, handler="no-such-handler")
    assert caught.value.code in ("INVALID_ARGUMENT", "NOT_FOUND")
    assert not daemon.client.pods()


def test_both_names_of_the_handler(daemon: Daemon) -> None:
    assert Pod.run(daemon, handler="thaw").state == v1_pb2.SANDBOX_READY


def test_a_pod_name_in_use(daemon: Daemon) -> None:
    first = Pod.run(daemon, "taken")
    # The kubelet that lost an answer asks again with the same names.
    try:
        again = daemon.client.run_pod(first.config)
    except errors.AlreadyExists as error:
        assert "taken" in error.message
    else:
        assert again == first.id
    assert len(daemon.client.pods()) == 1


def test_a_container_started_twice(daemon: Daemon) -> None:
    container = Pod.run(daemon).start(SHELL, SLEEP)
    with pytest.raises(errors.FailedPrecondition):
        daemon.client.start_container(container.id)
    assert container.status().state == v1_pb2.CONTAINER_RUNNING


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"command": ["/no/such/program"]}, "/no/such/program"),
        ({"command": ["no-such-program"]}, "no-such-program"),
        ({"command": ["/etc/passwd"]}, "/etc/passwd"),
        ({"command": SLEEP, "working_dir": "/etc/passwd"}, "/etc/passwd"),
        (
            {
                "command": SLEEP,
                "linux": {"security_context": {"run_as_username": "nobody-knows-him"}},
            },
            "nobody-knows-him",
        ),
    ],
)
def test_a_container_that_cannot_start_says_why(
    daemon: Daemon, fields: dict[str, object], says: str
) -> None:
    pod = Pod.run(daemon)
    with pytest.raises(errors.ThawError, match=says):
        pod.start(SHELL, **fields)  # type: ignore[arg-type]
    assert pod.state == v1_pb2.SANDBOX_READY
    assert pod.start(SHELL, SLEEP, name="other").sh("echo up") == "up"


def test_an_image_that_was_not_pulled(daemon: Daemon) -> None:
    pod = Pod.run(daemon)
    with pytest.raises(errors.NotFound, match="never/pulled"):
        pod.create("registry.test/never/pulled:1")
    assert not daemon.client.containers()


def test_a_log_folder_that_cannot_be_written(daemon: Daemon, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.raises(errors.ThawError, match=str(blocked)):
        pod = Pod.run(daemon, log_directory=str(blocked / "logs"))
        pod.start(SHELL, SLEEP)


def test_ids_by_prefix(daemon: Daemon) -> None:
    pod = Pod.run(daemon)
    container = pod.start(SHELL, SLEEP)
    assert daemon.client.container_status(container.id[:12]).id == container.id
    assert daemon.client.pod_status(pod.id[:12]).status.id == pod.id
    with pytest.raises(errors.NotFound):
        daemon.client.container_status("0" * 64)
    with pytest.raises(errors.NotFound):
        daemon.client.pod_status("0" * 64)


def test_stop_and_remove_can_be_repeated(daemon: Daemon) -> None:
    pod = Pod.run(daemon)
    container = pod.start(SHELL, SLEEP)
    client = daemon.client
    for _ in range(2):
        client.stop_container(container.id)
    for _ in range(2):
        client.remove_container(container.id)
    for _ in range(2):
        client.stop_pod(pod.id)
    for _ in range(2):
        client.remove_pod(pod.id)


def test_exec_of_a_missing_program_and_one_that_never_ends(daemon: Daemon) -> None:
    container = Pod.run(daemon).start(SHELL, SLEEP)
    try:
        answer = daemon.client.exec_sync(container.id, ["/no/such/program"])
    except errors.ThawError as error:
        assert "/no/such/program" in error.message
    else:
        assert answer.exit_code in (126, 127)
    with pytest.raises(errors.DeadlineExceeded):
        daemon.client.exec_sync(container.id, list(SLEEP), timeout=1)
    count = "ps | grep -c 'sleep 100000[0]' || true"
    until("the command has ended", lambda: container.sh(count) == "1")


def test_removing_a_pod_removes_its_running_containers(daemon: Daemon) -> None:
    pod = Pod.run(daemon)
    pod.start(SHELL, SLEEP)
    daemon.client.remove_pod(pod.id)
    assert not daemon.client.pods()
    assert not daemon.client.containers()


def test_a_call_that_is_not_done_yet_says_so(daemon: Daemon) -> None:
    with pytest.raises(errors.Unimplemented, match="CheckpointPod"):
        daemon.client.runtime(
            "CheckpointPod", v1_pb2.CheckpointPodRequest(), v1_pb2.CheckpointPodResponse
        )


def test_a_sandbox_without_a_name(daemon: Daemon) -> None:
    config = sandbox(daemon)
    config.metadata.name = ""
    with pytest.raises(errors.InvalidArgument):
        daemon.client.run_pod(config)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nonsense = 1\n", "nonsense"),
        ("[pool]\nsize = -1\n", "pool.size"),
        ('[pool]\nsize = "two"\n', "pool.size"),
        ("[pool\n", "line 1"),
        ('[network]\nsubnet = "10.0.0.1/8"\n', "subnet"),
    ],
)
def test_configuration_errors_name_the_key_and_stop_the_daemon(
    make_daemon: Callable[..., Daemon], text: str, says: str
) -> None:
    daemon = make_daemon()
    daemon.config.write_text(text)
    daemon.spawn()
    assert daemon.process is not None
    assert daemon.process.wait(60) != 0
    output = daemon.log.read_text()
    assert says in output
    assert str(daemon.config) in output
    daemon.process = None


def test_missing_qemu_is_said_with_a_hint(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon(settings={"vm": {"qemu": "/no/such/qemu"}})
    daemon.spawn()
    assert daemon.process is not None
    try:
        daemon.process.wait(20)
    except subprocess.TimeoutExpired:
        with pytest.raises(errors.ThawError, match="/no/such/qemu"):
            Pod.run(daemon)
    else:
        assert "/no/such/qemu" in daemon.log.read_text()
        daemon.process = None
