"""The tar rewriter: by examples, by properties, and through real squashfs and overlay mounts."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hostlib import errors
from images import squashfs
from images.layers import OPAQUE, Replay, Rewriter
from images.model import Limits
from images.squashfs_reader import Squashfs
from images.tests.build import Entry, folder, hard_link, symlink, tar

LIMITS = Limits(layer_entries=10_000, layer_bytes=10_000_000)


def rewrite(data: bytes, limits: Limits = LIMITS) -> bytes:
    """The layer rewritten, in two passes where it needs them."""
    out = bytearray()
    try:
        Rewriter(io.BytesIO(data), out.extend, limits).run()
    except Replay as replay:
        out = bytearray()
        Rewriter(io.BytesIO(data), out.extend, limits).run(replay.plan)
    return bytes(out)


def members(data: bytes) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(
        fileobj=io.BytesIO(data), encoding="utf-8", errors="surrogateescape"
    ) as archive:
        found = archive.getmembers()
    assert len({item.name for item in found}) == len(found), "a name comes twice"
    return {item.name: item for item in found}


def content(data: bytes, name: str) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        found = archive.extractfile(name)
        assert found is not None
        return found.read()


def opaque(data: bytes, name: str) -> bool:
    return members(data)[name].pax_headers.get(f"SCHILY.xattr.{OPAQUE}") == "y"


def test_a_whiteout_becomes_a_device() -> None:
    found = members(rewrite(tar(folder("a"), Entry("a/.wh.b"))))
    assert found["a/b"].ischr() and (found["a/b"].devmajor, found["a/b"].devminor) == (0, 0)
    assert "a/.wh.b" not in found


@pytest.mark.parametrize("first", [True, False])
def test_an_opaque_mark_before_or_after_its_folder(first: bool) -> None:
    mark, place = Entry("a/b/.wh..wh..opq"), folder("a/b", mode=0o700, uid=7)
    data = rewrite(tar(*((mark, place) if first else (place, mark)), Entry("a/b/c")))
    assert opaque(data, "a/b") and not opaque(data, "a")
    assert (members(data)["a/b"].mode, members(data)["a/b"].uid) == (0o700, 7)


def test_an_opaque_root_is_refused() -> None:
    with pytest.raises(errors.InvalidArgument, match="opaque root"):
        rewrite(tar(Entry(".wh..wh..opq")))


def test_aufs_leftovers_vanish() -> None:
    assert members(rewrite(tar(Entry(".wh..wh.aufs"), folder(".wh..wh.plnk")))) == {}


@pytest.mark.parametrize("name", [".wh.", "a/.wh..", "a/.wh..."])
def test_whiteouts_of_nothing(name: str) -> None:
    with pytest.raises(errors.InvalidArgument, match="whiteout of nothing"):
        rewrite(tar(Entry(name)))


def test_names_below_whiteouts() -> None:
    assert members(rewrite(tar(Entry(".wh..wh.plnk/1.2")))) == {}
    with pytest.raises(errors.InvalidArgument, match="below a whiteout"):
        rewrite(tar(Entry(".wh.a/b")))


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/../x", "a/.."])
def test_names_out_of_the_root(name: str) -> None:
    with pytest.raises(errors.InvalidArgument, match="leaves the image's root"):
        rewrite(tar(Entry(name)))


def test_absolute_names_are_taken_below_the_root() -> None:
    assert set(members(rewrite(tar(Entry("/x"), Entry("./y"), Entry("//z"))))) == {"x", "y", "z"}


@pytest.mark.parametrize("target", ["../x", "/../etc/shadow"])
def test_hard_links_out_of_the_root(target: str) -> None:
    with pytest.raises(errors.InvalidArgument, match="leaves the image's root"):
        rewrite(tar(hard_link("a", target)))


@pytest.mark.parametrize("target", ["nothing", "dir"])
def test_hard_links_to_no_file(target: str) -> None:
    with pytest.raises(errors.InvalidArgument, match="layer links"):
        rewrite(tar(folder("dir"), hard_link("a", target)))


def test_symlinks_point_anywhere() -> None:
    found = members(rewrite(tar(symlink("a", "../../../etc"), symlink("b", "/x" * 100))))
    assert (found["a"].linkname, found["b"].linkname) == ("../../../etc", "/x" * 100)


def test_missing_parents_are_made() -> None:
    found = members(rewrite(tar(Entry("a/b/c"))))
    assert found["a"].isdir() and found["a/b"].mode == 0o755


def test_everything_survives() -> None:
    capability = "\x01\0\0\2\0\4" + "\0" * 14
    data = rewrite(
        tar(
            Entry(
                "bin/ping", b"#!", mode=0o4755, uid=3_000_000, gid=70_000, mtime=12,
                xattrs={"security.capability": capability, "user.a": "b=c\nd"},
            ),
            Entry("null", type=tarfile.CHRTYPE, device=(1, 3)),
            Entry("loop", type=tarfile.BLKTYPE, device=(7, 0)),
            Entry("fifo", type=tarfile.FIFOTYPE),
            Entry("n" * 255),
            Entry("caf\udce9", b"latin-1"),
            hard_link("bin/ping6", "bin/ping"),
            folder("tmp", mode=0o1777, xattrs={"user.x": "1"}),
        )
    )  # fmt: skip
    found = members(data)
    ping = found["bin/ping"]
    assert (ping.mode, ping.uid, ping.gid, ping.mtime) == (0o4755, 3_000_000, 70_000, 12)
    assert ping.pax_headers["SCHILY.xattr.security.capability"] == capability
    assert ping.pax_headers["SCHILY.xattr.user.a"] == "b=c\nd"
    assert found["null"].ischr() and found["null"].devminor == 3
    assert found["loop"].isblk() and found["fifo"].isfifo()
    assert "n" * 255 in found and "caf\udce9" in found
    assert found["bin/ping6"].islnk() and found["bin/ping6"].linkname == "bin/ping"
    assert found["tmp"].mode == 0o1777 and found["tmp"].pax_headers["SCHILY.xattr.user.x"] == "1"


def test_overlays_own_attributes_are_not_the_images_to_set() -> None:
    data = rewrite(tar(folder("a", xattrs={"trusted.overlay.redirect": "/etc", OPAQUE: "y"})))
    assert opaque(data, "a")
    assert "SCHILY.xattr.trusted.overlay.redirect" not in members(data)["a"].pax_headers


def test_times_that_squashfs_cannot_hold() -> None:
    found = members(rewrite(tar(Entry("old", mtime=-5), Entry("new", mtime=2**40))))
    assert (found["old"].mtime, found["new"].mtime) == (0, 2**32 - 1)


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names(kind: int) -> None:
    name = "/".join(["d" * 100] * 20)
    found = members(rewrite(tar(Entry(name, b"x"), symlink("s", name), kind=kind)))
    assert name in found and found["s"].linkname == name


@pytest.mark.parametrize("form", ["gnu", "0.0", "0.1", "1.0"])
def test_sparse_files(form: str, tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with open(path, "wb") as sink:
        sink.seek(1_000_000)
        sink.write(b"end")
    version = ["--format=gnu"] if form == "gnu" else ["--format=pax", f"--sparse-version={form}"]
    done = subprocess.run(
        ["tar", "-c", "-S", *version, "-C", tmp_path, "sparse"], capture_output=True, check=True
    )
    assert len(done.stdout) < 100_000
    assert content(rewrite(done.stdout), "sparse") == bytes(1_000_000) + b"end"


def test_the_last_of_two_wins() -> None:
    data = rewrite(
        tar(
            Entry("a", b"1"),
            hard_link("keeps", "a"),
            Entry("a", b"2"),
            Entry("d", b"file"),
            folder("d"),
            Entry("d/x", b"x"),
            folder("e"),
            Entry("e/lost", b"-"),
            Entry("e", b"file"),
            folder("d", mode=0o711),
            Entry(".wh.w"),
            Entry("w", b"whole"),
        )
    )
    found = members(data)
    assert content(data, "a") == b"2" and content(data, "keeps") == b"1"
    assert found["keeps"].isreg()
    assert found["d"].mode == 0o711 and opaque(data, "d")
    assert found["e"].isreg() and "e/lost" not in found
    assert content(data, "w") == b"whole"


def test_a_whiteout_beside_what_it_names_hides_only_below() -> None:
    data = rewrite(tar(folder("a"), Entry("a/x", b"x"), Entry(".wh.a"), Entry("b"), Entry(".wh.b")))
    assert opaque(data, "a") and "a/x" in members(data)
    assert members(data)["b"].isreg()


@pytest.mark.parametrize(
    ("limits", "data"),
    [
        (Limits(layer_entries=3), tar(*(Entry(str(n)) for n in range(4)))),
        (Limits(layer_entries=3), tar(Entry("a/b/c/d/e/f"))),
        (Limits(layer_bytes=10), tar(Entry("a", b"x" * 11))),
        (Limits(path_bytes=20), tar(Entry("a" * 20))),
        (Limits(), tar(Entry("a", xattrs={"user.x": "y" * 1_100_000}))),
    ],
)
def test_bombs(limits: Limits, data: bytes) -> None:
    with pytest.raises(errors.ResourceExhausted):
        rewrite(data, limits)


def raw(kind: bytes, data: bytes, size: int | None = None) -> bytes:
    """A header block of that type, and data in whole blocks."""
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, len(data) if size is None else size
    return info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)


def record(key: str, value: str) -> bytes:
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest + len(str(rest))))
    return f"{length} {key}={value}\n".encode()


@pytest.mark.parametrize(
    "data",
    [
        b"1" * 1_000_000,
        record("SCHILY.xattr.user.x", "1" * 1_000_000),
        record("GNU.sparse.size", "1" * 1_000_000),
    ],
)
def test_a_header_that_is_slow_to_parse(data: bytes) -> None:
    """CVE-2024-6232: hours in tarfile's own parser, and no other thread runs meanwhile."""
    with pytest.raises(errors.ThawError):
        rewrite(raw(tarfile.XHDTYPE, data) + tar(Entry("a")))


