"""thawd, the shim and QEMU die amid execs, attachments and forwarded connections."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from websockets.exceptions import ConnectionClosed

from cri.api import v1_pb2
from e2e.harness.daemon import Daemon
from e2e.harness.pods import Container, Pod
from e2e.harness.refs import SHELL
from e2e.harness.streams import (
    STDIN,
    STDOUT,
    Channels,
    attach_url,
    channels,
    connections,
    exec_url,
    finish,
    forward_url,
    go,
    listening,
    run,
    start,
)
from e2e.harness.waiting import until

SCRIPT = ("nc -ll -p 7000 -e cat & n=0; while :; do n=$((n+1)); echo $n; sleep 0.1; done",)


@pytest.fixture
def box(durable: Daemon) -> Container:
    """A container that counts aloud and has an echo at port 7000."""
    found = Pod.run(durable).start(SHELL, ["/bin/sh", "-c", *SCRIPT])
    listening(found, 7000)
    return found


@contextlib.contextmanager
def clients(box: Container) -> Iterator[dict[str, Channels]]:
    """One of each kind, all in use: `quiet` runs what neither reads nor writes, `busy` a writer."""
    urls = {
        "quiet": exec_url(box, "echo on; exec 3>/quiet; sleep 1000001 & wait; echo never"),
        "busy": exec_url(box, "yes busy"),
        "cat": exec_url(box, "echo on; cat; echo eof >/eof", stdin=True),
        "attached": attach_url(box),
        "forwarded": forward_url(box.pod, 7000),
    }
    with ExitStack() as stack:
        found = {name: stack.enter_context(channels(url)) for name, url in urls.items()}
        found["forwarded"].send(0, b"ping")
        found["forwarded"].until(0, b"ping")
        for name in ("quiet", "cat"):
            found[name].until(STDOUT, b"on\n")
        found["busy"].until(STDOUT, b"busy")
        found["attached"].until(STDOUT, b"\n")
        yield found


def ended(found: dict[str, Channels]) -> None:
    """Each client is told of the end at once: none of them waits for a time-out."""
    for client in found.values():
        client.rest()


def processes(box: Container) -> str:
    return box.sh("ps")


def test_the_daemon_is_killed_amid_all_streams(durable: Daemon, box: Container) -> None:
    vm = box.pod.vm
    with clients(box) as found:
        durable.kill()
        ended(found)
        assert not found["cat"].status
    written = box.output().count("\n")
    until("the log goes on", lambda: box.output().count("\n") > written + 5)
    durable.start()
    assert (box.pod.vm, box.pod.state) == (vm, v1_pb2.SANDBOX_READY)
    # As with a client that leaves: what writes gets SIGPIPE, what reads sees the end of its input,
    # what does neither goes on.
    until("the writer has ended", lambda: "yes busy" not in processes(box))
    until("the reader has seen the end", lambda: box.sh("cat /eof || true") == "eof")
    assert "sleep 1000001" in processes(box)
    until("no forwarded connection is left", lambda: connections(box) == 0)
    assert run(box, "echo up") == (0, b"up\n")
    with channels(attach_url(box)) as again:
        again.until(STDOUT, b"\n")
    said = go("forward", forward_url(box.pod), "-port", "7000", "-text", "again")
    assert said["work"] == {"heard": "again"}
    numbers = [int(line) for line in box.output().split()]
    assert numbers == list(range(1, len(numbers) + 1))


def test_urls_do_not_outlive_their_daemon(durable: Daemon, box: Container) -> None:
    url = exec_url(box, "echo never")
    durable.kill()
    durable.start()
    with pytest.raises((OSError, ConnectionClosed)), channels(url):
        pass
    assert run(box, "echo up") == (0, b"up\n")


def test_a_daemon_that_is_terminated_ends_its_clients(durable: Daemon, box: Container) -> None:
    with clients(box) as found:
        assert durable.terminate() == 0
        ended(found)
    durable.start()
    assert box.pod.state == v1_pb2.SANDBOX_READY


@pytest.mark.parametrize("part", ["shim", "qemu"])
def test_a_pod_that_dies_ends_its_clients(durable: Daemon, box: Container, part: str) -> None:
    other = Pod.run(durable).start(SHELL, ["/bin/sleep", "1000000"])
    with channels(exec_url(other, "cat", stdin=True)) as bystander, clients(box) as found:
        gos = start("exec", exec_url(box, "sleep 1000000"))
        until("the Go client's command runs", lambda: "sleep 1000000" in processes(box))
        os.kill(durable.records()[box.pod.vm][f"{part}_pid"], signal.SIGKILL)
        ended(found)
        for name in ("quiet", "cat"):
            assert found[name].status["status"] == "Failure"
            assert found[name].close_code == 1000
        done = finish(gos, 60)
        assert done["code"] == -1
        assert done["error"]
        bystander.send(STDIN, b"still here\n")
        bystander.until(STDOUT, b"still here\n")
    assert box.wait().exit_code == 255
    until("the pod is not ready", lambda: box.pod.state == v1_pb2.SANDBOX_NOTREADY)
    assert run(other, "echo up") == (0, b"up\n")


def test_a_pod_that_is_stopped_ends_its_clients(durable: Daemon, box: Container) -> None:
    with clients(box) as found:
        durable.client.stop_pod(box.pod.id)
        ended(found)
        assert found["attached"].close_code == 1000


def test_a_container_that_is_stopped_ends_its_clients(durable: Daemon, box: Container) -> None:
    with clients(box) as found:
        durable.client.stop_container(box.id)
        for name in ("quiet", "busy", "cat", "attached"):
            found[name].rest()
        assert [found[name].code for name in ("quiet", "cat")] == [137, 137]
        assert found["attached"].close_code == 1000
