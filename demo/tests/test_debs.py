from __future__ import annotations

import io
import lzma
import tarfile
from pathlib import Path

import pytest

from demo import debs, oci
from hostlib.errors import DataLoss


def _ar(*members: tuple[str, bytes]) -> bytes:
    out = b"!<arch>\n"
    for name, body in members:
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(body):<10}`\n".encode()
        out += body + b"\n" * (len(body) % 2)
    return out


def _tar(**files: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, text in files.items():
            info = tarfile.TarInfo("./" + name.replace("__", "/"))
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    return out.getvalue()


def _deb(folder: Path) -> Path:
    path = folder / "p.deb"
    data = lzma.compress(_tar(lib__x="1", usr__share__doc__y="2", etc__z="3"))
    path.write_bytes(
        _ar(("debian-binary", b"2.0\n"), ("control.tar.xz", b"odd"), ("data.tar.xz", data))
    )
    return path


def test_the_data_archive_is_found_behind_members_of_odd_size(tmp_path: Path) -> None:
    with debs.data(_deb(tmp_path)) as archive:
        assert archive.getnames() == ["./lib/x", "./usr/share/doc/y", "./etc/z"]


def test_a_package_goes_into_a_layer_merged_and_without_documentation(tmp_path: Path) -> None:
    layer = oci.Layer().package(_deb(tmp_path))
    with tarfile.open(fileobj=io.BytesIO(layer.tar())) as archive:
        files = [member.name for member in archive if member.isreg()]
    assert files == ["etc/z", "usr/lib/x"]


def test_what_is_no_package_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.deb"
    path.write_bytes(b"PK")
    with pytest.raises(DataLoss):
        debs.data(path)


def test_a_version_with_an_epoch_is_named_as_apt_names_its_file() -> None:
    assert debs.Package("busybox", "1:1.35", ()).file_name == "busybox_1%3a1.35"