def test_sparse_maps_without_end() -> None:
    first = bytearray(raw(tarfile.GNUTYPE_SPARSE, b""))
    # "isextended", and the checksum that goes with it.
    first[482:483] = b"\x01"
    first[148:156] = b"%06o\0 " % (sum(first[:148]) + sum(first[156:512]) + 8 * 32)
    more = (b"00000000001\0" * 42).ljust(504, b"\0") + b"\x01" + bytes(7)
    with pytest.raises(errors.ResourceExhausted, match="do not end"):
        rewrite(bytes(first) + more * 20_000)
    with pytest.raises(errors.DataLoss):
        rewrite(bytes(first) + more[:100])
    lines = record("GNU.sparse.major", "1") + record("GNU.sparse.minor", "0")
    with pytest.raises(errors.ResourceExhausted, match="do not end"):
        rewrite(raw(tarfile.XHDTYPE, lines) + raw(b"0", b"") + b"9999999\n" + b"0\n" * 5_000_000)


def test_global_headers_without_end() -> None:
    one = raw(tarfile.XGLTYPE, record("key", "x" * 500_000)) + raw(b"0", b"")
    with pytest.raises(errors.ResourceExhausted, match="global tar headers"):
        rewrite(one * 5)


@pytest.mark.parametrize("time", ["inf", "-inf", "nan", "1e400"])
@pytest.mark.parametrize("kind", [b"0", b"5"])
def test_times_that_are_no_times(time: str, kind: bytes) -> None:
    data = raw(tarfile.XHDTYPE, record("mtime", time)) + raw(kind, b"") + bytes(1024)
    assert members(rewrite(data))["x"].mtime in (0, 2**32 - 1)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, b"0", tarfile.GNUTYPE_LONGNAME])
