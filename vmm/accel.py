"""Chooses the accelerator: KVM where it truly works, else TCG, with the reason in words."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hostlib.errors import FailedPrecondition, InvalidArgument

NAMES: Final = ("auto", "kvm", "tcg", "hvf")

PROOF_TIMEOUT: Final = 30.0
"""Seconds in which a guest under KVM must boot at bake, or KVM is taken as broken. Some hosts offer
a KVM in which a stock guest hangs."""

_KVM: Final = Path("/dev/kvm")
_CPUINFO: Final = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Accelerator:
    """The accelerator as QEMU names it, why it was chosen, and what the user should know."""

    name: str
    reason: str
    warnings: tuple[str, ...] = ()
    forced: bool = False
    """Asked for by the configuration: it is not replaced when it fails."""


def cpu_flags(cpuinfo: str) -> frozenset[str]:
    """The flags of the first CPU in /proc/cpuinfo's text (x86)."""
    for line in cpuinfo.splitlines():
        name, colon, value = line.partition(":")
        if colon and name.strip() == "flags":
            return frozenset(value.split())
    return frozenset()


def _opens(path: Path) -> str | None:
    """None when the device opens for reading and writing, else why not."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"{path} does not open ({os.strerror(error.errno or 0)})"
    return None


def tcg(why: str) -> Accelerator:
    """Emulation, with the warning that it is slow."""
    return Accelerator(
        "tcg",
        why,
        (f"{why}: guests are emulated (TCG) and run several times slower than with KVM",),
    )


def probe(
    override: str = "auto",
    *,
    kvm: Path = _KVM,
    cpuinfo: Path = _CPUINFO,
    machine: str | None = None,
    system: str | None = None,
) -> Accelerator:
    """Choose an accelerator for this host; `override` is the configuration's `accel`.

    KVM still has to prove itself by a boot when the first snapshot is baked (`vmm.bake`). Raises
    `InvalidArgument` for an unknown name and `FailedPrecondition` when a forced one is not there.
    """
    if override not in NAMES:
        raise InvalidArgument(
            f"unknown accelerator {override!r}", hint=f"one of {', '.join(NAMES)}"
        )
    machine = machine or platform.machine()
    system = system or platform.system()
    if override == "tcg":
        return Accelerator("tcg", "accel is set to tcg", forced=True)
    if override == "hvf" or (override == "auto" and system == "Darwin"):
        if system != "Darwin":
            raise FailedPrecondition("accel is set to hvf, which only macOS has")
        return Accelerator("hvf", "macOS", forced=override == "hvf")
    closed = _opens(kvm)
    if override == "kvm":
        if closed:
            raise FailedPrecondition(
                f"accel is set to kvm, but {closed}",
                hint='load the kvm module, or set accel = "auto"',
            )
        return Accelerator("kvm", "accel is set to kvm", forced=True)
    if closed:
        return tcg(closed)
    if machine in ("x86_64", "i686"):
        flags = cpu_flags(cpuinfo.read_text())
        if not flags & {"vmx", "svm"}:
            return tcg("the CPU shows no hardware virtualization (no vmx or svm flag)")
        found = "vmx" if "vmx" in flags else "svm"
        return Accelerator("kvm", f"{kvm} opens and the CPU has {found}")
    return Accelerator("kvm", f"{kvm} opens")


def disproved(accel: Accelerator, why: str) -> Accelerator:
    """What to use after `accel` failed its proving boot.

    Raises `FailedPrecondition` when the configuration forces it.
    """
    if accel.forced or accel.name == "tcg":
        raise FailedPrecondition(
            f"a guest did not boot with {accel.name}: {why}",
            hint='set accel = "auto" to fall back to emulation' if accel.name != "tcg" else None,
        )
    return tcg(f"{accel.name} was offered, but a guest did not boot with it ({why})")
