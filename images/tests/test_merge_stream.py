"""Merged layers against a model of overlayfs, against the kernel's, and at their limits."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from hostlib import errors
from images import merge_stream, squashfs
from images.squashfs_reader import Squashfs
from images.tests.build import Entry, folder, hard_link, symlink, tar
from images.tests.stacks import STACKS, Layer, Node, groups, model
from images.tests.test_layers import can_mount, make, rewrite

RARE = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def merged(*layers: Path, entries: int = 100_000) -> bytes:
    """The merged layers as a tar."""
    source, sink = os.pipe()
    found: list[bytes] = []

    def read() -> None:
        with open(source, "rb") as file:
            found.append(file.read())

    reader = threading.Thread(target=read)
    reader.start()
    try:
        merge_stream.write(layers, sink, entries)
    finally:
        os.close(sink)
        reader.join()
    return found[0]


def pack(data: bytes, path: Path) -> Path:
    """A squashfs of a tar that needs no rewriting."""
    path.unlink(missing_ok=True)
    done = subprocess.run(["sqfstar", *squashfs._ARGV, path], input=data, capture_output=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return path


def build(layers: list[Layer], place: Path) -> list[Path]:
    place.mkdir(exist_ok=True)
    return [pack(rewrite(layer.tar()), place / f"{layer.number}.squashfs") for layer in layers]


def shown(data: bytes) -> tuple[dict[str, Node], set[frozenset[str]]]:
    """What a tar holds, as the model has it, and which names are one file."""
    found: dict[str, Node] = {}
    inodes: dict[str, object] = {}
    kinds = {tarfile.REGTYPE: "file", tarfile.DIRTYPE: "dir", tarfile.SYMTYPE: "symlink",
             tarfile.CHRTYPE: "null", tarfile.BLKTYPE: "disk",
             tarfile.FIFOTYPE: "fifo"}  # fmt: skip
    with tarfile.open(
        fileobj=io.BytesIO(data), encoding="utf-8", errors="surrogateescape"
    ) as archive:
        for item in archive:
            assert item.name not in found, "a name comes twice"
            parent = item.name.rpartition("/")[0]
            assert not parent or found[parent].kind == "dir", "a directory comes too late"
            if item.islnk():
                found[item.name] = found[item.linkname]
                inodes[item.name] = inodes[item.linkname]
                continue
            content = archive.extractfile(item) if item.isreg() else None
            xattrs = {
                key.removeprefix("SCHILY.xattr."): value
                for key, value in item.pax_headers.items()
                if key.startswith("SCHILY.xattr.")
            }
            assert not any(key.startswith("trusted.overlay.") for key in xattrs)
            device = (item.devmajor, item.devminor) if item.ischr() or item.isblk() else (0, 0)
            assert not item.ischr() or device != (0, 0), "a whiteout is left"
            found[item.name] = Node(
                kinds[item.type], item.mode, item.uid, int(item.mtime),
                content.read() if content else b"", item.linkname, device, tuple(xattrs.items()),
            )  # fmt: skip
            inodes[item.name] = item.name
    return found, groups(inodes)


@given(STACKS)
@RARE
def test_the_merge_is_what_the_model_of_overlayfs_says(tmp_path: Path, layers: list[Layer]) -> None:
    data = merged(*build(layers, tmp_path / "stack"))
    expected = model(layers)
    found, one = shown(data)
    assert found == {
        path: Node(node.kind, node.mode, node.owner, node.mtime, node.data, node.link,
                   node.device, node.xattrs)
        for path, node in expected.items()
    }  # fmt: skip
    assert one == groups({k: v.inode for k, v in expected.items() if v.kind != "dir"})
    # What sqfstar makes of it reads back as the same.
    again = pack(data, tmp_path / "stack/merged.squashfs")
    assert shown(merged(again)) == (found, one)


SHOW = """
import hashlib, json, os, subprocess, sys
def mount(kind, options, source, target):
    os.makedirs(target, exist_ok=True)
    subprocess.run(["mount", "-t", kind, "-o", options, source, target], check=True)
place, lowers, merged = sys.argv[1], sys.argv[2:-1], sys.argv[-1]
os.chdir(place)
for n, lower in enumerate(lowers):
    mount("squashfs", "loop,ro", lower, f"m{n}")
