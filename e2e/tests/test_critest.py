"""The whole of critest; what need not pass is in e2e/critest/excused.toml, with reasons."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from demo import oci
from e2e.harness import critest
from e2e.harness.daemon import PROJECT, Daemon
from e2e.harness.registry import Registry
from e2e.images import critest as images

NODES = 4
"""Specs at a time. A few wait more than they work."""


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
    ran = critest.run(daemon, daemon.folder / "critest", nodes=NODES)
    record_property("critest specs passed", sum(each.passed for each in ran))
    wrong = critest.judge(ran, critest.excuses())
    assert not wrong, "\n".join(wrong)
    assert daemon.client.pods() == []
