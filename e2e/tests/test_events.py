"""GetContainerEvents as the evented PLEG of a kubelet, and crictl, listen to it."""

from __future__ import annotations

import json
import os
import queue
import signal
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from cli.client import Client
from cri.api import v1_pb2
from e2e.harness.crictl import Crictl
from e2e.harness.daemon import Daemon
from e2e.harness.pods import Pod
from e2e.harness.refs import SHELL, SLEEP
from e2e.harness.waiting import until
from hostlib.errors import ThawError

METHOD = "runtime.v1.RuntimeService/GetContainerEvents"
CREATED = v1_pb2.CONTAINER_CREATED_EVENT
STARTED = v1_pb2.CONTAINER_STARTED_EVENT
STOPPED = v1_pb2.CONTAINER_STOPPED_EVENT
DELETED = v1_pb2.CONTAINER_DELETED_EVENT


class Listener:
    """Takes all events, in a thread of its own."""

    def __init__(self, daemon: Daemon) -> None:
        self._client = Client(daemon.address)
        self._events: queue.Queue[v1_pb2.ContainerEventResponse] = queue.Queue()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        answer = v1_pb2.ContainerEventResponse
        try:
            for event in self._client.stream(METHOD, v1_pb2.GetEventsRequest(), answer):
                self._events.put(event)
        except (ThawError, ValueError):
            # The test is over, and the connection with it.
            pass

    def next(self) -> v1_pb2.ContainerEventResponse:
        return self._events.get(timeout=60)

    def told(self, count: int) -> list[tuple[str, int]]:
        events = [self.next() for _ in range(count)]
        return [(each.container_id, each.container_event_type) for each in events]

    def until(self, last: tuple[str, int]) -> list[tuple[str, int]]:
        heard = self.told(1)
        while heard[-1] != last:
            heard += self.told(1)
        return heard

    def hears(self, last: tuple[str, int]) -> bool:
        """Whether it hears that, and nothing for long before."""
        try:
            while True:
                event = self._events.get(timeout=2)
                if (event.container_id, event.container_event_type) == last:
                    return True
        except queue.Empty:
            return False

    def close(self) -> None:
        self._client.close()
        self._thread.join(60)


@pytest.fixture
def listeners(daemon: Daemon) -> Iterator[list[Listener]]:
    """Three who listen; all of them hear a first pod."""
    made = [Listener(daemon) for _ in range(3)]
    yield made
    for each in made:
        each.close()


def hear(daemon: Daemon, listeners: list[Listener]) -> None:
    """Wait until all listen: a listener hears nothing of what was before it. None has anything
    left to hear then."""
    for _ in range(15):
        probe = Pod.run(daemon)
        probe.remove()
        # Of all of them, also if one is deaf: who heard an earlier probe hears this one too.
        heard = [each.hears((probe.id, DELETED)) for each in listeners]
        if all(heard):
            return
    raise AssertionError(f"{heard.count(False)} of {len(listeners)} hear nothing")


def test_all_who_listen_hear_the_life_of_a_pod(daemon: Daemon, listeners: list[Listener]) -> None:
    hear(daemon, listeners)
    pod = Pod.run(daemon)
    box = pod.start(SHELL, SLEEP)
    short = pod.start(SHELL, ["/bin/sh", "-c", "exit 3"], name="short")
    short.wait()
    daemon.client.stop_container(box.id)
    daemon.client.remove_container(box.id)
    pod.remove()
    expected = [
        (pod.id, CREATED), (pod.id, STARTED),
        (box.id, CREATED), (box.id, STARTED),
        (short.id, CREATED), (short.id, STARTED), (short.id, STOPPED),
        (box.id, STOPPED), (box.id, DELETED),
        (pod.id, STOPPED), (short.id, DELETED), (pod.id, DELETED),
    ]  # fmt: skip
    for each in listeners[1:]:
        assert each.told(len(expected)) == expected
    events = [listeners[0].next() for _ in expected]
    for event in events:
        assert event.pod_sandbox_status.id == pod.id
        assert event.pod_sandbox_status.metadata.uid == pod.config.metadata.uid
        assert event.created_at > 0
    assert events[0].pod_sandbox_status.state == v1_pb2.SANDBOX_READY
    assert events[0].pod_sandbox_status.network.ip
    assert events[-1].pod_sandbox_status.state == v1_pb2.SANDBOX_NOTREADY
    ended = {each.id: each for each in events[6].containers_statuses}
    assert set(ended) == {box.id, short.id}
    assert ended[short.id].exit_code == 3
    assert ended[short.id].finished_at > 0
    assert ended[box.id].state == v1_pb2.CONTAINER_RUNNING
    assert [each.id for each in events[8].containers_statuses] == [short.id]


