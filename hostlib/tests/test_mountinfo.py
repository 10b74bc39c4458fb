from __future__ import annotations

import os
from pathlib import Path

from hostlib import mountinfo

LINE = b"36 35 98:5 /mnt1 /mnt\\0402 rw,noatime master:1 shared:7 - ext4 /dev/root rw,errors=x\n"


def test_a_line() -> None:
    found = mountinfo.parse(LINE)
    assert found == mountinfo.Mounted(36, os.makedev(98, 5), "/mnt1", "/mnt 2", "ext4", True)
    plain = mountinfo.parse(b"22 27 0:21 / /proc rw - proc proc rw\n")
    assert (plain.path, plain.kind, plain.propagates) == ("/proc", "proc", False)


def test_what_is_below() -> None:
    mounts = [
        mountinfo.Mounted(n, 1, "/", path, "ext4", False)
        for n, path in enumerate(["/", "/a", "/a/b", "/ab"])
    ]
    assert [each.path for each in mountinfo.below(mounts, "/a")] == ["/a/b"]
    assert [each.path for each in mountinfo.below(mounts, "/")] == ["/a", "/a/b", "/ab"]


def test_the_mount_of_a_file(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_PATH)
    try:
        found = mountinfo.of_descriptor(mountinfo.read(), descriptor)
        assert found is not None
        assert str(tmp_path).startswith(found.path)
        assert mountinfo.of_descriptor([], descriptor) is None
    finally:
        os.close(descriptor)
