"""A host of another kind than this machine: Debian with systemd as its init, and control groups of
version 2 alone, as an emulated machine.

Its root file system is this machine's, read-only, so that it runs this checkout; its kernel is the
guest's, with the modules that the guest has. Tests of `e2e.inside` run there (`e2e/inside`), and
say on the second serial port how they ended.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from e2e.harness.daemon import PROJECT, THAWD
from hostlib.process import ENVIRONMENT
from vmm.guest_image import cpio, kernel, modules

BUILD: Final = PROJECT / ".build"
GUEST: Final = BUILD / "guest"
MODULES: Final = ("nft_nat", "nft_fib_inet", "sch_ingress", "cls_u32", "act_mirred", "autofs4")
"""What a host needs and no guest."""
INIT: Final = Path(__file__).with_suffix(".init")
MANIFEST: Final = PROJECT / "manifests" / "thawd.service"

MEMORY_MIB: Final = 2048
DISK_SIZE: Final = 8 * 2**30
"""Bytes; it is sparse."""

# The kernel measures the TSC against a timer, and is far out where the machine is busy meanwhile.
COMMAND_LINE: Final = (
    "console=ttyS0 quiet panic=-1 reboot=t mitigations=off clocksource=hpet no_timer_check "
    "random.trust_cpu=on net.ifnames=0 cryptomgr.notests audit=0 lsm=landlock nowatchdog "
    "cgroup_no_v1=all systemd.unified_cgroup_hierarchy=1 systemd.log_target=kmsg psi=1"
)

TARGET: Final = """\
[Unit]
DefaultDependencies=no
Wants=inside.service thawd.service
"""

# Each plugin that is loaded takes an emulated machine seconds.
_OPTIONS: Final = (
    "--timeout 0 --maxfail 1 --color no --tb short "
    "-p no:cacheprovider -p no:hypothesispytest -p no:anyio"
)

DRIVER: Final = f"""\
[Unit]
DefaultDependencies=no
SuccessAction=poweroff-force
FailureAction=poweroff-force
[Service]
Type=oneshot
WorkingDirectory={PROJECT}
Environment=PATH={ENVIRONMENT["PATH"]} PYTHONDONTWRITEBYTECODE=1
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
TimeoutStartSec=infinity
ExecStart={sys.executable} -m pytest {_OPTIONS} %TESTS%
"""


@dataclass(frozen=True)
class Outcome:
    """How a test ended there; `error` is empty where it passed."""

    error: str
    seconds: float


def service() -> str:
    """The manifest's unit, for this checkout; what it waits for at boot is not there."""
    text = re.sub(r"^(After|Wants)=.*\n", "", MANIFEST.read_text(), flags=re.MULTILINE)
    for before, after in (
        ("[Unit]\n", "[Unit]\nDefaultDependencies=no\n"),
        ("[Service]\n", "[Service]\nStandardError=tty\nTTYPath=/dev/ttyS0\n"),
        ("/usr/bin/thawd", str(THAWD)),
    ):
        assert before in text
        text = text.replace(before, after)
    return text


def more_modules() -> Path:
    """An archive of MODULES and what they need besides the guest's, made once for each kernel."""
    package = asyncio.run(kernel.fetch(BUILD))
    key = hashlib.sha256(" ".join((package.name, *MODULES)).encode()).hexdigest()[:16]
    made = BUILD / "host-vm" / f"{key}.cpio"
    if made.exists():
        return made
    made.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=made.parent) as folder:
        unpacked = asyncio.run(kernel.unpack(package, Path(folder) / "kernel"))
        dep = modules.parse_dep((unpacked.modules / "modules.dep").read_text())
        of_guest, builtin = modules.read_folder(unpacked.modules)
        by_name = {modules.name_of(path): path for path in dep}
        paths = [by_name[name] for name in MODULES if name not in builtin]
        order = dict.fromkeys(need for path in paths for need in (*reversed(dep[path]), path))
        entries = [cpio.folder("more")]
        for number, path in enumerate(each for each in order if each not in of_guest):
            # By their names in the order of their loading.
            name = f"more/{number:02}-{modules.name_of(path)}.ko"
            entries.append(cpio.file(name, modules.unpack(unpacked.modules / path)))
        draft = Path(folder) / made.name
        draft.write_bytes(cpio.archive(entries))
        draft.rename(made)
    return made