def test_sizes_below_zero(kind: bytes) -> None:
    with pytest.raises(errors.DataLoss):
        rewrite(raw(kind, b"", size=-512) + tar(Entry("a")))
    with pytest.raises(errors.DataLoss):
        rewrite(raw(tarfile.XHDTYPE, record("size", "-1")) + raw(b"0", b"") + tar(Entry("a")))


@pytest.mark.parametrize(
    "data", [b"5 a=b\n", b"9 a=b\n", b"6 ab\n", b"6 a=bc", b"-6 a=b\n", b"99999999999 a=b\n"]
)
def test_records_that_are_malformed(data: bytes) -> None:
    with pytest.raises(errors.DataLoss, match="PAX"):
        rewrite(raw(tarfile.XHDTYPE, data) + tar(Entry("a")))


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_noise_in_a_header(noise: bytes) -> None:
    with contextlib.suppress(errors.ThawError):
        rewrite(raw(tarfile.XHDTYPE, noise) + tar(Entry("a")))


@pytest.mark.parametrize("target", ["/x" * 60, "../../" + "y" * 120, "./" + "z" * 120, "/" * 200])
def test_long_link_targets_survive_sqfstar(tmp_path: Path, target: str) -> None:
    path = make(tar(symlink("s", target), symlink("d" * 150 + "/s", target)), tmp_path / "s")
    listing = subprocess.run(["unsquashfs", "-lln", path], capture_output=True, text=True).stdout
    assert listing.count(f"/s -> {target}\n") == 2


