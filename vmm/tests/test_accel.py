from pathlib import Path

import pytest

from hostlib.errors import FailedPrecondition, InvalidArgument
from vmm.accel import Accelerator, cpu_flags, disproved, probe

INTEL = "processor : 0\nflags\t\t: fpu vme vmx sse2\n\nprocessor : 1\nflags : fpu\n"
BARE = "processor : 0\nflags\t\t: fpu vme hypervisor\n"


@pytest.fixture
def kvm(tmp_path: Path) -> Path:
    path = tmp_path / "kvm"
    path.touch()
    return path


def cpu(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "cpuinfo"
    path.write_text(text)
    return path


def test_flags() -> None:
    assert "vmx" in cpu_flags(INTEL)
    assert cpu_flags("model name: x") == frozenset()


def choose(
    kvm: Path, cpuinfo: Path, override: str = "auto", machine: str = "x86_64"
) -> Accelerator:
    return probe(override, kvm=kvm, cpuinfo=cpuinfo, machine=machine, system="Linux")


def test_kvm_needs_the_flag(kvm: Path, tmp_path: Path) -> None:
    assert choose(kvm, cpu(tmp_path, INTEL)).name == "kvm"
    found = choose(kvm, cpu(tmp_path, BARE))
    assert found.name == "tcg"
    assert "no vmx or svm" in found.reason
    assert found.warnings


def test_kvm_needs_the_device(tmp_path: Path) -> None:
    found = choose(tmp_path / "absent", cpu(tmp_path, INTEL))
    assert found.name == "tcg"
    assert "does not open" in found.reason


def test_arm_has_no_flag(kvm: Path, tmp_path: Path) -> None:
    assert choose(kvm, cpu(tmp_path, ""), machine="aarch64").name == "kvm"


def test_override(kvm: Path, tmp_path: Path) -> None:
    bare = cpu(tmp_path, BARE)
    forced = choose(kvm, bare, "kvm")
    assert forced.name == "kvm"
    assert forced.forced
    assert not choose(kvm, bare, "tcg").warnings
    with pytest.raises(FailedPrecondition):
        choose(tmp_path / "absent", bare, "kvm")
    with pytest.raises(FailedPrecondition):
        choose(kvm, bare, "hvf")
    with pytest.raises(InvalidArgument):
        choose(kvm, bare, "xen")


def test_a_failed_proof_falls_back_unless_forced() -> None:
    assert disproved(Accelerator("kvm", "found"), "it hung").name == "tcg"
    with pytest.raises(FailedPrecondition):
        disproved(Accelerator("kvm", "set", forced=True), "it hung")
