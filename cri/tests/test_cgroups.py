from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from cri.cgroups import (
    MIB,
    TCG_MIB,
    TCG_VCPU_MIB,
    WORKER_CPUS,
    WORKER_MIB,
    Cgroups,
    limits,
    parent_path,
    worker_mib,
)
from cri.tests.fakes import World, make_world
from hostlib import cgroup, ids
from hostlib.cgroup import Limits
from hostlib.errors import InvalidArgument


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Trees of version 1, as plain folders."""
    for name in ("memory", "cpu", "pids"):
        (tmp_path / "cg" / name).mkdir(parents=True)
        (tmp_path / "cg" / name / "tasks").touch()
    return tmp_path / "cg"


@pytest.fixture
def groups(root: Path) -> Cgroups:
    made = Cgroups("abc123", root)
    made.open()
    return made


@pytest.mark.parametrize(
    ("parent", "path"),
    [
        ("/kubepods/burstable/pod1", "/kubepods/burstable/pod1"),
        ("kubepods/pod1/", "/kubepods/pod1"),
        ("a-b-c.slice", "/a.slice/a-b.slice/a-b-c.slice"),
        ("/a.slice/a-b.slice", "/a.slice/a-b.slice"),
    ],
)
def test_both_forms_of_a_parent(parent: str, path: str) -> None:
    assert parent_path(parent) == path


@pytest.mark.parametrize("parent", ["../x", "/a/../../b", "a--b.slice", "-a.slice", ".slice"])
def test_parents_that_are_refused(parent: str) -> None:
    with pytest.raises(InvalidArgument):
        parent_path(parent)


def test_limits_are_what_the_pod_asks_for_and_the_workers() -> None:
    assert limits(0, 0, worker_mib=300) == Limits()
    assert limits(2, 128, worker_mib=300) == Limits((128 + 300) * MIB, 2 + WORKER_CPUS)
    assert worker_mib(4, emulated=False) == WORKER_MIB
    assert worker_mib(2, emulated=True) == WORKER_MIB + TCG_MIB + 2 * TCG_VCPU_MIB


def test_paths_and_limits(groups: Cgroups, root: Path) -> None:
    assert groups.pool == "/thaw-abc123/pool"
    assert groups.path("k3v9k3v9", "") == "/thaw-abc123/thaw-k3v9k3v9"
    path = groups.path("k3v9k3v9", "/kubepods/pod1")
    assert path == "/kubepods/pod1/thaw-k3v9k3v9"
    groups.enter(path, [41, 42], Limits(memory=4096))
    assert (root / "cpu" / path[1:] / "cgroup.procs").read_text() == "42"
    assert (root / "memory" / path[1:] / "memory.limit_in_bytes").read_text() == "4096"


def unified(tmp_path: Path, *paths: str) -> Path:
    """A tree of version 2 as plain folders, with the controllers that the kernel would show."""
    root = tmp_path / "cg2"
    for path in ("", "thaw-abc123", "thaw-abc123/pool", *paths):
        (root / path).mkdir(parents=True, exist_ok=True)
        (root / path / "cgroup.controllers").write_text("cpu memory pids\n")
    return root


def test_in_version_2_a_groups_controllers_are_handed_down(tmp_path: Path) -> None:
    """Else systemd takes them from the slice, and the limits are gone."""
    path = "a.slice/a-b.slice/thaw-k3v9k3v9"
    root = unified(tmp_path, "a.slice", "a.slice/a-b.slice", path)
    groups = Cgroups("abc123", root)
    groups.open()
    assert groups.path("k3v9k3v9", "a-b.slice") == f"/{path}"
    groups.enter(f"/{path}", [41, 42], Limits(memory=4096))
    assert (root / path / "vm/cgroup.procs").read_text() == "42"
    assert not (root / path / "cgroup.procs").exists()
    assert (root / path / "memory.max").read_text() == "4096"
    # A plain file keeps the last of what is written.
    assert (root / path / "cgroup.subtree_control").read_text() == "+pids"


def test_in_version_2_a_group_goes_with_the_one_in_it(tmp_path: Path) -> None:
    root = unified(tmp_path)
    groups = Cgroups("abc123", root)
    groups.open()
    vm_id = ids.new_vm_id()
    path = groups.path(vm_id, "/kubepods/pod1")
    (root / path[1:] / "vm").mkdir(parents=True)
    groups.remove(vm_id, path)
    groups.remove(vm_id, path)
    assert not list(root.glob(f"**/*{vm_id}"))
    assert (root / "kubepods/pod1").is_dir()


def test_a_removed_group_leaves_its_parent(groups: Cgroups, root: Path) -> None:
    vm_id = ids.new_vm_id()
    path = groups.path(vm_id, "/kubepods/pod1")
    for tree in ("memory", "cpu", "pids"):
        (root / tree / path[1:]).mkdir(parents=True)
    groups.remove(vm_id, path)
    groups.remove(vm_id, path)
    assert not list(root.glob(f"**/*{vm_id}"))
    assert (root / "memory/kubepods/pod1").is_dir()


def test_a_group_that_is_not_empty_in_time_goes_with_the_next(
    groups: Cgroups, root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("cri.cgroups._REMOVE_SECONDS", 0.0)
    slow, other = (groups.path(ids.new_vm_id(), "/kubepods/pod1") for _ in range(2))
    busy = root / "memory" / slow[1:] / "busy"
    busy.mkdir(parents=True)
    groups.remove(slow.rpartition("-")[2], slow)
    assert f"cgroup {slow} is not empty and stays" in caplog.messages
    busy.rmdir()
    groups.remove(other.rpartition("-")[2], other)
    assert not (root / "memory" / slow[1:]).exists()


def test_a_group_is_waited_for(
    groups: Cgroups, root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = groups.path(ids.new_vm_id(), "")
    busy = root / "memory" / path[1:] / "busy"
    busy.mkdir(parents=True)
    kills: list[str] = []

    def kill(each: str, _tree: object) -> None:
        kills.append(each)
        if len(kills) == 3:
            busy.rmdir()

    monkeypatch.setattr("cri.cgroups.cgroup.kill", kill)
    groups.remove(path.rpartition("-")[2])
    assert kills == [path] * 3
    assert not busy.parent.exists()
    assert not caplog.messages


def test_the_sweep_takes_what_no_vm_owns(groups: Cgroups, root: Path) -> None:
    known, stranger = ids.new_vm_id(), ids.new_vm_id()
    for vm_id in (known, stranger):
        (root / "memory/thaw-abc123" / f"thaw-{vm_id}").mkdir()
    (root / "memory/thaw-abc123/other").mkdir()
    (root / "memory/thaw-other1" / f"thaw-{stranger}").mkdir(parents=True)
    assert groups.sweep({known}) == 1
    left = {path.name for path in (root / "memory/thaw-abc123").iterdir()}
    assert left == {"pool", "other", f"thaw-{known}"}
    assert (root / "memory/thaw-other1" / f"thaw-{stranger}").is_dir()


def test_a_group_that_was_made_for_a_pod_is_found(groups: Cgroups, root: Path) -> None:
    vm_id = ids.new_vm_id()
    # A process that is in no such group, and one that has ended.
    assert groups.made_for(vm_id, [os.getpid(), 2**30]) == ""
    (root / "memory/thaw-abc123" / f"thaw-{vm_id}").mkdir()
    assert groups.made_for(vm_id, []) == f"/thaw-abc123/thaw-{vm_id}"


def test_a_vm_that_leaves_the_pool_is_not_slow_for_it(
    groups: Cgroups, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = root / "cpu/thaw-abc123/pool/cpu.shares"
    usual = int(weight.read_text())
    real, seen = cgroup.add, []

    def add(path: str, pid: int, tree: cgroup.Hierarchy) -> None:
        real(path, pid, tree)
        seen.append(int(weight.read_text()))
        if pid == 3:
            raise ProcessLookupError
        if pid == 1:
            groups.enter("/kubepods/thaw-k3v9k3v8", [2], Limits())

    monkeypatch.setattr(cgroup, "add", add)
    groups.enter("/kubepods/thaw-k3v9k3v9", [1], Limits())
    assert seen == [usual + 1024, usual + 2048]
    groups.enter("/kubepods/thaw-k3v9k3v7", [3], Limits())
    assert int(weight.read_text()) == usual


def test_the_instances_group_goes_with_the_last_pod(groups: Cgroups, root: Path) -> None:
    pod = root / "cpu/thaw-abc123/thaw-k3v9k3v9"
    pod.mkdir()
    weight = root / "cpu/thaw-abc123/pool/cpu.shares"
    assert int(weight.read_text()) < 1024
    # A plain file here, no file at all in the kernel's tree.
    weight.unlink()
    groups.close()
    assert pod.is_dir()
    pod.rmdir()
    groups.close()
    assert not list(root.glob("*/thaw-abc123"))


def test_without_a_tree_there_are_no_groups(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    groups = Cgroups("abc123", tmp_path)
    with caplog.at_level(logging.WARNING, "cri.cgroups"):
        groups.open()
    assert len(caplog.records) == 1
    assert groups.pool == groups.path("k3v9k3v9", "/kubepods") == ""
    groups.enter("", [1], Limits(memory=1))
    groups.remove("k3v9k3v9")
    assert groups.sweep(set()) == 0
    groups.close()


def test_a_tree_that_cannot_be_written(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    # Root may write anywhere; a file in the folder's place refuses it as well.
    (root / "memory/thaw-abc123").touch()
    groups = Cgroups("abc123", root)
    with caplog.at_level(logging.WARNING, "cri.cgroups"):
        groups.open()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert groups.pool == ""


@pytest.fixture
def world(tmp_path: Path, groups: Cgroups) -> World:
    made = make_world(tmp_path)
    made.daemon.cgroups = groups
    return made


async def test_a_dead_vm_leaves_no_group(world: World, root: Path) -> None:
    daemon = world.daemon
    await daemon.snapshots.ensure("2x2048")
    vm = await daemon.spawn("2x2048")
    vm.cgroup = daemon.cgroups.path(vm.id, "/kubepods/pod1")
    folder = root / "memory" / vm.cgroup[1:]
    folder.mkdir(parents=True)
    await daemon.kill(vm)
    assert not folder.exists()
    assert not vm.folder.exists()
    await daemon.close()
