"""The worker's confinement: what a compromised QEMU could still see and do.

A worker has a user id that nobody else has, four capabilities over files, a root that shows its
programs and its pod's shared folder, and nothing to become more with. Its guest's files come as
descriptors.
"""

from __future__ import annotations

import os
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hostlib import linux

CAPABILITIES: Final = (
    linux.CAP_CHOWN,
    linux.CAP_DAC_OVERRIDE,
    linux.CAP_FOWNER,
    linux.CAP_FSETID,
)
"""What the 9p server needs to act in a volume for every user of the guest: give files to their
owner, work on files of others, change their mode, keep their set-id bits. No others: CAP_MKNOD
would make device nodes for whoever is on the host, CAP_DAC_READ_SEARCH opens files by handle,
anywhere; file capabilities, which need CAP_SETFCAP, QEMU's server does not carry.
"""

OPEN_FILES: Final = 65536
"""Descriptors of a worker, mostly files that its guest has open in volumes."""

SHARE: Final = "share"
"""Where a worker finds its shared folder, below its root."""

HINT: Final = "thawd needs root, Linux 5.12, and in a container all capabilities"

_UNUSED: Final = ("libcapstone.so.4", "libpmem.so.1")
_LIBRARIES: Final = ("bin", "lib", "lib32", "lib64")
_ROOT: Final = "worker"
_PROC_OPTIONS: Final = "hidepid=ptraceable,subset=pid"
_PROGRAM: Final = linux.MOUNT_ATTR_RDONLY | linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NODEV


def _stand_ins() -> tuple[tuple[str, str], ...]:
    built = Path(__file__).with_name("stand_in.so")
    if not built.is_file():
        return ()
    places = [*Path("/usr").glob("lib*/"), *Path("/usr/lib").glob("*/")]
    installed = (place / name for place in places for name in _UNUSED)
    return tuple((os.path.realpath(path), str(built)) for path in installed if path.is_file())


STAND_INS: Final = _stand_ins()
"""Libraries that a worker has no use for: their path, and that of what stands in for each.

`make setup` builds it (`stand_in.rs` says what for); a worker runs without it too. Looked for once,
before processes are forked that would each do it for themselves.
"""


