"""Volumes of huge pages, as the kubelet makes them of an emptyDir of medium HugePages."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from cri.api import v1_pb2
from e2e.harness.daemon import Daemon
from e2e.harness.pods import Container, Pod
from e2e.harness.refs import SHELL, SLEEP, WEBAPP
from hostlib import errors, linux

MIB: Final = 2**20
EMPTY_DIRS: Final = "pods/uid/volumes/kubernetes.io~empty-dir"


@contextlib.contextmanager
def huge(place: Path, page: str = "2M") -> Iterator[Path]:
    """A hugetlbfs at `place`; a machine whose kernel has no such pages skips the test."""
    place.mkdir(parents=True)
    try:
        linux.mount("none", str(place), "hugetlbfs", data=f"pagesize={page}")
    except OSError as error:
        pytest.skip(f"no huge pages of {page}: {error}")
    try:
        place.chmod(0o777)
        yield place
    finally:
        linux.umount(str(place))


def start(
    pod: Pod,
    name: str,
    pages: int,
    place: Path,
    security: v1_pb2.LinuxContainerSecurityContext | None = None,
    **more: Any,
) -> Container:
    """A container with the volume at /huge, and a limit of so many huge pages."""
    limit = v1_pb2.HugepageLimit(page_size="2MB", limit=pages * 2 * MIB)
    resources = v1_pb2.LinuxContainerResources(hugepage_limits=[limit])
    return pod.start(
        WEBAPP,
        SLEEP,
        name=name,
        mounts=[v1_pb2.Mount(container_path="/huge", host_path=str(place), **more)],
        linux=v1_pb2.LinuxContainerConfig(resources=resources, security_context=security),
    )


MAP: Final = """
import mmap, os, sys
name, pages, word = sys.argv[1], int(sys.argv[2]), sys.argv[3].encode()
file = os.open(f"/huge/{name}", os.O_RDWR | os.O_CREAT, 0o666)
if word:
    os.ftruncate(file, pages << 21)
view = mmap.mmap(file, pages << 21)
for page in range(pages):
    at = page << 21
    if word:
        view[at : at + len(word)] = word
    print(view[at : at + 4].decode())
"""


def mapped(container: Container, name: str, pages: int, word: str = "") -> list[str]:
    """What the first words of a mapped file's pages are, once `word` was written there; nothing
    where they cannot be had."""
    argv = ["/usr/bin/python3", "-c", MAP, name, str(pages), word]
    answer = container.pod.daemon.client.exec_sync(container.id, argv, 60)
    return answer.stdout.decode().split() if answer.exit_code == 0 else []


def test_an_empty_dir_of_huge_pages_is_the_guests(daemon: Daemon, tmp_path: Path) -> None:
    with huge(tmp_path / EMPTY_DIRS / "huge") as place:
        pod = Pod.run(daemon)
        first = start(pod, "first", 6, place)
        second = start(pod, "second", 1, place)
        assert first.sh("grep -c ' /huge hugetlbfs .*pagesize=2M' /proc/mounts") == "1"
        assert first.sh("stat -f -c %s /huge; stat -c %a /huge") == f"{2 * MIB}\n777"
        assert mapped(first, "both", 2, "mine") == ["mine"] * 2
        assert mapped(second, "both", 2) == ["mine"] * 2
        assert first.sh("cat /sys/fs/cgroup/hugetlb.2MB.current") == str(4 * MIB)
        assert second.sh("cat /sys/fs/cgroup/hugetlb.2MB.current") == "0"
        # Its own limit bounds each.
        assert mapped(second, "own", 1, "ours") == ["ours"]
        assert mapped(second, "more", 2, "none") == []
        assert not list(place.iterdir())
        # The volume outlives who made its files.
        pod.daemon.client.remove_container(first.id)
        third = start(pod, "third", 1, place, readonly=True)
        assert third.sh("ls /huge; (echo > /huge/x) 2>&1 || true").startswith("both\nmore\nown")
        assert mapped(second, "both", 2) == ["mine"] * 2


def test_they_have_the_owners_of_a_user_namespace(daemon: Daemon, tmp_path: Path) -> None:
    outside = [v1_pb2.IDMapping(host_id=131072, container_id=0, length=65536)]
    users = v1_pb2.UserNamespace(mode=v1_pb2.POD, uids=outside, gids=outside)
    options = v1_pb2.NamespaceOption(pid=v1_pb2.CONTAINER, userns_options=users)
    sandbox = v1_pb2.LinuxSandboxSecurityContext(namespace_options=options)
    pod = Pod.run(daemon, linux=v1_pb2.LinuxPodSandboxConfig(security_context=sandbox))
    with huge(tmp_path / EMPTY_DIRS / "huge") as place:
        security = v1_pb2.LinuxContainerSecurityContext(
            namespace_options=options, run_as_user=v1_pb2.Int64Value(value=1000)
        )
        mappings = {"uidMappings": outside, "gidMappings": outside}
        main = start(pod, "main", 2, place, security, **mappings)
        assert mapped(main, "its", 1, "mine") == ["mine"]
        assert main.sh("stat -c %u:%g /huge /huge/its").split() == ["0:0", "1000:1000"]


def test_huge_pages_that_no_guest_has(daemon: Daemon, tmp_path: Path) -> None:
    pod = Pod.run(daemon)

    def refused(place: Path) -> errors.ThawError:
        mount = v1_pb2.Mount(container_path="/huge", host_path=str(place))
        with pytest.raises(errors.ThawError, match="huge pages") as caught:
            pod.create(SHELL, SLEEP, mounts=[mount])
        return caught.value

    with huge(tmp_path / "host") as place:
        told = refused(place)
        assert told.code == "FAILED_PRECONDITION" and "HugePages-2Mi" in str(told)
    with huge(tmp_path / EMPTY_DIRS / "large", "1G") as place:
        told = refused(place)
        assert told.code == "UNIMPLEMENTED" and "1024 MiB" in told.message
    assert not daemon.client.containers()
