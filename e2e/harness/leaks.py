"""Finds what a daemon left on the host.

Everything global carries the instance's id; everything else has the daemon's folders in it: in a
process's command line, environment, files or mounts, in a mount, a socket's path, or behind a loop
device. `remnants` looks into the folders themselves: a daemon that ended without pods keeps
nothing of theirs there.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from hostlib.process import ENVIRONMENT

PLACES: Final = ("/run", "/dev/shm", "/tmp", "/var/tmp", "/var/lib", "/var/run", "/etc/cni")
"""Where programs leave files; what carries the instance's id there, two levels deep, is found."""


_ANOTHERS: Final = re.compile(r"\A(thaw-|qemu)|/tmp/thaw-")
"""Found in the traces of a process, the first of which is its name: it is an instance's, or a run's
of tests."""


def _own() -> set[int]:
    """This process and its parents."""
    own = {os.getpid()}
    above = os.getppid()
    while above > 1:
        own.add(above)
        above = parent(above)
    return own


def parent(pid: int) -> int:
    """The parent of a process; 0 where there is none, or the process is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def command(pid: int) -> bytes:
    """The arguments of a process, each with a zero byte after it; b"" where it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def marked(*marks: str) -> Iterator[tuple[int, str]]:
    """The pids that carry any of `marks`, less this one and its parents, with all their traces."""
    own = _own()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) in own:
            continue
        try:
            traces = "\n".join(_traces(entry))
        except OSError:
            # It ended while it was looked at.
            continue
        if any(mark in traces for mark in marks):
            yield int(entry.name), traces


def processes(*marks: str) -> list[str]:
    """The processes that carry any of `marks`."""
    found = []
    for pid, _ in marked(*marks):
        text = command(pid).replace(b"\0", b" ").decode(errors="replace")
        if Path(f"/proc/{pid}").exists():
            found.append(f"process {pid} {text[:200]}")
    return found