def test_a_header_nested_in_headers() -> None:
    one = tar(Entry("a", xattrs={"user.x": "y"}))[:1024]
    with pytest.raises(errors.ThawError):
        rewrite(one * 5000)


@pytest.mark.parametrize("cut", [100, 512, 700, 1100])
def test_a_damaged_tar(cut: int) -> None:
    data = tar(Entry("a", b"x" * 600), Entry("b", b"y"))
    with pytest.raises((errors.DataLoss, errors.InvalidArgument)):
        rewrite(data[:cut] + b"\xff" * 2000)


NAMES = st.lists(
    st.sampled_from(["a", "b", ".", "..", "", ".wh.a", ".wh..wh..opq", "c" * 120, "\udcff"]),
    min_size=1,
    max_size=4,
).map("/".join)
ENTRIES = st.lists(
    st.builds(
        Entry,
        name=NAMES,
        data=st.binary(max_size=600),
        type=st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE]),
        link=NAMES,
        mode=st.integers(0, 0o7777),
        uid=st.integers(0, 2**32 - 2),
        mtime=st.integers(-10, 2**33),
    ).map(lambda entry: entry if entry.type == tarfile.REGTYPE else _plain(entry)),
    max_size=12,
)


def _plain(entry: Entry) -> Entry:
    entry.data = b""
    return entry


@given(ENTRIES)
@settings(max_examples=300, deadline=None)
def test_what_is_written_is_always_sound(entries: list[Entry]) -> None:
    """Names once, below the root, no whiteout marks, each hard link to a file before it."""
    try:
        found = members(rewrite(tar(*entries)))
    except errors.ThawError:
        return
    seen: dict[str, tarfile.TarInfo] = {}
    for name, member in found.items():
        parts = name.split("/")
        assert ".." not in parts and not name.startswith("/")
        assert not any(part.startswith(".wh.") for part in parts)
        if member.islnk():
            assert not seen[member.linkname].isdir()
        seen[name] = member
    for name in found:
        parent = name.rpartition("/")[0]
        assert not parent or found[parent].isdir()


