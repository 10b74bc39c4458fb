"""Executes a program that believes itself to own the host, and lets it change little of it.

``python -m e2e.harness.jail FOLDER PROGRAM [ARGUMENT...]``: PROGRAM is in a mount namespace where
the root file system is read-only but for FOLDER, a shared mount by whose propagation the host sees
what is mounted below it. /var/lib and /var/log are empty and the program's own, and the kernel
settings that a kubelet asks for have the values that it wants, without being set. Control groups
and devices are the host's, and the network is that of who starts it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from hostlib import linux

OWN: Final = ("/var/lib", "/var/log")
"""Where a kubelet writes, whatever its configuration says: device plugins, links to logs."""

FOREIGN: Final = ("/tmp", "/run")
"""Where other tests mount: what a namespace holds on to cannot go."""

SETTINGS: Final = {
    "vm/overcommit_memory": 1,
    "vm/panic_on_oom": 0,
    "kernel/panic": 10,
    "kernel/panic_on_oops": 1,
    "kernel/keys/root_maxkeys": 1_000_000,
    "kernel/keys/root_maxbytes": 25_000_000,
}
"""What a kubelet wants below /proc/sys: setupKernelTunables in kubernetes/pkg/kubelet/cm."""


def _below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")


def _mounts() -> Iterator[str]:
    """Mount points, the latest first."""
    for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
        yield line.split()[4].encode().decode("unicode_escape")


def enter(folder: Path) -> None:
    """Confine this process. `folder` is a shared mount; OSError where it cannot be done."""
    linux.unshare(linux.CLONE_NEWNS)
    # Twice: what others mount comes in until all is private.
    for _ in range(2):
        for path in _mounts():
            if _below(path, str(folder)):
                continue
            # Others unmount theirs meanwhile.
            with contextlib.suppress(OSError):
                linux.mount("none", path, flags=linux.MS_PRIVATE)
                if any(_below(path, place) for place in FOREIGN) and not _below(str(folder), path):
                    linux.umount(path)
    for place in OWN:
        linux.mount("tmpfs", place, "tmpfs", data="mode=755")
    values = folder / "settings"
    values.mkdir(exist_ok=True)
    for name, value in SETTINGS.items():
        stand_in = values / name.replace("/", ".")
        stand_in.write_text(f"{value}\n")
        linux.mount(str(stand_in), f"/proc/sys/{name}", flags=linux.MS_BIND)
    linux.mount("none", "/", flags=linux.MS_REMOUNT | linux.MS_BIND | linux.MS_RDONLY)


def main() -> None:
    folder, program, *arguments = sys.argv[1:]
    # It has no business without the test.
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGTERM)
    enter(Path(folder))
    os.chdir(folder)
    os.execv(program, [program, *arguments])


if __name__ == "__main__":
    main()
