from __future__ import annotations

import os
import resource
import socket
from pathlib import Path

import pytest

from cli import limit_checks


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A host that is large enough for 1,000 pods."""
    (tmp_path / "meminfo").write_text(f"MemTotal: {1024 * 1024 * 1024} kB\n")
    for need in limit_checks.NEEDS:
        write(tmp_path, need.setting, need.least(1000))
    write(tmp_path, "vm/overcommit_memory", 0)
    return tmp_path


def write(proc: Path, setting: str, value: int) -> None:
    path = proc / "sys" / setting
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{value}\n")


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limit_checks, "open_files", lambda *_: 1 << 20)


@pytest.mark.usefixtures("files")
def test_a_large_host_is_good(proc: Path) -> None:
    (found,) = limit_checks.findings(1000, "", proc)
    assert (found.level, found.message) == ("ok", "high enough for 1000 pods")


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("need", limit_checks.NEEDS, ids=lambda need: need.name)
def test_a_setting_that_is_too_low_is_told(proc: Path, need: limit_checks.Need) -> None:
    write(proc, need.setting, need.least(1000) - 1)
    (found,) = limit_checks.findings(1000, "", proc)
    assert (found.name, found.level) == (need.name, "warning")
    assert found.hint == f"sysctl -w {need.name}={need.least(1000)}"
    assert [each.level for each in limit_checks.findings(10, "", proc)] == ["ok"]


@pytest.mark.usefixtures("files")
def test_what_a_kernel_does_not_have_is_no_limit(proc: Path) -> None:
    for need in limit_checks.NEEDS:
        (proc / "sys" / need.setting).unlink()
    assert [each.level for each in limit_checks.findings(1000, "", proc)] == ["ok"]


@pytest.mark.usefixtures("files")
def test_more_pods_than_a_bridge_has_ports(proc: Path) -> None:
    for need in limit_checks.NEEDS:
        write(proc, need.setting, need.least(1024))
    (found,) = limit_checks.findings(1024, "", proc)
    assert found.name == "bridge"
    assert "1023" in found.message
    assert [each.level for each in limit_checks.findings(1023, "", proc)] == ["ok"]


@pytest.mark.usefixtures("files")
def test_strict_overcommit_and_little_memory(proc: Path) -> None:
    write(proc, "vm/overcommit_memory", 2)
    (proc / "meminfo").write_text(f"MemTotal: {24 * 1024 * 1024} kB\n")
    found = {each.name: each for each in limit_checks.findings(1000, "", proc)}
    assert set(found) == {"vm.overcommit_memory", "memory for pods"}
    assert "351 idle pods" in found["memory for pods"].message
    assert all(each.hint for each in found.values())


def test_the_limit_of_open_files_is_the_daemons_where_it_runs(proc: Path) -> None:
    own = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert limit_checks.open_files("unix:///nowhere", proc) == own
    (proc / str(os.getpid())).mkdir()
    (proc / str(os.getpid()) / "limits").write_text(
        "Limit                     Soft Limit           Hard Limit           Units\n"
        "Max open files            512                  1024                 files\n"
    )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as daemon:
        path = str(proc / "s")
        daemon.bind(path)
        daemon.listen()
        assert limit_checks.open_files(f"unix://{path}", proc) == 1024
        found = {each.name: each for each in limit_checks.findings(1000, f"unix://{path}", proc)}
    assert "1024 is too low" in found["open files"].message
    assert "LimitNOFILE=4256" in found["open files"].hint