mount("squashfs", "loop,ro", merged, "all")
names = ":".join(f"m{n}" for n in reversed(range(len(lowers))))
mount("overlay", f"ro,lowerdir={names}", "overlay", "over")
def xattrs(path):
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError:
        # squashfs without any.
        return []
    # The kernel gives user.* attributes of files and directories alone.
    plain = os.lstat(path).st_mode >> 12 in (4, 8)
    return sorted((k, os.getxattr(path, k, follow_symlinks=False).hex()) for k in names
                  if plain or not k.startswith("user."))
def show(root):
    tree, inodes = {}, {}
    for folder, names, files in os.walk(root):
        for name in names + files:
            path = os.path.join(folder, name)
            try:
                at = os.lstat(path)
            except FileNotFoundError:
                # overlayfs lists a whiteout in a directory that one layer alone has, as a name
                # that cannot be looked up.
                continue
            kind = at.st_mode >> 12
            key = ascii(os.path.relpath(path, root))
            tree[key] = [
                oct(at.st_mode), at.st_uid, at.st_gid, int(at.st_mtime),
                at.st_rdev if kind in (2, 6) else 0,
                os.readlink(path) if kind == 10 else "",
                hashlib.sha256(open(path, "rb").read()).hexdigest() if kind == 8 else "",
                xattrs(path),
            ]
            if kind != 4:
                inodes.setdefault((at.st_dev, at.st_ino), []).append(key)
    return [tree, sorted(sorted(one) for one in inodes.values() if len(one) > 1)]
