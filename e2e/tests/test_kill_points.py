"""kill -9 at each step of a pod's life: the next daemon is right, and nothing is left."""

from __future__ import annotations

import contextlib
import subprocess

import pytest

from cri.api import v1_pb2
from e2e.harness.daemon import Daemon
from e2e.harness.pods import Pod
from e2e.harness.refs import SHELL, SLEEP
from hostlib import errors

POINTS = [
    "sandbox.vm",
    "sandbox.bind",
    "sandbox.network",
    "sandbox.bound",
    "container.create",
    "container.created",
    "container.start",
    "container.stop",
    "container.remove",
    "sandbox.stop",
    "sandbox.detach",
    "sandbox.remove",
    "network.attach.address",
    "network.attach.done",
    "restore.reseed",
    "restore.network",
]


def _life(daemon: Daemon) -> None:
    pod = Pod.run(daemon, "victim")
    container = pod.start(SHELL, SLEEP)
    daemon.client.stop_container(container.id)
    daemon.client.remove_container(container.id)
    pod.remove()


@pytest.mark.parametrize("point", POINTS)
def test_whoever_dies_at_a_step_leaves_a_node_that_works(own: Daemon, point: str) -> None:
    own.arm(f"{point}=kill")
    with contextlib.suppress(errors.ThawError, AssertionError):
        _life(own)
    own.arm("")
    assert own.process is not None
    # A daemon that was killed may still be a moment from its end; a shim that was leaves it alive.
    with contextlib.suppress(subprocess.TimeoutExpired):
        own.process.wait(1)
    own.close_client()
    if own.process.poll() is not None:
        own.start()
    # What the node says of the pod is what a stop and a removal can work with.
    for found in own.client.pods():
        assert found.state in (v1_pb2.SANDBOX_READY, v1_pb2.SANDBOX_NOTREADY)
    own.remove_pods()
    assert not own.client.containers()
    assert not own.bound_vms()
    _life(own)
