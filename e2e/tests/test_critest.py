"""The whole of critest; what need not pass is in e2e/critest/excused.toml, with reasons."""

from __future__ import annotations

import fcntl
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from demo import oci
from e2e.harness import critest
from e2e.harness.daemon import PROJECT, Daemon
from e2e.harness.registry import Registry
from e2e.images import critest as images

NODES = 4
"""Specs at a time. Many wait more than they work."""

STREAMING = r"\[k8s.io\] Streaming"


@pytest.fixture(scope="module")
def critest_images(registry: Registry) -> None:
    pushed: dict[str, oci.Image] = {}
    for (repository, tag), image in images.built(PROJECT / ".build").items():
        registry.push(image, repository, tag)
        pushed[f"{repository}:{tag}"] = image
    assert pushed


@pytest.fixture
def alone() -> Iterator[None]:
    """critest's host ports are fixed: one run at a time on a machine."""
    with Path("/run/lock/thaw-critest.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.mark.timeout(critest.SECONDS + 300)
@pytest.mark.usefixtures("critest_images", "alone")
def test_critest(
    make_daemon: Callable[..., Daemon],
    registry: Registry,
    record_property: Callable[[str, object], None],
) -> None:
    daemon = make_daemon(settings={"pool": {"size": NODES, "max_size": NODES}})
    registry.write_hosts(daemon.folder / "hosts", images.REGISTRIES)
    daemon.start()
    excused = critest.excuses()
    ran = critest.run(daemon, daemon.folder / "critest", nodes=NODES)
    record_property("critest specs passed", sum(each.passed for each in ran))
    wrong = critest.judge(ran, excused)
    # By itself it streams over SPDY.
    websocket = critest.run(
        daemon,
        daemon.folder / "critest-websocket",
        nodes=NODES,
        only=STREAMING,
        options=[f"-websocket-{what}" for what in ("exec", "attach", "portforward")],
    )
    streaming = {spec: why for spec, why in excused.items() if re.search(STREAMING, spec)}
    wrong += [f"by WebSocket: {each}" for each in critest.judge(websocket, streaming)]
    assert not wrong, "\n".join(wrong)