def _traces(entry: Path) -> Iterator[str]:
    for name in ("comm", "cmdline", "environ", "cgroup"):
        yield (entry / name).read_bytes().replace(b"\0", b" ").decode(errors="replace")
    for name in ("cwd", "root", "exe"):
        with contextlib.suppress(FileNotFoundError):
            yield os.readlink(entry / name)
    for descriptor in (entry / "fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            yield os.readlink(descriptor)


def mounts(*marks: str) -> list[str]:
    """Mounts in this mount namespace that carry a mark; pinned namespaces are such mounts too."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [f"mount {line}" for line in lines if any(mark in line for mark in marks)]


def hidden_mounts(*marks: str) -> list[str]:
    """Mounts that carry a mark in the mount namespaces of other processes.

    Where the host's mounts are private, each shim's namespace keeps what was mounted as it was
    born; those of other instances, which run beside, say nothing of this one, nor do the programs
    of other runs of tests and measurements.
    """
    seen = {os.stat("/proc/self/ns/mnt").st_ino}
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            namespace = os.stat(entry / "ns" / "mnt").st_ino
            if namespace in seen:
                continue
            traces = "\n".join(_traces(entry))
            if _ANOTHERS.search(traces) and not any(mark in traces for mark in marks):
                continue
            seen.add(namespace)
            lines = (entry / "mountinfo").read_text().splitlines()
        except OSError:
            continue
        found += [
            f"hidden-mount {entry.name} {line}" for line in lines if any(m in line for m in marks)
        ]
    return found


def _output(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env=dict(ENVIRONMENT))
    if done.returncode != 0:
        raise AssertionError(f"{' '.join(argv)}: {done.stderr}")
    return done.stdout


def links(instance: str) -> list[str]:
    """Network interfaces of the host that carry the instance's id: bridges, veths, taps."""
    items = json.loads(_output("ip", "-json", "link", "show") or "[]")
    return [f"link {item['ifname']}" for item in items if instance in item["ifname"]]


def tables(instance: str) -> list[str]:
    """nftables tables that carry the instance's id."""
    lines = _output("nft", "list", "tables").splitlines()
    return [f"nft {line}" for line in lines if instance in line]


def cgroups(*marks: str) -> list[str]:
    """Control groups that carry a mark, in every hierarchy. Pods with a parent of their own are in
    groups named after their VM, not the instance."""
    return [
        f"cgroup {folder}/{name}"
        for folder, names, _ in os.walk("/sys/fs/cgroup")
        for name in names
        if any(mark in name for mark in marks)
    ]


def files(instance: str) -> list[str]:
    """Files that carry the instance's id in their name, in the `PLACES` where programs leave some:
    named network namespaces, sockets, shared memory among them."""
    found: set[str] = set()
    for place in {os.path.realpath(place) for place in PLACES}:
        # Others' folders vanish meanwhile, which `os.walk` passes over.
        for folder, folders, names in os.walk(place):
            found.update(os.path.join(folder, n) for n in (*folders, *names) if instance in n)
            if folder != place:
                folders.clear()
    return [f"file {path}" for path in sorted(found)]


def sockets(*marks: str) -> list[str]:
    """Unix sockets, abstract ones too, whose name carries a mark."""
    lines = Path("/proc/net/unix").read_text(errors="replace").splitlines()[1:]
    named = [line.split(maxsplit=7)[7] for line in lines if len(line.split(maxsplit=7)) == 8]
    return [f"socket {name}" for name in named if any(mark in name for mark in marks)]


def loops(*marks: str) -> list[str]:
    """Loop devices over files that carry a mark."""
    found = []
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            backing = path.read_text().strip()
            if any(mark in backing for mark in marks):
                found.append(f"loop /dev/{path.parts[3]} {backing}")
    return found


def remnants(root: Path, state: Path) -> list[str]:
    """What pods, pulls and bakes left within a daemon's own folders."""
    patterns = (
        (state, "vms/*"),
        (state, "netns/*"),
        (state, "network/leases/[0-9]*"),
        (state, "cni/cache/*"),
        (state, "cni/host-local/*/[0-9]*"),
        (root, "scratch/*"),
        (root, "images/**/ingest/*"),
        (root, "snapshots/.*"),
    )
    found = [f"remnant {path}" for folder, each in patterns for path in folder.glob(each)]
    # What a record is written to before it is renamed.
    for folder in (root, state):
        found += [f"remnant {path}" for path in folder.rglob(".*.tmp")]
    return sorted(found)


def unclaimed(instance: str, root: Path, state: Path, daemon: int) -> list[str]:
    """What no VM of a daemon that runs (pid `daemon`) accounts for: what a daemon that ends, or the
    next one that starts, would clear away unseen."""
    vms = {path.name for path in (state / "vms").glob("*")}
    bound = {path.parent.name for path in (state / "vms").glob("*/pod.json")}
    found = []
    processes = list(marked(str(root), str(state), f"thaw-{instance}"))
    made = (*(state / "netns").glob("*"), *(root / "scratch").glob("*"))
    # A VM's folder is made first and removed last: one that began meanwhile is there now.
    vms |= {path.name for path in (state / "vms").glob("*")}
    for pid, traces in processes:
        if not _descends(pid, daemon) and not any(vm in traces for vm in vms):
            found.append(f"process {pid} {traces[:200]!r}")
    found += [f"remnant {path}" for path in made if path.name.split(".")[0] not in vms]
    prefix = f"t{instance}"
    for each in links(instance):
        name = each.removeprefix("link ")
        if name.startswith(prefix) and name.removeprefix(prefix) not in vms:
            found.append(each)
    for each in cgroups("thaw-"):
        folder, _, name = each.rpartition("/")
        if folder.endswith(f"/thaw-{instance}") and name.removeprefix("thaw-") not in bound:
            found.append(each)
    found += [
        f"remnant {path}"
        for path in (state / "network" / "leases").glob("[0-9a-f]*.json")
        if json.loads(path.read_text())["vm"] not in bound
    ]
    if not bound:
        rules = _output("nft", "list", "table", "inet", f"thaw-{instance}")
        found += [f"nft {line.strip()}" for line in rules.splitlines() if "elements" in line]
    found += [f"remnant {path}" for path in (root / "images").glob("**/ingest/*")]
    found += [f"remnant {path}" for path in (root / "snapshots").glob(".*")]
    return found


def _descends(pid: int, ancestor: int) -> bool:
    """Whether a process is `ancestor` or below it; one that has just ended counts as such. The
    zygote's children are the daemon's too, though the kernel gives them to init."""
    try:
        while pid > 1:
            if pid == ancestor or Path(f"/proc/{pid}/comm").read_text() == "thaw-bake\n":
                return True
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return True
    return False


def all_of(instance: str, *folders: Path, vms: Sequence[str] = ()) -> list[str]:
    """Everything on the host of an instance whose daemon used `folders` and had these VMs."""
    places = [str(folder) for folder in folders]
    return [
        *processes(*places, f"thaw-{instance}"),
        *mounts(*places),
        *hidden_mounts(*places),
        *links(instance),
        *tables(instance),
        *cgroups(instance, *(f"thaw-{vm}" for vm in vms)),
        *files(instance),
        *sockets(*places, instance),
        *loops(*places),
    ]
