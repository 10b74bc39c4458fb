from __future__ import annotations

import pytest

from cli import host_checks


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
