from __future__ import annotations

from pathlib import Path

import pytest

from hostlib import cgroup
from hostlib.cgroup import NO_LIMIT, Above, Limits
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


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / name.replace("__", ".")).write_text(value)


def test_what_the_groups_above_are_limited_to(tmp_path: Path) -> None:
    one = v1(tmp_path / "one", "memory", "cpu", "pids")
    unlimited = str((1 << 63) - 4096)
    write(one / "memory/a", memory__limit_in_bytes=f"{unlimited}\n")
    write(one / "memory/a/b", memory__limit_in_bytes="4096\n")
    write(one / "memory/a/b/c", memory__limit_in_bytes="1024\n")
    write(one / "cpu/a", cpu__cfs_quota_us="-1\n")
    tree = cgroup.detect(one)
    assert cgroup.above("/a/b/c", tree) == Above(4096, cpu=False)
    assert cgroup.above("/a/b", tree) == Above()
    assert cgroup.above("/a", tree) == cgroup.above("/none/there", tree) == Above()
    two = v2(tmp_path / "two")
    write(two / "a", memory__max="9000\n", cpu__max="5000 100000\n")
    write(two / "a/b", memory__max="max\n", cpu__max="max 100000\n")
    assert cgroup.above("/a/b/c", cgroup.detect(two)) == Above(9000, cpu=True)


def test_limits_are_taken_away(tmp_path: Path) -> None:
    gone = Limits(memory=NO_LIMIT, cpus=NO_LIMIT)
    one, two = v1(tmp_path / "one", "memory", "cpu", "pids"), v2(tmp_path / "two")
    for root in (one, two):
        cgroup.create("/x", cgroup.detect(root))
        assert not cgroup.limit("/x", gone, cgroup.detect(root))
    assert (one / "memory/x/memory.limit_in_bytes").read_text() == "-1"
    assert (one / "cpu/x/cpu.cfs_quota_us").read_text() == "-1"
    assert (two / "x/memory.max").read_text() == "max"
    assert (two / "x/cpu.max").read_text() == "max 100000"


def test_no_memory_limit_below_what_is_in_use(tmp_path: Path) -> None:
    # The kernel would kill; version 1 refuses by itself.
    tree = cgroup.detect(v2(tmp_path))
    write(tmp_path / "x", memory__current="5000\n", memory__max="9000")
    assert cgroup.limit("/x", Limits(memory=4000), tree) == ["memory"]
    assert (tmp_path / "x/memory.max").read_text() == "9000"
    assert cgroup.limit("/x", Limits(memory=6000), tree) == []
