"""Tags that are known for a while, and pulls under way."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import threading

import pytest

from cri.api import v1_pb2
from e2e.harness.command import THAW, thaw
from e2e.harness.daemon import Daemon
from e2e.harness.faulty import Answer, FaultyRegistry, Request
from e2e.harness.pushed import pulled, store
from e2e.harness.waiting import until
from hostlib import errors
from images.tests.build import Entry, image, tar

LAYER = tar(Entry("etc/faulty", b"x" * 200_000))


def test_a_tag_is_known_for_a_while(puller: Daemon, faulty: FaultyRegistry) -> None:
    """To `thaw pull`, unless it is told to ask; CRI's PullImage always asks."""
    first = faulty.registry.add(image(LAYER, form=""))
    ref = faulty.image
    assert pulled(puller, ref).id == first.config_digest
    second = faulty.registry.add(image(tar(Entry("new")), form=""))
    faulty.registry.requests.clear()
    assert pulled(puller, ref).id == first.config_digest
    assert not faulty.registry.requests
    assert pulled(puller, ref, "--refresh").id == second.config_digest
    third = faulty.registry.add(image(tar(Entry("third")), form=""))
    assert puller.client.pull_image(ref) == third.config_digest
    # An image that is gone comes back as what its tag was known to mean, also to the next daemon.
    faulty.registry.add(second)
    for kill in (False, True):
        if kill:
            puller.kill()
            puller.start()
        puller.client.remove_image(ref)
        assert pulled(puller, ref).id == third.config_digest
    for built in (first, second, third):
        puller.client.remove_image(built.config_digest)


class Stalled:
    """Blobs of one layer stop half way until they are let go."""

    def __init__(self, faulty: FaultyRegistry, digest: str, data: bytes) -> None:
        self.asked = threading.Event()
        self._go = threading.Event()
        faulty.registry.behave = lambda request: self._behave(request, digest, data)

    def _behave(self, request: Request, digest: str, data: bytes) -> Answer | None:
        if digest not in request.path or self._go.is_set():
            return None
        half = len(data) // 2

        async def rest(writer: asyncio.StreamWriter) -> None:
            self.asked.set()
            while not self._go.is_set():  # noqa: ASYNC110 - set by another thread
                await asyncio.sleep(0.05)
            writer.write(data[half:])
            await writer.drain()

        return Answer(body=data[:half], length=len(data), chunks=rest)

    def release(self) -> None:
        self._go.set()


def test_pulls_under_way_and_callers_that_go(puller: Daemon, faulty: FaultyRegistry) -> None:
    data = tar(Entry("etc/large", b"z" * 2_000_000))
    built = faulty.registry.add(image(data, LAYER, form=""))
    stalled = Stalled(faulty, built.layers[0], data)
    before = store(puller)

    def begin() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [THAW, "--address", puller.address, "pull", faulty.image],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def downloading() -> bool:
        found = json.loads(thaw(puller, "images", "--pulling", "--json").stdout)
        layers = [layer for each in found for layer in each["progress"]]
        return [each["image"] for each in found] == [faulty.image] and any(
            layer["phase"] == "downloading" and 0 < int(layer["current"]) < int(layer["total"])
            for layer in layers
        )

    alone = begin()
    try:
        until("the pull shows how far it is", downloading)
        shown = thaw(puller, "images", "--pulling").stdout
        assert faulty.image in shown and "downloading" in shown and "1/2" in shown
    finally:
        alone.send_signal(signal.SIGINT)
        alone.communicate(timeout=60)
    assert alone.returncode == 130
    until("the pull is given up", lambda: not puller.client.pulls())
    until(
        "its unfinished layer is gone",
        lambda: not list((puller.root / "images/images/ingest").iterdir()),
    )

    # One of two that wait for the same goes: the other has the image.
    stalled.asked.clear()
    gone = begin()
    assert stalled.asked.wait(60)
    result: list[str] = []
    other = threading.Thread(target=lambda: result.append(puller.client.pull_image(faulty.image)))
    other.start()
    gone.kill()
    gone.communicate()
    until("the kubelet's pull is on", lambda: len(puller.client.pulls()) == 1)
    stalled.release()
    other.join(120)
    assert result == [built.config_digest]
    until("no pull is on", lambda: not puller.client.pulls())
    puller.client.remove_image(built.config_digest)
    assert store(puller) == before

    # The kubelet's goes on without it, since it comes back for the image.
    stalled = Stalled(faulty, built.layers[0], data)
    request = v1_pb2.PullImageRequest(image=v1_pb2.ImageSpec(image=faulty.image))
    with pytest.raises(errors.DeadlineExceeded):
        puller.client.image("PullImage", request, v1_pb2.PullImageResponse, 3)
    until("the pull is on", lambda: len(puller.client.pulls()) == 1)
    stalled.release()
    until("the image is here", lambda: puller.client.image_status(faulty.image))
