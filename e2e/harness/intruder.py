"""A compromised worker: a process with all that a worker's has, that tries what it must not.

Run as a program it takes the worker's pid and reads the attempts as JSON; it joins the worker's
namespaces and root, copies its descriptors, becomes its user with its capabilities, and answers
with what became of each attempt: "" where it succeeded, else the error's name. It has no seccomp
filter: what is refused here is refused without one too.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from hostlib import linux
from hostlib.process import ENVIRONMENT

_SYS_PIDFD_GETFD: Final = 438
_PTRACE_SEIZE: Final = 0x4206
_CLONE_NEWUSER: Final = 0x10000000
_PROJECT: Final = Path(__file__).resolve().parents[2]

_libc: Final = ctypes.CDLL(None, use_errno=True)


def attempt(pid: int, *attempts: tuple[str, str]) -> list[str]:
    """What became of each attempt, a kind and its argument, made as the worker `pid`."""
    done = subprocess.run(
        [sys.executable, "-m", "e2e.harness.intruder", str(pid)],
        input=json.dumps(attempts),
        capture_output=True,
        text=True,
        check=False,
        cwd=_PROJECT,
        env=dict(ENVIRONMENT),
    )
    assert done.returncode == 0, done.stderr
    found: list[str] = json.loads(done.stdout)
    return found


def status(pid: int) -> dict[str, str]:
    """The lines of /proc/<pid>/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _check(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
    return result


def _copies(pid: int) -> list[int]:
    """The worker's descriptors of regular files, as this process's own."""
    process = os.pidfd_open(pid)
    found = []
    for number in os.listdir(f"/proc/{pid}/fd"):
        call = (ctypes.c_long(_SYS_PIDFD_GETFD), process, int(number), 0)
        descriptor = _check(_libc.syscall(*call))
        if stat.S_ISREG(os.fstat(descriptor).st_mode) and not _is_memory(descriptor):
            found.append(descriptor)
    return found


def _is_memory(descriptor: int) -> bool:
    return os.readlink(f"/proc/self/fd/{descriptor}").startswith("/memfd:")


def _become(pid: int) -> None:
    found = status(pid)
    effective = int(found["CapEff"], 16)
    numbers = [number for number in range(64) if effective >> number & 1]
    root = os.open(f"/proc/{pid}/root", os.O_PATH)
    for name in ("net", "ipc", "mnt"):
        namespace = os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY)
        linux.setns(namespace, 0)
        os.close(namespace)
    os.fchdir(root)
    os.chroot(".")
    os.close(root)
    for number in range(64):
        if number not in numbers:
            try:
                linux.prctl(linux.PR_CAPBSET_DROP, number)
            except OSError:
                break
    linux.prctl(linux.PR_SET_KEEPCAPS, 1)
    uid, gid = int(found["Uid"].split()[0]), int(found["Gid"].split()[0])
    os.setgroups([int(group) for group in found["Groups"].split()])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    linux.set_capabilities(numbers)


def _read(path: str) -> None:
    if os.path.isdir(path):
        os.listdir(path)
    else:
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))


def _write(path: str) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))


def _look_at_processes(worker: str) -> None:
    """Succeeds where any process shows but this one and the worker."""
    shown = {name for name in os.listdir("/proc") if name.isdigit()}
    if not shown - {worker, str(os.getpid())}:
        raise OSError(errno.ENOENT, "")


def _change(kind: str, copies: list[int]) -> None:
    """Change the read-only files that the worker has descriptors of; succeeds where one changes."""
    failure = OSError(errno.ENODATA, "")
    for descriptor in copies:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY:
            continue
        try:
            if kind == "mode":
                os.fchmod(descriptor, 0o777)
            else:
                os.close(os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR))
            return
        except OSError as error:
            failure = error
    raise failure


_KINDS: Final[dict[str, Callable[[str], Any]]] = {
    "read": _read,
    "write": _write,
    "kill": lambda pid: os.kill(int(pid), 0),
    "trace": lambda pid: _check(_libc.ptrace(_PTRACE_SEIZE, int(pid), None, None)),
    "processes": _look_at_processes,
    "user namespace": lambda _: linux.unshare(_CLONE_NEWUSER),
    "mount namespace": lambda _: linux.unshare(linux.CLONE_NEWNS),
    "mount": lambda _: linux.mount("x", "/share", "tmpfs"),
    "root": lambda _: os.setresuid(0, 0, 0),
    "chroot": os.chroot,
    "device": lambda path: os.mknod(path, 0o600 | stat.S_IFBLK, os.makedev(8, 0)),
}


def main() -> None:
    """Do what the module says."""
    attempts = json.load(sys.stdin)
    copies = _copies(int(sys.argv[1]))
    _become(int(sys.argv[1]))
    results = []
    for kind, argument in attempts:
        try:
            if kind == "change":
                _change(argument, copies)
            else:
                _KINDS[kind](argument)
            results.append("")
        except OSError as error:
            results.append(errno.errorcode[error.errno or 0])
    sys.stdout.write(json.dumps(results))


if __name__ == "__main__":
    signal.alarm(60)
    main()
