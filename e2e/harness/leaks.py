"""Finds what a daemon left on the host: everything global carries the instance's id, and every
process has the test's folder, or the id, in its command line, environment, cgroup or files."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from hostlib.process import ENVIRONMENT


def processes(*marks: str) -> list[str]:
    """The processes that carry any of `marks`, less this one and its parents."""
    own = {os.getpid()}
    parent = os.getppid()
    while parent > 1:
        own.add(parent)
        parent = int(Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[1])
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) in own:
            continue
        try:
            traces = "\n".join(_traces(entry))
        except OSError:
            continue
        if any(mark in traces for mark in marks):
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            found.append(f"process {entry.name} {command[:200]}")
    return found


def _traces(entry: Path) -> Iterator[str]:
    # A process that ended while it is looked at raises OSError, and is none.
    yield (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    yield (entry / "cgroup").read_text()
    yield os.readlink(entry / "cwd")
    for descriptor in (entry / "fd").iterdir():
        try:
            yield os.readlink(descriptor)
        except FileNotFoundError:
            continue


def mounts(*marks: str) -> list[str]:
    """Mounts in this mount namespace that carry a mark."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [f"mount {line}" for line in lines if any(mark in line for mark in marks)]


def _output(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env=dict(ENVIRONMENT))
    if done.returncode != 0:
        raise AssertionError(f"{' '.join(argv)}: {done.stderr}")
    return done.stdout


def links(instance: str) -> list[str]:
    """Network interfaces of the host that carry the instance's id."""
    items = json.loads(_output("ip", "-json", "link", "show") or "[]")
    return [f"link {item['ifname']}" for item in items if instance in item["ifname"]]


def tables(instance: str) -> list[str]:
    """nftables tables that carry the instance's id."""
    lines = _output("nft", "list", "tables").splitlines()
    return [f"nft {line}" for line in lines if instance in line]


def cgroups(instance: str) -> list[str]:
    """Control groups that carry the instance's id, in every hierarchy."""
    return [
        f"cgroup {folder}/{name}"
        for folder, names, _ in os.walk("/sys/fs/cgroup")
        for name in names
        if instance in name
    ]


def named_netns(*marks: str) -> list[str]:
    """Network namespaces under /run/netns that carry a mark."""
    folder = Path("/run/netns")
    names = sorted(folder.iterdir()) if folder.is_dir() else []
    return [f"netns {item}" for item in names if any(mark in item.name for mark in marks)]


def all_of(instance: str, *folders: Path) -> list[str]:
    """Everything that is left of an instance whose daemon used `folders`."""
    places = [str(folder) for folder in folders]
    return [
        *processes(*places, f"thaw-{instance}"),
        *mounts(*places),
        *links(instance),
        *tables(instance),
        *cgroups(instance),
        *named_netns(instance),
    ]