print(json.dumps([show("over"), show("all")]))
"""


def by_the_kernel(place: Path, layers: list[Path], whole: Path) -> tuple[Any, Any]:
    """The tree that overlayfs shows of `layers`, and the one that `whole` holds, mounted in a
    mount namespace that vanishes with the program."""
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", sys.executable, "-c", SHOW, place,
         *layers, whole], capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    overlay, whole_tree = json.loads(done.stdout)
    return overlay, whole_tree


needs_mounts = pytest.mark.skipif(not can_mount(), reason="no squashfs, overlay, or root here")


@needs_mounts
@given(STACKS)
@settings(RARE, max_examples=8)
def test_the_merge_is_what_the_kernels_overlayfs_shows(tmp_path: Path, layers: list[Layer]) -> None:
    paths = build(layers, tmp_path / "stack")
    whole = pack(merged(*paths), tmp_path / "stack/merged.squashfs")
    overlay, found = by_the_kernel(tmp_path / "stack", paths, whole)
    assert found == overlay


CAPABILITY = "\x01\0\0\2\0\4" + "\0" * 14
LOW = tar(
    folder("etc", mode=0o700, uid=70_000, xattrs={"user.low": "1"}),
    Entry("etc/gone", b"low"), Entry("etc/first", b"linked" * 9000),
    hard_link("etc/second", "etc/first"), hard_link("etc/third", "etc/first"),
    folder("opaque"), Entry("opaque/hidden", b"low"),
    folder("becomes-file"), Entry("becomes-file/hidden", b"low"),
    Entry("becomes-dir", b"low"),
    Entry("bin/ping", b"p" * 200_000, mode=0o4755, uid=3_000_000, mtime=12,
          xattrs={"security.capability": CAPABILITY, "user.y": "z"}),
    hard_link("bin/ping6", "bin/ping"),
    symlink("far", "/x" * 1000), symlink("up", "../../" + "y" * 200),
    Entry("dev/null", type=tarfile.CHRTYPE, device=(1, 3)),
    Entry("dev/loop", type=tarfile.BLKTYPE, device=(7, 300)),
    Entry("/".join(["d" * 250] * 10), b"deep"),
    Entry("holes", b"begin" + bytes(3_000_000) + b"end"),
)  # fmt: skip
MIDDLE = tar(
    Entry("etc/.wh.gone"), Entry("etc/.wh.first"), Entry("opaque/.wh..wh..opq"),
    Entry("opaque/new", b"middle"), Entry("becomes-file", b"middle"),
    folder("becomes-dir"), Entry("becomes-dir/new", b"middle"),
    Entry(".wh.up"), Entry("nowhere/.wh.nothing"),
)  # fmt: skip
HIGH = tar(folder("etc", mode=0o711, mtime=99), Entry("opaque/newest", b"high"),
           Entry("etc/gone", b"back"))  # fmt: skip


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    return [make(data, tmp_path / f"{n}.squashfs") for n, data in enumerate((LOW, MIDDLE, HIGH))]


def test_the_rules_one_by_one(three: list[Path], tmp_path: Path) -> None:
    found, one = shown(merged(*three))
    assert "etc/first" not in found and "opaque/hidden" not in found and "up" not in found
    assert found["etc/second"].data == b"linked" * 9000
    assert frozenset(("etc/second", "etc/third")) in one
    assert found["etc/gone"].data == b"back"
    assert (found["etc"].mode, found["etc"].owner, found["etc"].xattrs) == (0o711, 0, ())
    assert {"opaque/new", "opaque/newest", "becomes-dir/new"} <= set(found)
    assert found["becomes-file"].kind == "file" and "becomes-file/hidden" not in found
    assert "nowhere" in found and "nowhere/nothing" not in found
    assert found["far"].link == "/x" * 1000
    assert dict(found["bin/ping"].xattrs)["security.capability"] == CAPABILITY
    assert found["bin/ping"].owner == 3_000_000 and found["bin/ping"].data == b"p" * 200_000
    assert found["holes"].data == b"begin" + bytes(3_000_000) + b"end"
    whole = pack(merged(*three), tmp_path / "all.squashfs")
    assert whole.stat().st_size < 1_500_000, "holes are stored"


@needs_mounts
def test_the_rules_by_the_kernel(three: list[Path], tmp_path: Path) -> None:
    whole = pack(merged(*three), tmp_path / "all.squashfs")
    overlay, found = by_the_kernel(tmp_path, three, whole)
    assert found == overlay
    assert len(found[0]) > 25


def test_many_names_are_refused(three: list[Path]) -> None:
    with pytest.raises(errors.ResourceExhausted, match="more than 5 files"):
        merged(*three, entries=5)


def test_many_names_in_one_folder(tmp_path: Path) -> None:
    """Directories and inodes that fill several blocks of their tables."""
    names = [f"folder/{'n' * 100}{n}" for n in range(3000)]
    low = make(tar(*(Entry(name, name.encode()) for name in names)), tmp_path / "low")
    high = make(tar(*(Entry(f"folder/.wh.{name[7:]}") for name in names[::2])), tmp_path / "high")
    found, _ = shown(merged(low, high))
    assert set(found) == {"folder", *names[1::2]}
    assert all(found[name].data == name.encode() for name in names[1::2])


def test_deep_folders_need_no_stack(tmp_path: Path) -> None:
    name = "/".join("d" * 2000)
    low = make(tar(Entry(name, b"deep")), tmp_path / "low")
    assert shown(merged(low, low))[0][name].data == b"deep"


@pytest.mark.parametrize("place", [0, 40, 64, 72, 80, 88, 96, 200])
def test_a_damaged_layer_is_told(three: list[Path], place: int) -> None:
    """Whatever is read, it is read within bounds, and the error is one of ours."""
    data = bytearray(three[1].read_bytes())
    data[place : place + 8] = b"\xff" * 8
    three[1].chmod(0o600)
    three[1].write_bytes(data)
    try:
        merged(*three)
    except errors.DataLoss as error:
        assert "pull it again" in str(error)
    else:
        assert place in (40, 80, 88, 96, 200), "not noticed"


def test_noise_in_the_tables(tmp_path: Path) -> None:
    good = make(LOW, tmp_path / "good").read_bytes()
    place = tmp_path / "bad"
    with Squashfs(tmp_path / "good") as layer:
        tables = layer._inodes
    for offset in range(tables, len(good) - 4096, 37):
        place.write_bytes(good[:offset] + b"\xa5\x5a\xff" + good[offset + 3 :])
        try:
            merged(place)
        except errors.ThawError:
            pass


def test_a_file_that_is_no_squashfs(tmp_path: Path) -> None:
    for data in (b"", b"x", b"hsqs", bytes(200)):
        (tmp_path / "x").write_bytes(data)
        with pytest.raises(errors.DataLoss, match="damaged"):
            Squashfs(tmp_path / "x")
