"""An agent that turns hostile ends its own pod, with a clear reason; all others go on."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cri.api import v1_pb2
from e2e.harness import hostile_qemu
from e2e.harness.daemon import Daemon
from e2e.harness.pods import Pod
from e2e.harness.refs import SHELL, SLEEP, SMALL
from e2e.harness.streams import (
    STDIN,
    Channels,
    attach_url,
    channels,
    exec_url,
    forward_url,
    listening,
    run,
)
from e2e.harness.waiting import until

REASONS = {
    "data_for_nobody": "used stream 1000000, which is not open",
    "reset_for_nobody": "used stream 1000000, which is not open",
    "data_without_credit": "sent more than its credit",
    "data_after_the_end": "sent data after the end of stream",
    "credit_without_end": "gave too much credit",
    "credit_that_is_none": "malformed CREDIT",
    "an_answer_to_nothing": "answered a request that was never made",
    "a_length_that_lies": "JSON",
}
"""What the agent does, and what is told to be the reason of its pod's end."""


class Liars:
    """VMs whose agents obey orders."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.qemu = hostile_qemu.install(folder)
        self._order = folder / "attack"
        self._done = os.open(folder / "done", os.O_RDWR | os.O_NONBLOCK)

    def command(self, pod: Pod, attack: str) -> None:
        fresh = self._order.with_suffix(".new")
        fresh.write_text(f"{pod.vm} {attack}")
        fresh.rename(self._order)

    def carried_out(self, pod: Pod) -> bool:
        with contextlib.suppress(BlockingIOError):
            return os.read(self._done, 100).decode().endswith(pod.vm)
        return False

    def close(self) -> None:
        os.close(self._done)


@pytest.fixture
def liars(tmp_path: Path) -> Iterator[Liars]:
    made = Liars(tmp_path / "liars")
    yield made
    made.close()


@pytest.fixture
def daemon(make_daemon: Callable[..., Daemon], liars: Liars) -> Daemon:
    """A daemon whose VMs are liars' when they are told to be."""
    made = make_daemon(settings={"guest": SMALL, "vm": {"qemu": str(liars.qemu)}}).start()
    made.client.pull_image(SHELL)
    return made


def says(client: Channels, text: bytes) -> None:
    """Something is said to an echo, and comes back."""
    client.send(STDIN, text)
    while text not in b"".join(data for _, data in client.messages):
        client.step()


@contextlib.contextmanager
def bystander(daemon: Daemon) -> Iterator[Callable[[], None]]:
    """Another pod with an exec under way; checks that nothing has happened to it."""
    assert daemon.process is not None
    pid = daemon.process.pid
    box = Pod.run(daemon).start(SHELL, SLEEP)
    with channels(exec_url(box, "cat", stdin=True)) as client:

        def check() -> None:
            says(client, f"{len(client.messages)}\n".encode())
            assert run(box, "echo up") == (0, b"up\n")
            assert daemon.process is not None
            assert (daemon.process.pid, daemon.alive()) == (pid, True)

        yield check


def test_a_lie_ends_the_liars_pod_alone(daemon: Daemon, liars: Liars) -> None:
    with bystander(daemon) as check:
        for attack, reason in REASONS.items():
            box = Pod.run(daemon).start(SHELL, ["nc", "-ll", "-p", "7000", "-e", "cat"])
            listening(box, 7000)
            with (
                channels(attach_url(box)) as attached,
                channels(forward_url(box.pod, 7000)) as forwarded,
                channels(exec_url(box, "cat", stdin=True)) as client,
            ):
                says(forwarded, b"honest\n")
                says(client, b"honest\n")
                liars.command(box.pod, attack)
                if attack == "a_length_that_lies":
                    # It lies in its next answer.
                    until("the liar is ready", lambda: liars.carried_out(box.pod))  # noqa: B023
                    with channels(exec_url(box, "true")) as last:
                        last.rest()
                # Before anything is read: who takes data gives credit for more.
                until("its pod is over", lambda: box.pod.state == v1_pb2.SANDBOX_NOTREADY)  # noqa: B023
                for ended in (client, attached, forwarded):
                    ended.rest()
                assert client.status["status"] == "Failure", attack
            status = box.wait()
            assert (status.exit_code, status.reason) == (255, "Error"), attack
            assert re.search(reason, status.message), (attack, status.message)
            check()
            box.pod.remove()


def test_what_a_guest_boasts_of_is_bounded_by_what_it_can_have(
    daemon: Daemon, liars: Liars
) -> None:
    box = Pod.run(daemon).start(SHELL, SLEEP)

    def asked() -> v1_pb2.LinuxPodSandboxStats:
        request = v1_pb2.PodSandboxStatsRequest(pod_sandbox_id=box.pod.id)
        answer = v1_pb2.PodSandboxStatsResponse
        return daemon.client.runtime("PodSandboxStats", request, answer).stats.linux

    with bystander(daemon) as check:
        before = asked()
        liars.command(box.pod, "boasts")
        until("the order is carried out", lambda: liars.carried_out(box.pod))
        found = asked()
        check()
    assert len(found.network.interfaces) <= 64
    assert before.network.default_interface.name == found.network.default_interface.name == "eth0"
    # Counters do not fall: this one is said to be 0.
    assert found.network.default_interface.rx_bytes.value >= (
        before.network.default_interface.rx_bytes.value
    )
    [its] = found.containers
    assert its.attributes.id == box.id
    age = its.cpu.timestamp - box.status().created_at
    # One processor, from before the container was made.
    assert 0 < its.cpu.usage_core_nano_seconds.value < age + 60 * 10**9
    assert its.memory.usage_bytes.value == 256 * 2**20
    assert its.memory.available_bytes.value == 0
    assert its.cpu.psi.Some.Avg10 == 0
    assert found.process.process_count.value == 4_194_304
    assert box.sh("echo up") == "up"


@pytest.mark.parametrize("attack", ["resets", "no_credit", "garbage"])
def test_what_is_no_lie_harms_the_streams_concerned_alone(
    daemon: Daemon, liars: Liars, attack: str
) -> None:
    box = Pod.run(daemon).start(SHELL, SLEEP)
    with (
        bystander(daemon) as check,
        channels(exec_url(box, "cat >/dev/null", stdin=True)) as client,
    ):
        client.send(STDIN, b"honest\n")
        liars.command(box.pod, attack)
        until("the order is carried out", lambda: liars.carried_out(box.pod))
        if attack == "no_credit":
            # More than the credit with which the stream began, and more than all buffers take.
            for _ in range(64):
                client.send(STDIN, bytes(16_000))
        check()
        assert run(box, "echo up") == (0, b"up\n")
        assert box.sh("echo up") == "up"
        assert box.pod.state == v1_pb2.SANDBOX_READY
        client.vanish()