class HostVm:
    """The host, with what it writes under `folder`; `root` is what its /var/lib/thaw begins with,
    `config` its /etc/thaw/config.toml, and `tests` what runs there."""

    def __init__(self, folder: Path, root: Path, config: str, tests: Path) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.root = root
        self.config = config
        self.tests = tests
        self.console = folder / "console.log"
        self.report = folder / "report.jsonl"
        self._disk = folder / "disk.ext4"
        self._initramfs = folder / "initramfs.cpio"

    def _prepare(self) -> None:
        units = {
            "inside.target": TARGET,
            "inside.service": DRIVER.replace("%TESTS%", str(self.tests)),
            "thawd.service": service(),
        }
        entries = [
            *(cpio.folder(name) for name in ("bin", "units")),
            cpio.file("init", INIT.read_bytes(), 0o755),
            cpio.file("bin/busybox", Path("/bin/busybox").read_bytes(), 0o755),
            *(cpio.file(f"units/{name}", text.encode()) for name, text in units.items()),
            cpio.file("config.toml", self.config.encode()),
        ]
        # The kernel unpacks one archive after the other, and the later ones' files win.
        parts = ((GUEST / "initramfs.cpio").read_bytes(), more_modules().read_bytes())
        self._initramfs.write_bytes(b"".join((*parts, cpio.archive(entries))))
        with self._disk.open("wb") as disk:
            disk.truncate(DISK_SIZE)
        argv = ["mke2fs", "-q", "-F", "-t", "ext4", "-d", str(self.root), str(self._disk)]
        subprocess.run(argv, check=True, env=dict(ENVIRONMENT))

    def _argv(self) -> list[str]:
        return [
            # It has no business without the test.
            *("setpriv", "--pdeathsig", "SIGKILL", "qemu-system-x86_64"),
            *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *("-machine", "q35,usb=off,sata=off,smbus=off", "-smp", "2", "-m", f"{MEMORY_MIB}M"),
            *("-accel", "tcg,thread=multi,tb-size=512"),
            *("-cpu", "max,la57=off,erms=off,fsrm=off,smap=off"),
            *("-kernel", str(GUEST / "vmlinuz"), "-initrd", str(self._initramfs)),
            *("-append", COMMAND_LINE),
            *("-serial", f"file:{self.console}", "-serial", f"file:{self.report}"),
            *("-fsdev", "local,id=root,path=/,readonly=on,security_model=none,multidevs=remap"),
            *("-device", "virtio-9p-pci,fsdev=root,mount_tag=root"),
            *("-drive", f"file={self._disk},if=none,id=disk,format=raw,cache=unsafe"),
            *("-device", "virtio-scsi-pci", "-device", "scsi-hd,drive=disk"),
        ]

    def run(self, seconds: float) -> dict[str, Outcome]:
        """Boot, and wait until the tests have run and the host is off: how each test ended, by
        name. AssertionError where it does not come to that, in so many seconds."""
        self._prepare()
        try:
            done = subprocess.run(
                self._argv(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=seconds,
                check=False,
                env=dict(ENVIRONMENT),
            )
            problem = done.stderr.decode(errors="replace") if done.returncode else ""
        except subprocess.TimeoutExpired:
            problem = f"the host was not done in {seconds:g} s"
        finally:
            self._disk.unlink()
        assert not problem, f"{problem}\n{self.tail()}"
        outcomes = {}
        for line in self.report.read_text(errors="replace").splitlines():
            found: dict[str, Any] = json.loads(line)
            outcomes[found["name"]] = Outcome(found["error"], found["seconds"])
        return outcomes

    def keep(self, place: Path) -> None:
        """Copy what it said to the folder `place`."""
        place.mkdir(parents=True, exist_ok=True)
        for log in (self.console, self.report):
            if log.exists():
                shutil.copyfile(log, place / log.name)

    def tail(self) -> str:
        """The end of its console."""
        return self.console.read_text(errors="replace")[-6000:]
