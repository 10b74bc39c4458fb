from __future__ import annotations

import pwd

import pytest

from cli import host_checks
from cri import config
from cri.config import Config, Vm
from hostlib import mountinfo
from vmm.qemu.confine import Confinement


def test_every_finding_that_is_not_good_has_a_hint() -> None:
    findings = list(host_checks.all_findings())
    assert findings
    assert all(finding.hint for finding in findings if finding.level != "ok")


def test_missing_programs_name_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_checks, "_which", lambda program: None)
    found = {finding.name: finding for finding in host_checks.all_findings()}
    assert found["qemu"].level == "missing"
    assert "qemu-system-x86" in found["qemu"].hint
    assert "squashfs-tools" in found["sqfstar"].hint


def test_an_old_qemu_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    program = tmp_path_factory.mktemp("bin") / "qemu"
    program.write_text("#!/bin/sh\necho 'QEMU emulator version 5.2.0'\n")
    program.chmod(0o755)
    monkeypatch.setattr(host_checks, "_which", lambda name: str(program))
    found = {finding.name: finding for finding in host_checks.all_findings()}
    assert found["qemu"].level == "missing"
    assert "5.2" in found["qemu"].message


@pytest.mark.parametrize(("base", "message"), [(0, "as root"), (65536, "nobody-in-range")])
def test_ids_that_are_not_a_workers_alone_are_told(
    monkeypatch: pytest.MonkeyPatch, base: int, message: str
) -> None:
    user = pwd.struct_passwd(("nobody-in-range", "x", 65537, 65537, "", "/", "/bin/sh"))
    monkeypatch.setattr(config, "load", lambda _: Config(vm=Vm(uid_base=base)))
    monkeypatch.setattr(Confinement, "probe", lambda _: "")
    monkeypatch.setattr(pwd, "getpwall", lambda: [user])
    found = {finding.name: finding for finding in host_checks.all_findings()}
    assert found["worker"].level == "warning"
    assert message in found["worker"].message
    assert "vm.uid_base" in found["worker"].hint


def test_a_host_that_cannot_confine_qemu_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Confinement, "probe", lambda _: "no such call")
    found = {finding.name: finding for finding in host_checks.all_findings()}
    assert found["worker"].level == "missing"
    assert "no such call" in found["worker"].message


@pytest.mark.parametrize(("tags", "level"), [(b"", "warning"), (b"shared:1 ", "ok")])
def test_a_host_whose_mounts_are_private_is_told(
    monkeypatch: pytest.MonkeyPatch, tags: bytes, level: str
) -> None:
    # The last of those at one path covers the others.
    lines = (
        b"1 1 0:1 / / rw shared:2 - rootfs none rw",
        b"22 1 8:1 / / rw %s- ext4 /dev/a rw" % tags,
        b"23 22 0:5 / /proc rw shared:5 - proc proc rw",
    )
    monkeypatch.setattr(mountinfo, "read", lambda: [mountinfo.parse(line) for line in lines])
    found = {finding.name: finding for finding in host_checks.all_findings()}
    assert found["mounts"].level == level
