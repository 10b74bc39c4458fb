"""The case growth with fake nodes: which points it takes, where it ends, what is drawn."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from bench import memory, plot
from bench.__main__ import _points
from bench.cases import growth
from bench.cpu import Gate
from bench.rows import PEER, THAW
from bench.session import Session


@dataclass
class FakeNode:
    """A node whose pods cost nothing; it is its own client."""

    name: str
    up: list[FakePod] = field(default_factory=list)
    most: int = 0

    @property
    def client(self) -> FakeNode:
        return self

    def pods(self) -> list[FakePod]:
        return self.up

    def containers(self) -> list[FakePod]:
        return self.up

    def settle(self) -> None: ...

    def daemon_pid(self) -> int:
        return 1

    def pids(self) -> list[int]:
        return list(range(1, 2 + 2 * len(self.up)))

    def pod_pids(self, pod_id: str) -> tuple[list[int], list[int]]:
        return [1], [2]

    def restart(self) -> float:
        return 10.0 + len(self.up)


class FakePod:
    def __init__(self, node: FakeNode) -> None:
        self.node, self.id = node, "id"

    @classmethod
    def up(cls, node: FakeNode) -> FakePod:
        node.up.append(cls(node))
        node.most = max(node.most, len(node.up))
        return node.up[-1]

    def start(self, *_: Any, **__: Any) -> None: ...

    def remove(self) -> None:
        self.node.up.remove(self)


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> tuple[FakeNode, FakeNode]:
    """Two nodes on a machine of 24 GiB, where each pod takes 70 MiB."""
    thaw, peer = FakeNode(THAW), FakeNode(PEER)

    class Usage:
        def __init__(self, _pids: list[int]) -> None: ...

        def percent(self) -> float:
            return 1.0

    monkeypatch.setattr(growth, "Pod", FakePod)
    monkeypatch.setattr(growth, "Usage", Usage)
    monkeypatch.setattr(growth, "remove_all", lambda pods: [pod.remove() for pod in pods])
    monkeypatch.setattr(growth, "tasks", lambda _: 4)
    monkeypatch.setattr(growth, "open_files", lambda _: 20)
    monkeypatch.setattr(memory, "available_mib", lambda: 24 * 1024.0 - 70 * len(thaw.up))
    monkeypatch.setattr(memory, "resident_mib", lambda _: 60.0)
    monkeypatch.setattr(memory, "of", lambda *pids: memory.Memory(private=35.0 * len(pids)))
    return thaw, peer


def _measure(nodes: tuple[FakeNode, FakeNode], points: list[int]) -> Session:
    nothing: list[str] = []
    thaw, peer = nodes
    gate = Gate(0, busy=lambda _: 0.0)
    session = Session(thaw, peer, gate, False, nothing.append, points=points)  # type: ignore[arg-type]
    growth.measure(session)
    return session


def test_each_point_is_on_each_curve(nodes: tuple[FakeNode, FakeNode], tmp_path: Path) -> None:
    session = _measure(nodes, _points("1,10,50,100,200"))
    curves = session.extra["growth"]
    for name in (THAW, PEER):
        assert [point["pods"] for point in curves[name]] == [1, 10, 50, 100, 200]
    assert "growth_ended" not in session.extra
    assert all(node.up == [] for node in nodes)
    lists = session.extra["lists"]
    assert set(lists["list_p99_beside"]) == {THAW, PEER}
    assert set(lists["list_p99"]) == {THAW}
    for shares in (*lists["list_p99_beside"].values(), *lists["list_p99"].values()):
        assert {len(each) for each in shares.values()} == {growth.LISTS}
        assert set(shares) == {
            "daemon_ran_ms", "daemon_waited_ms", "client_ran_ms", "client_waited_ms",
        }  # fmt: skip
    last = curves[THAW][-1]
    assert last["adoption_ms"] == 210.0
    assert last["private_mib"] == 35.0 * 401
    assert (last["tasks"], last["files"], last["daemon_files"]) == (4 * 401, 20 * 401, 20)
    results = {
        "machine": {"cpus": 2, "cpu": "x", "load": [0.5, 0.5, 0.5]},
        "figures": {},
        "extra": session.extra,
    }
    plot.draw(results, tmp_path / "r.json")
    drawn = (tmp_path / "r-latency.svg").read_text() + (tmp_path / "r-memory.svg").read_text()
    for title in (
        "one more pod up",
        "ListPodSandbox + ListContainers",
        "start, all pods known again",
        "private memory, all processes",
        "resident memory",
        "threads, all processes",
        "open files, all processes",
    ):
        assert title in drawn


def test_memory_ends_the_curves_at_what_fits(nodes: tuple[FakeNode, FakeNode]) -> None:
    session = _measure(nodes, _points("1,200,1000"))
    curves = session.extra["growth"]
    fits = int((24 * 1024 - growth.RESERVE_MIB) / 70) + 1
    assert [point["pods"] for point in curves[THAW]] == [1, 200, fits]
    assert [point["pods"] for point in curves[PEER]] == [1, 200]
    # The pods whose start is timed come on top, one at a time.
    assert nodes[0].most == fits + 1
    assert session.extra["growth_ended"] == {"why": "memory", "fits": fits, "asked": 1000}


def test_points_are_numbers_of_pods() -> None:
    assert _points("50,1,10,10") == [1, 10, 50]
    for text in ("", "0,1", "x"):
        with pytest.raises(ValueError):
            _points(text)
