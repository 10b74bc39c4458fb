from __future__ import annotations

from pathlib import Path

import pytest

from hostlib import cgroup
from hostlib.cgroup import Limits
from hostlib.errors import InvalidArgument


def v1(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).mkdir(parents=True)
        (root / name / "tasks").touch()
    return root


def v2(root: Path) -> Path:
    root.mkdir(exist_ok=True)
    (root / "cgroup.controllers").write_text("cpu memory pids\n")
    (root / "cgroup.subtree_control").touch()
    return root


def test_a_hybrid_host_is_version_1(tmp_path: Path) -> None:
    root = v1(tmp_path, "memory", "cpu", "pids")
    v2(root / "unified")
    found = cgroup.detect(root)
    assert found.version == 1
    assert set(found.mounts) == {"memory", "cpu", "pids"}


def test_version_2_needs_the_root_itself(tmp_path: Path) -> None:
    found = cgroup.detect(v2(tmp_path))
    assert (found.version, dict(found.mounts)) == (2, {"unified": tmp_path})


def test_limits_of_version_1(tmp_path: Path) -> None:
    tree = cgroup.detect(v1(tmp_path, "memory", "cpu", "pids"))
    cgroup.create("/kube/thaw-a", tree)
    limits = Limits(memory=1 << 30, cpus=1.5, pids=99)
    assert cgroup.limit("/kube/thaw-a", limits, tree) == []
    base = "kube/thaw-a"
    assert (tmp_path / "memory" / base / "memory.limit_in_bytes").read_text() == str(1 << 30)
    assert (tmp_path / "cpu" / base / "cpu.cfs_quota_us").read_text() == "150000"
    assert (tmp_path / "pids" / base / "pids.max").read_text() == "99"


def test_limits_of_version_2(tmp_path: Path) -> None:
    tree = cgroup.detect(v2(tmp_path))
    cgroup.create("/kube/thaw-a", tree)
    assert cgroup.limit("/kube/thaw-a", Limits(cpus=0.5, memory=5), tree) == []
    assert (tmp_path / "kube/thaw-a/cpu.max").read_text() == "50000 100000"
    assert (tmp_path / "kube/thaw-a/memory.max").read_text() == "5"
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+pids"


def test_a_missing_controller_costs_a_line_of_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cgroup._warned.clear()
    root = v1(tmp_path, "memory")
    for _ in range(2):
        tree = cgroup.detect(root)
    assert sum("no pids" in one.message for one in caplog.records) == 1
    cgroup.create("/a", tree)
    assert cgroup.limit("/a", Limits(pids=5, memory=5), tree) == ["pids"]


def test_members_are_moved_found_and_the_group_removed(tmp_path: Path) -> None:
    tree = cgroup.detect(v1(tmp_path, "memory", "pids"))
    cgroup.create("/a", tree)
    cgroup.add("/a", 4321, tree)
    assert cgroup.pids("/a", tree) == {4321}
    for name in ("memory", "pids"):
        (tmp_path / name / "a" / "cgroup.procs").unlink()
    assert cgroup.remove("/a", tree)
    assert cgroup.remove("/a", tree)
    assert not (tmp_path / "pids" / "a").exists()


def test_a_group_in_use_is_not_removed(tmp_path: Path) -> None:
    tree = cgroup.detect(v1(tmp_path, "memory"))
    cgroup.create("/a/b", tree)
    assert not cgroup.remove("/a", tree)


@pytest.mark.parametrize("path", ["/../x", "a/../../b", "a\0b"])
def test_paths_stay_in_the_tree(path: str) -> None:
    with pytest.raises(InvalidArgument):
        cgroup.normalise(path)
