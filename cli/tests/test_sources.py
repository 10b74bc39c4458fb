from __future__ import annotations

import contextlib
import json
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.sources import docker_archive, find, layout
from cli.sources.content import named, split
from cli.sources.files import Archive, Folder, read
from hostlib import errors
from images.tests.build import Entry, image, sha, symlink, tar


@contextlib.contextmanager
def archive(data: bytes) -> Iterator[Archive]:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.seek(0)
        yield Archive(file, "a.tar")


def saved(*names: str) -> bytes:
    config = json.dumps({"rootfs": {"diff_ids": [sha(b"x")]}}).encode()
    entries = [{"Config": "c.json", "RepoTags": [name], "Layers": ["l.tar"]} for name in names]
    return tar(
        Entry("c.json", config), Entry("l.tar", b"layer"),
        Entry("manifest.json", json.dumps(entries).encode()),
    )  # fmt: skip


def test_names_in_a_registry_are_no_source() -> None:
    for text in ("nginx", "nginx:1", "r.example:5000/a", "oci-layouts:1", "docker-archive"):
        assert find.content(text) is None


def test_paths_and_tags() -> None:
    assert split("/a/b:v1", lambda _: False) == ("/a/b", "v1")
    assert split("/a/b:v1", lambda _: True) == ("/a/b:v1", "")
    assert split("/a:b/c", lambda _: False) == ("/a:b/c", "")
    assert named("/images/App.tar", "") == "localhost/app:latest"
    assert named("./x/", "v1") == "localhost/x:v1"
    with pytest.raises(errors.InvalidArgument) as caught:
        named("/__", "")
    assert "--as" in str(caught.value.hint)


def test_an_archive_of_several_images() -> None:
    with archive(saved("a:1", "b:2")) as files:
        with pytest.raises(errors.InvalidArgument) as caught:
            docker_archive.find(files, "a.tar", "")
        assert "docker.io/library/b:2" in str(caught.value.hint)
        assert docker_archive.find(files, "a.tar", "b:2").names == ("docker.io/library/b:2",)


def test_links_stay_in_the_archive() -> None:
    data = tar(
        Entry("a/real", b"x"), symlink("a/link", "real"), symlink("b", "a/link"),
        symlink("loop", "loop"), symlink("out", "/etc/passwd"),
    )  # fmt: skip
    with archive(data) as files:
        assert read(files, "b", 10) == read(files, "./a/../a/link", 10) == b"x"
        for name in ("loop", "out", "/etc/passwd", "../../etc/passwd"):
            with pytest.raises(errors.NotFound):
                read(files, name, 10)


@given(st.binary(max_size=2000))
def test_noise_is_refused(data: bytes) -> None:
    with contextlib.suppress(errors.ThawError), archive(data) as files:
        docker_archive.find(files, "a.tar", "")


@given(st.integers(0, 4000), st.binary(min_size=1, max_size=40))
def test_damaged_archives_are_refused_or_read(at: int, noise: bytes) -> None:
    data = bytearray(saved("a:1"))
    data[at : at + len(noise)] = noise
    for finder in (docker_archive.find, layout.find):
        with contextlib.suppress(errors.ThawError), archive(bytes(data)) as files:
            finder(files, "a.tar", "")


def test_a_layout_of_an_index(tmp_path: Path) -> None:
    made = image(tar(Entry("a")))
    (tmp_path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    one = {"mediaType": made.media_type, "digest": made.digest, "size": 1}
    body = json.dumps({"manifests": [one, one]}).encode()
    (tmp_path / "index.json").write_bytes(body)
    found = layout.find(Folder(str(tmp_path)), str(tmp_path), "")
    assert found.digest == sha(body)
    assert b"".join(found.pieces(found.digest)) == body
    (tmp_path / "oci-layout").write_text('{"imageLayoutVersion": "2.0.0"}')
    with pytest.raises(errors.InvalidArgument, match="unknown version"):
        layout.find(Folder(str(tmp_path)), str(tmp_path), "")


def test_tarfile_is_the_parser() -> None:
    """GNU and PAX archives alike."""
    for kind in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT):
        with archive(tar(Entry("a" * 90, b"x"), kind=kind)) as files:
            assert read(files, "a" * 90, 9) == b"x"