@given(st.binary(max_size=3000), st.integers(0, 3000))
@settings(max_examples=200, deadline=None)
def test_noise_is_refused_cleanly(noise: bytes, place: int) -> None:
    data = tar(Entry("a", b"x" * 700), symlink("b", "c"))
    with contextlib.suppress(errors.ThawError):
        rewrite(data[:place] + noise + data[place + len(noise) :])


# --- through the real tools


@pytest.fixture
def mounts(tmp_path: Path) -> Iterator[list[Path]]:
    made: list[Path] = []
    yield made
    for path in reversed(made):
        subprocess.run(["umount", path], check=True)


def make(data: bytes, path: Path) -> Path:
    done = subprocess.run(["sqfstar", *squashfs._ARGV, path], input=rewrite(data),
                          capture_output=True)  # fmt: skip
    assert done.returncode == 0 and not done.stderr, done.stderr
    return path


def mount(mounts: list[Path], kind: str, source: Path | str, target: Path, options: str) -> Path:
    target.mkdir()
    done = subprocess.run(
        ["mount", "-t", kind, "-o", options, source, target], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    mounts.append(target)
    return target


LOWER = tar(
    folder("etc"), Entry("etc/gone", b"lower"), Entry("etc/stays", b"lower"),
    folder("dir"), Entry("dir/hidden", b"lower"),
    Entry("bin/ping", b"ping", mode=0o4755, uid=7,
          xattrs={"security.capability": "\x01\0\0\2\0\4" + "\0" * 14}),
    hard_link("bin/ping6", "bin/ping"),
    Entry("dev/null", type=tarfile.CHRTYPE, device=(1, 3)),
    Entry("caf\udce9/" + "n" * 250, b"x"),
)  # fmt: skip
UPPER = tar(Entry("etc/.wh.gone"), Entry("dir/.wh..wh..opq"), Entry("dir/new", b"upper"))


def can_mount() -> bool:
    kinds = Path("/proc/filesystems").read_text()
    return os.geteuid() == 0 and "squashfs" in kinds and "overlay" in kinds


def test_whiteouts_work_in_an_overlay(tmp_path: Path, mounts: list[Path]) -> None:
    low, up = make(LOWER, tmp_path / "low.squashfs"), make(UPPER, tmp_path / "up.squashfs")
    listing = subprocess.run(["unsquashfs", "-lln", up], capture_output=True, text=True).stdout
    assert "c---------" in listing and "etc/gone" in listing
    if not can_mount():
        return
    lower = mount(mounts, "squashfs", low, tmp_path / "low", "loop,ro")
    upper = mount(mounts, "squashfs", up, tmp_path / "up", "loop,ro")
    assert os.getxattr(upper / "dir", OPAQUE) == b"y"
    merged = mount(
        mounts, "overlay", "overlay", tmp_path / "merged", f"ro,lowerdir={upper}:{lower}"
    )
    assert sorted(os.listdir(merged / "etc")) == ["stays"]
    assert os.listdir(merged / "dir") == ["new"]
    ping = (merged / "bin/ping").stat()
    assert (ping.st_mode & 0o7777, ping.st_uid, ping.st_nlink) == (0o4755, 7, 2)
    assert len(os.getxattr(merged / "bin/ping", "security.capability")) == 20
    assert os.stat(merged / "dev/null").st_rdev == os.makedev(1, 3)
    assert (merged / "caf\udce9" / ("n" * 250)).read_bytes() == b"x"


def test_the_same_layer_gives_the_same_bytes(tmp_path: Path) -> None:
    """But for the root's time: sqfstar 4.5 takes the clock's, whatever it is told."""
    found = []
    for n in range(2):
        data = bytearray(make(LOWER, tmp_path / f"{n}").read_bytes())
        with Squashfs(tmp_path / f"{n}") as layer:
            stamp = layer.root.mtime.to_bytes(4, "little")
        place = data.rindex(stamp)
        data[place : place + 4] = bytes(4)
        found.append(bytes(data))
    assert found[0] == found[1]