@dataclass(frozen=True)
class Confinement:
    """How one worker is confined; all of it is read before the fork.

    ``uid`` is also the group's; 0 leaves the worker root's id, with the capabilities alone.
    """

    uid: int
    share: Path
    qemu: Path
    devices: tuple[str, ...] = ()
    """Device files that it opens by path."""
    own_network: bool = False
    """A network namespace that leads nowhere, instead of its parent's."""
    stand_ins: tuple[tuple[str, str], ...] = STAND_INS

    def enter(self) -> None:
        """Confine the calling process, for good; its next step is the exec of QEMU.

        Runs in a forked child: system calls alone. Raises OSError.
        """
        _dump_nothing()
        flags = linux.CLONE_NEWNS | linux.CLONE_NEWIPC
        linux.unshare(flags | linux.CLONE_NEWNET if self.own_network else flags)
        self._change_root()
        _limit(resource.RLIMIT_CORE, 0)
        _limit(resource.RLIMIT_NOFILE, OPEN_FILES)
        self._drop()

    def probe(self) -> str:
        """Why no process can be confined so on this host; "" when one can.

        Forks: call it where no other thread holds a lock that the child could need. Blocking.
        """
        told, tell = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                self.enter()
            except OSError as error:
                os.write(tell, str(error).encode())
            finally:
                os._exit(0)
        os.close(tell)
        with open(told, "rb") as source:
            why = source.read().decode(errors="replace")
        os.waitpid(child, 0)
        return why

    def _change_root(self) -> None:
        linux.mount("none", "/", flags=linux.MS_REC | linux.MS_SLAVE)
        share = linux.open_tree(str(self.share))
        # In this namespace alone the new root covers the folder that it shows.
        top = str(self.share)
        hardened = linux.MS_NOSUID | linux.MS_NOEXEC | linux.MS_NODEV
        linux.mount("thaw", top, "tmpfs", hardened, "mode=0755,size=64k,nr_inodes=64")
        root = os.path.join(top, _ROOT)
        os.mkdir(root, 0o755)
        for path in self._programs():
            _show(path, root, path, _PROGRAM)
        for path, other in self.stand_ins:
            _show(other, root, path, _PROGRAM)
        for path in self.devices:
            _show(path, root, path, linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NOEXEC)
        for name in _LIBRARIES:
            # Where /usr holds them.
            if os.path.islink(f"/{name}"):
                os.symlink(os.readlink(f"/{name}"), os.path.join(root, name))
        # The 9p server works through /proc/self/fd; no other process is seen there.
        proc = _place(root, "proc", folder=True)
        linux.mount("proc", proc, "proc", hardened | linux.MS_RDONLY, _PROC_OPTIONS)
        linux.move_mount(share, _place(root, SHARE, folder=True))
        os.close(share)
        os.chdir(top)
        linux.pivot_root(".", ".")
        linux.umount(".", linux.MNT_DETACH)
        linux.mount(
            "none", "/", flags=linux.MS_REMOUNT | linux.MS_BIND | linux.MS_RDONLY | hardened
        )
        # One below the namespace's root: the kernel makes no user namespace for who is there.
        os.chroot(_ROOT)
        os.chdir("/")

    def _programs(self) -> list[str]:
        found = [f"/{name}" for name in ("usr", *_LIBRARIES) if not os.path.islink(f"/{name}")]
        found.append("/etc/ld.so.cache")
        folder = self.qemu.parent
        if folder.parts[:2] != ("/", "usr"):
            # An installation of its own has its libraries and firmware beside its `bin`.
            found.append(str(folder.parent if folder.name == "bin" else folder))
        return [path for path in found if os.path.exists(path)]

    def _drop(self) -> None:
        for number in range(linux.CAP_MAX + 1):
            if number not in CAPABILITIES:
                try:
                    linux.prctl(linux.PR_CAPBSET_DROP, number)
                except OSError:
                    # EINVAL: the kernel has no more.
                    break
        if self.uid:
            linux.prctl(linux.PR_SET_KEEPCAPS, 1)
            os.setgroups([])
            os.setresgid(self.uid, self.uid, self.uid)
            os.setresuid(self.uid, self.uid, self.uid)
        linux.set_capabilities(CAPABILITIES)
        # Ambient ones alone stay over an exec by who is not root.
        for number in CAPABILITIES:
            linux.prctl(linux.PR_CAP_AMBIENT, linux.PR_CAP_AMBIENT_RAISE, number)
        linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)


def _dump_nothing() -> None:
    """A core pattern that is a pipe disregards RLIMIT_CORE; a guest's memory is in no dump."""
    descriptor = os.open("/proc/self/coredump_filter", os.O_WRONLY)
    os.write(descriptor, b"0")
    os.close(descriptor)


def _limit(kind: int, wanted: int) -> None:
    _, hard = resource.getrlimit(kind)
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    resource.setrlimit(kind, (wanted, wanted))


def _place(root: str, path: str, *, folder: bool) -> str:
    """Make the folder or file `path` below `root`, to be mounted over."""
    place = os.path.join(root, path.lstrip("/"))
    os.makedirs(place if folder else os.path.dirname(place), mode=0o755, exist_ok=True)
    if not folder and not os.path.exists(place):
        os.close(os.open(place, os.O_WRONLY | os.O_CREAT, 0o644))
    return place


def _show(path: str, root: str, at: str, attributes: int) -> None:
    """Mount what is at `path` at the path `at` below `root`."""
    tree = linux.open_tree(path)
    linux.restrict_mount(tree, attributes)
    linux.move_mount(tree, _place(root, at, folder=os.path.isdir(path)))
    os.close(tree)
