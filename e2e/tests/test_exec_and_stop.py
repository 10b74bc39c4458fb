"""What ExecSync does with commands that do not end, or do not begin; how StopContainer signals."""

from __future__ import annotations

import pytest

from cri.api import v1_pb2
from e2e.harness.daemon import Daemon
from e2e.harness.pods import Container, Pod
from e2e.harness.refs import NGINX, SHELL, SLEEP
from e2e.harness.streams import channels, exec_url
from e2e.harness.waiting import until
from hostlib import errors


@pytest.fixture
def box(daemon: Daemon) -> Container:
    return Pod.run(daemon).start(SHELL, SLEEP, working_dir="/home/app")


def test_a_timeout_kills_the_whole_process_group(daemon: Daemon, box: Container) -> None:
    script = "sleep 1000001 & (sleep 1000001; true) & trap '' TERM INT; sleep 1000001; true"
    with pytest.raises(errors.DeadlineExceeded, match="timed out"):
        daemon.client.exec_sync(box.id, ["/bin/sh", "-c", script], timeout=1)
    until("all of it has ended", lambda: "1000001" not in box.sh("ps"))


def test_a_child_that_keeps_the_output_open_does_not_hold_up_the_call(
    daemon: Daemon, box: Container
) -> None:
    script = "sleep 1000002 & echo said; exit 2"
    done = daemon.client.exec_sync(box.id, ["/bin/sh", "-c", script])
    assert (done.exit_code, done.stdout) == (2, b"said\n")
    # It lives on, as it does under containerd.
    assert "sleep 1000002" in box.sh("ps")


def test_a_command_that_cannot_be_executed(daemon: Daemon, box: Container) -> None:
    for argv, error in [
        (["/no/such/program"], errors.NotFound),
        (["no-such-program"], errors.NotFound),
        (["/etc/passwd"], errors.PermissionDenied),
        (["/etc"], errors.PermissionDenied),
    ]:
        with pytest.raises(error, match=argv[0]):
            daemon.client.exec_sync(box.id, argv)
        with channels(exec_url(box, argv)) as client:
            client.rest()
            assert client.status["status"] == "Failure"
            assert argv[0] in client.status["message"]


def test_a_working_directory_that_is_gone(daemon: Daemon, box: Container) -> None:
    box.sh("rmdir /home/app")
    with pytest.raises(errors.NotFound, match="/home/app"):
        daemon.client.exec_sync(box.id, ["/bin/true"])
    with channels(exec_url(box, ["/bin/true"])) as client:
        client.rest()
        assert client.status["status"] == "Failure"
        assert "/home/app" in client.status["message"]


TRAPS = (
    "trap 'exit 3' QUIT; trap 'exit 10' USR1; trap 'exit 15' TERM;"
    "echo on; while :; do sleep 0.1; done"
)
"""Tells by its exit code which signal came."""


@pytest.mark.parametrize(
    ("image", "named", "code"),
    [
        (SHELL, "RUNTIME_DEFAULT", 15),
        (NGINX, "RUNTIME_DEFAULT", 3),
        (NGINX, "SIGUSR1", 10),
    ],
)
def test_the_stop_signal_is_cris_or_the_images_or_sigterm(
    daemon: Daemon, image: str, named: str, code: int
) -> None:
    daemon.client.pull_image(image)
    signal = v1_pb2.Signal.Value(f"SIGNAL_{named}")
    pod = Pod.run(daemon)
    container = pod.start(image, ["/bin/sh", "-c", TRAPS], stop_signal=signal)
    until("it runs", lambda: container.output() == "on\n")
    daemon.client.stop_container(container.id, 60)
    assert container.status().exit_code == code


def test_the_signal_is_for_init_alone_which_has_the_grace_period(daemon: Daemon) -> None:
    script = (
        "(trap 'echo child' TERM; while :; do sleep 0.1; done) & "
        "trap 'echo term; sleep 1; echo over; exit 5' TERM; echo on; while :; do sleep 0.1; done"
    )
    container = Pod.run(daemon).start(SHELL, ["/bin/sh", "-c", script])
    until("it runs", lambda: container.output() == "on\n")
    daemon.client.stop_container(container.id, 60)
    assert container.status().exit_code == 5
    assert container.output() == "on\nterm\nover\n"


def test_a_container_that_has_only_just_begun_learns_that_it_is_to_stop(daemon: Daemon) -> None:
    script = "sleep 1; trap 'exit 7' TERM; while :; do sleep 0.1; done"
    container = Pod.run(daemon).start(SHELL, ["/bin/sh", "-c", script])
    # The kernel drops the signal of a first process that has no handler.
    daemon.client.stop_container(container.id, 60)
    assert container.status().exit_code == 7


def test_after_the_grace_period_all_are_killed(daemon: Daemon) -> None:
    script = "trap 'echo deaf' TERM; echo on; while :; do sleep 0.1; done"
    container = Pod.run(daemon).start(SHELL, ["/bin/sh", "-c", script])
    until("it runs", lambda: container.output() == "on\n")
    # What an exec has started is the container's, too.
    with channels(exec_url(container, "trap '' TERM; echo up; sleep 1000000")) as client:
        client.until(1, b"up\n")
        daemon.client.stop_container(container.id, 3)
        client.rest()
        assert client.code == 137
    assert container.status().exit_code == 137
    assert container.output() == "on\ndeaf\n"
