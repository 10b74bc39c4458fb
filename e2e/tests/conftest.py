"""Fixtures: the images, a registry, daemons; evidence on failure; a leak scan after every test."""

from __future__ import annotations

import contextlib
import itertools
import re
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from demo import images as demo_images
from demo import oci
from e2e.harness import dropping
from e2e.harness.crane import CraneRegistry
from e2e.harness.crictl import Crictl
from e2e.harness.daemon import EVIDENCE, PROJECT, Daemon
from e2e.harness.faulty import FaultyRegistry
from e2e.harness.kubelet import Kubelet
from e2e.harness.network import own_network
from e2e.harness.outside import Outside, subnet
from e2e.harness.refs import NGINX, SHELL, SIZED, WEBAPP
from e2e.harness.registry import Registry
from e2e.harness.waiting import until

_OUTCOME = pytest.StashKey[dict[str, bool]]()
_numbers = itertools.count(1)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    item.stash.setdefault(_OUTCOME, {})[report.when] = report.failed


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What tests measured, and assert nothing about."""
    figures: dict[str, list[float]] = {}
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if report.when == "call":
                figures.setdefault(name, []).append(value)
    for name, values in figures.items():
        median = statistics.median(values)
        terminalreporter.write_line(
            f"{name}: median {median:.2f}, at most {max(values):.2f}, n = {len(values)}"
        )


def keep_evidence(request: pytest.FixtureRequest, daemon: Daemon) -> None:
    """Keep the evidence of a daemon beside the tests, named by the test."""
    if dropping.proxied():
        # Tests are meant to fail.
        return
    name = f"{request.node.path.name}::{request.node.name}"
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", name)
    daemon.keep(EVIDENCE / name / daemon.folder.name)


def failed(request: pytest.FixtureRequest) -> bool:
    return any(request.node.stash.get(_OUTCOME, {}).values())


@pytest.fixture(scope="session")
def built() -> dict[str, oci.Image]:
    """The images, by repository."""
    return demo_images.built(PROJECT / ".build")


@pytest.fixture(scope="session")
def workspace() -> Iterator[Path]:
    """A folder with a short name, since socket paths hold 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="thaw-", dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def registry(workspace: Path, built: dict[str, oci.Image]) -> Iterator[Registry]:
    """A registry that holds the images."""
    with Registry(workspace / "registry") as running:
        for repository, image in built.items():
            running.push(image, repository)
        yield running


@pytest.fixture(scope="session")
def second(workspace: Path) -> Iterator[CraneRegistry]:
    """A registry of another make, which holds nothing yet."""
    with CraneRegistry(workspace / "crane", host="crane.test") as running:
        yield running


@contextlib.contextmanager
def _lasting(
    folder: Path, registry: Registry, *images: str, settings: Mapping[str, Any] | None = None
) -> Iterator[Daemon]:
    """A daemon for many tests, which has pulled these images; it must leave nothing."""
    running = Daemon(folder, registry, subnet=subnet(), settings=settings)
    try:
        running.start()
        for image in images:
            running.client.pull_image(image)
        yield running
    finally:
        left = running.destroy()
        running.erase()
    assert not left, left


@pytest.fixture(scope="session")
def _shared(workspace: Path, registry: Registry) -> Iterator[Daemon]:
    with _lasting(workspace / "shared", registry, SHELL, NGINX, WEBAPP) as running:
        yield running


@pytest.fixture
def daemon(_shared: Daemon, request: pytest.FixtureRequest) -> Iterator[Daemon]:
    """The daemon that tests share which do it no harm; each leaves it without pods."""
    yield _shared
    _shared.remove_pods()
    if failed(request):
        keep_evidence(request, _shared)
    assert not _shared.bound_vms()
    assert not _shared.client.containers()