def deaf(channel: grpc.Channel) -> Any:
    """A call that is never read from."""
    listen = channel.unary_stream(
        f"/{METHOD}",
        request_serializer=v1_pb2.GetEventsRequest.SerializeToString,
        response_deserializer=v1_pb2.ContainerEventResponse.FromString,
    )
    return listen(v1_pb2.GetEventsRequest())


def test_many_listen_and_none_holds_up_another(daemon: Daemon) -> None:
    """Ten of them never read, and five go in the middle without a word."""
    hearing = [Listener(daemon) for _ in range(35)]
    leaving = [Listener(daemon) for _ in range(5)]
    options = [("grpc.default_authority", "localhost")]
    channels = [grpc.insecure_channel(daemon.address, options) for _ in range(10)]
    calls = [deaf(channel) for channel in channels]
    try:
        hear(daemon, [*hearing, *leaving])
        told = []
        for number in range(5):
            pod = Pod.run(daemon)
            box = pod.start(SHELL, ["/bin/true"])
            box.wait()
            if number == 2:
                for each in leaving:
                    each.close()
            pod.remove()
            told += [
                (pod.id, CREATED), (pod.id, STARTED), (box.id, CREATED), (box.id, STARTED),
                (box.id, STOPPED), (pod.id, STOPPED), (box.id, DELETED), (pod.id, DELETED),
            ]  # fmt: skip
        ids = {each for each, _ in told}
        for each in hearing:
            heard = each.until(told[-1])
            assert [event for event in heard if event[0] in ids] == told
        assert all(call.is_active() for call in calls)
    finally:
        for each in (*hearing, *leaving):
            each.close()
        for channel in channels:
            channel.close()


def test_the_end_of_a_vm_is_heard(daemon: Daemon, listeners: list[Listener]) -> None:
    hear(daemon, listeners)
    pod = Pod.run(daemon)
    box = pod.start(SHELL, SLEEP)
    assert len(listeners[0].told(4)) == 4
    os.kill(daemon.records()[pod.vm]["qemu_pid"], signal.SIGKILL)
    heard = {listeners[0].next().container_id: None for _ in range(2)}
    assert set(heard) == {box.id, pod.id}
    last = listeners[1]
    events = [last.next() for _ in range(6)]
    assert events[-1].pod_sandbox_status.state == v1_pb2.SANDBOX_NOTREADY
    [status] = events[-1].containers_statuses
    assert (status.state, status.exit_code) == (v1_pb2.CONTAINER_EXITED, 255)


def test_crictl_events(daemon: Daemon) -> None:
    crictl = Crictl(daemon)
    with crictl.running("events", "--output", "json") as process:
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        output = b""

        def shown() -> bool:
            nonlocal output
            output += process.stdout.read() or b"" if process.stdout else b""
            # The last of the documents is whole.
            return b"CONTAINER_DELETED_EVENT" in output and output.endswith(b"}\n")

        def made() -> bool:
            Pod.run(daemon).remove()
            return shown()

        until("crictl shows events", made, 120)
    first, _ = json.JSONDecoder().raw_decode(output.decode())
    assert first["containerId"] == first["podSandboxStatus"]["id"]
