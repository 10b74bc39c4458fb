"""What Thaw needs of a host, one small check for each; none of them changes anything."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal

from cri import config
from cri.config import default_guest_dir
from cri.oci.seccomp import compiler
from hostlib import ids, mountinfo
from hostlib.errors import ThawError
from hostlib.process import ENVIRONMENT
from vmm.qemu.confine import HINT as CONFINEMENT_HINT
from vmm.qemu.confine import Confinement

Level = Literal["ok", "warning", "missing"]

QEMU_MIN: Final = (7, 2)


@dataclass(frozen=True)
class Finding:
    """What was found; `missing` means that no pod can run."""

    name: str
    level: Level
    message: str
    hint: str = ""

    def to_dict(self) -> dict[str, str]:
        return asdict(self)


def all_findings() -> Iterator[Finding]:
    """Every finding about this host, in the order in which they matter."""
    for check in CHECKS:
        yield from check()


def _root() -> Iterator[Finding]:
    if os.geteuid() == 0:
        yield Finding("root", "ok", "running as root")
    else:
        yield Finding("root", "missing", "not running as root", "run thawd as root")


def _which(program: str) -> str | None:
    return shutil.which(program, path=ENVIRONMENT["PATH"])


def _qemu() -> Iterator[Finding]:
    path = _which("qemu-system-x86_64")
    if path is None:
        yield Finding(
            "qemu", "missing", "qemu-system-x86_64 not found", "apt-get install qemu-system-x86"
        )
        return
    done = subprocess.run(
        [path, "--version"], capture_output=True, text=True, check=False, env=dict(ENVIRONMENT)
    )
    match = re.search(r"version (\d+)\.(\d+)", done.stdout)
    if match is None:
        yield Finding("qemu", "missing", f"{path} tells no version", "reinstall qemu-system-x86")
    elif (int(match[1]), int(match[2])) < QEMU_MIN:
        yield Finding(
            "qemu", "missing", f"{match[0]} is too old", "install QEMU 7.2 or newer (Debian 12's)"
        )
    else:
        yield Finding("qemu", "ok", f"{path} {match[0]}")


def _worker() -> Iterator[Finding]:
    try:
        base = config.load(None).vm.uid_base
    except ThawError as error:
        yield Finding("worker", "warning", error.message, error.hint or "")
        return
    with tempfile.TemporaryDirectory(prefix="thaw-doctor-") as share:
        uid = ids.worker_uid(base, os.getpid())
        qemu = Path(_which("qemu-system-x86_64") or "/usr/bin/qemu-system-x86_64")
        why = Confinement(uid, Path(share), qemu).probe() if os.geteuid() == 0 else "not root"
    if why:
        yield Finding("worker", "missing", f"QEMU cannot be confined: {why}", CONFINEMENT_HINT)
        return
    last = base + ids.WORKER_UIDS
    users = [entry.pw_name for entry in pwd.getpwall() if base <= entry.pw_uid <= last]
    if base == 0:
        yield Finding(
            "worker",
            "warning",
            "QEMU runs as root, with four capabilities",
            "set vm.uid_base, unless volumes need root",
        )
    elif users:
        yield Finding(
            "worker",
            "warning",
            f"vm.uid_base {base}: {', '.join(users[:3])} has an id of that range",
            f"set vm.uid_base so that nobody has the {ids.WORKER_UIDS} ids from there on",
        )
    else:
        yield Finding("worker", "ok", f"QEMU is confined, with user ids from {base} on")


def _programs() -> Iterator[Finding]:
    for program, package in (("sqfstar", "squashfs-tools"), ("mkfs.ext4", "e2fsprogs")):
        if path := _which(program):
            yield Finding(program, "ok", path)
        else:
            yield Finding(program, "missing", f"{program} not found", f"apt-get install {package}")


def _seccomp() -> Iterator[Finding]:
    try:
        yield Finding(
            "libseccomp", "ok", f"{compiler.LIBRARY}, for containers' filters: {compiler.version()}"
        )
    except ThawError as error:
        yield Finding("libseccomp", "warning", error.message, error.hint or "")


def _accelerator() -> Iterator[Finding]:
    slow = "pods run under TCG, software emulation: correct, and several times slower"
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        yield Finding("kvm", "warning", f"no /dev/kvm; {slow}", "load kvm_intel or kvm_amd")
        return
    except OSError as error:
        yield Finding(
            "kvm", "warning", f"/dev/kvm: {error.strerror}; {slow}", "give thawd access to it"
        )
        return
    flags = set(re.findall(r"\b(vmx|svm)\b", Path("/proc/cpuinfo").read_text()))
    if flags:
        yield Finding("kvm", "ok", f"/dev/kvm opens, and the CPU has {flags.pop()}")
    else:
        yield Finding(
            "kvm",
            "warning",
            f"/dev/kvm opens, but the CPU has neither vmx nor svm; {slow}",
            "enable virtualization in the firmware, or nested virtualization in the hypervisor",
        )


def _vsock() -> Iterator[Finding]:
    if Path("/dev/vhost-vsock").exists():
        yield Finding("vsock", "ok", "/dev/vhost-vsock")
    else:
        yield Finding("vsock", "ok", "no /dev/vhost-vsock: virtio-serial is used")


def _tun() -> Iterator[Finding]:
    if Path("/dev/net/tun").exists():
        yield Finding("tun", "ok", "/dev/net/tun")
    else:
        yield Finding("tun", "missing", "no /dev/net/tun", "modprobe tun")


def _cgroup() -> Iterator[Finding]:
    if Path("/sys/fs/cgroup/cgroup.controllers").exists():
        yield Finding("cgroup", "ok", "version 2")
    elif Path("/sys/fs/cgroup/memory").is_dir():
        yield Finding(
            "cgroup",
            "warning",
            "version 1",
            "kubelets since 1.35 want failCgroupV1: false here; better boot with cgroup v2",
        )
    else:
        yield Finding(
            "cgroup", "warning", "none mounted: pods are not limited", "mount cgroup2 there"
        )


def _guest() -> Iterator[Finding]:
    folder = default_guest_dir()
    if folder.is_dir() and any(folder.iterdir()):
        yield Finding("guest", "ok", str(folder))
    else:
        yield Finding("guest", "missing", f"no guest image in {folder}", "make setup")


def _mounts() -> Iterator[Finding]:
    top = [each for each in mountinfo.read() if each.path == "/"]
    if top and top[-1].propagates:
        yield Finding("mounts", "ok", "/ is shared: volumes that the host unmounts are let go")
    else:
        yield Finding(
            "mounts",
            "warning",
            "/ is a private mount: a volume that the host unmounts stays in use until the VMs that"
            " began meanwhile end",
            "mount --make-rshared /, as kubelets want it too",
        )


def _memory() -> Iterator[Finding]:
    match = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    available = int(match[1]) // 1024 if match else 0
    if available < 1024:
        yield Finding(
            "memory",
            "warning",
            f"{available} MiB available",
            "a pod costs about 60 MiB and its use",
        )
    else:
        yield Finding("memory", "ok", f"{available} MiB available")


CHECKS: Final[tuple[Callable[[], Iterator[Finding]], ...]] = (
    _root,
    _qemu,
    _worker,
    _programs,
    _seccomp,
    _guest,
    _accelerator,
    _tun,
    _cgroup,
    _mounts,
    _vsock,
    _memory,
)