@pytest.fixture
def make_daemon(
    workspace: Path, registry: Registry, request: pytest.FixtureRequest
) -> Iterator[Callable[..., Daemon]]:
    """A maker of daemons that the test may harm; each is destroyed, and its leaks are failures."""
    made: list[Daemon] = []

    def make(
        *,
        settings: Mapping[str, Any] | None = None,
        root: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Daemon:
        number = next(_numbers)
        daemon = Daemon(
            workspace / f"d{number:03}",
            registry,
            settings=settings,
            root=root,
            subnet=subnet(),
            environment=environment,
        )
        made.append(daemon)
        return daemon

    yield make
    left: list[str] = []
    for daemon in made:
        left += daemon.destroy()
        if left or failed(request):
            keep_evidence(request, daemon)
        daemon.erase()
        shutil.rmtree(daemon.folder, ignore_errors=True)
    assert not left, left


@pytest.fixture(scope="session")
def _durable(workspace: Path, registry: Registry) -> Iterator[Daemon]:
    with _lasting(workspace / "durable", registry, SHELL) as running:
        yield running


@pytest.fixture
def durable(_durable: Daemon, request: pytest.FixtureRequest) -> Iterator[Daemon]:
    """A daemon whose processes tests may kill. After each test it runs, has no pods, and accounts
    for all that is there, before the end of a daemon could clear it away."""
    yield _durable
    _durable.arm("")
    if not _durable.alive():
        _durable.close_client()
        _durable.start()
    _durable.remove_pods()
    if failed(request):
        keep_evidence(request, _durable)
    assert not _durable.client.containers()
    with contextlib.suppress(AssertionError):
        until("all is accounted for", lambda: not _durable.unclaimed())
    assert not _durable.unclaimed()


@pytest.fixture(scope="session")
def _pulling(workspace: Path, registry: Registry) -> Iterator[Daemon]:
    settings = {
        "images": {"merge": "needed", "pinned": ["registry.test/e2e/pinned"]},
        "snapshot": {"on_demand": True},
        "pool": {"size": 0},
    }
    with _lasting(workspace / "pulling", registry, settings=settings) as running:
        yield running


@pytest.fixture
def puller(_pulling: Daemon, request: pytest.FixtureRequest) -> Iterator[Daemon]:
    """A daemon for tests of images, in whose store nothing happens but what they ask for."""
    yield _pulling
    _pulling.remove_pods()
    for image in _pulling.client.images():
        _pulling.client.remove_image(image.id)
    if failed(request):
        keep_evidence(request, _pulling)
    assert not _pulling.client.containers()


@pytest.fixture(scope="session")
def _sized(workspace: Path, registry: Registry) -> Iterator[Daemon]:
    settings = {"guest": SIZED, "pool": {"size": 0}}
    with _lasting(workspace / "sized", registry, SHELL, WEBAPP, settings=settings) as running:
        yield running


@pytest.fixture
def sized(_sized: Daemon, request: pytest.FixtureRequest) -> Iterator[Daemon]:
    """A daemon with a small and a larger shape of VMs, none of which wait."""
    yield _sized
    if failed(request):
        keep_evidence(request, _sized)
    _sized.remove_pods()


@pytest.fixture(scope="module")
def _node(
    workspace: Path, built: dict[str, oci.Image], request: pytest.FixtureRequest
) -> Iterator[Kubelet]:
    number = next(_numbers)
    # Static pods come several at once.
    settings = {"pool": {"size": 2, "max_size": 2}}
    with (
        own_network() as address,
        Registry(workspace / f"r{number:03}") as registry,
    ):
        for repository, image in built.items():
            registry.push(image, repository)
        folder = workspace / f"n{number:03}"
        with _lasting(folder, registry, SHELL, WEBAPP, settings=settings) as running:
            kubelet = Kubelet(running, address)
            try:
                try:
                    kubelet.start()
                except BaseException:
                    keep_evidence(request, running)
                    raise
                yield kubelet
            finally:
                left = kubelet.destroy()
        assert not left, left


@pytest.fixture
def node(_node: Kubelet, request: pytest.FixtureRequest) -> Iterator[Kubelet]:
    """A kubelet on a daemon of its own, in a network of their own that the test is in as well; each
    test leaves it without pods."""
    yield _node
    if failed(request):
        keep_evidence(request, _node.daemon)
    try:
        _node.remove_all()
    except AssertionError:
        keep_evidence(request, _node.daemon)
        raise


@pytest.fixture(scope="session")
def _faulty() -> Iterator[FaultyRegistry]:
    with FaultyRegistry() as running:
        yield running


@pytest.fixture
def faulty(_faulty: FaultyRegistry) -> Iterator[FaultyRegistry]:
    """A registry that can be told to misbehave; each test finds it empty and sound."""
    yield _faulty
    _faulty.reset()


@pytest.fixture
def own(make_daemon: Callable[..., Daemon]) -> Daemon:
    """A daemon of this test's own, started, with the shell image."""
    made = make_daemon().start()
    made.client.pull_image(SHELL)
    return made


@pytest.fixture
def outside() -> Iterator[Outside]:
    """A host that the node reaches, and that knows nothing of pods."""
    with Outside() as made:
        yield made


@pytest.fixture
def crictl(daemon: Daemon) -> Crictl:
    return Crictl(daemon)
