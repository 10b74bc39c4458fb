from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostlib.errors import FailedPrecondition, ResourceExhausted, Unavailable
from shim import published


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    payload = tmp_path / "..1"
    (payload / "deep").mkdir(parents=True)
    (payload / "key").write_bytes(b"\0value")
    (payload / "key").chmod(0o440)
    (payload / "deep/er").write_text("x")
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "key").symlink_to("..data/key")
    return tmp_path


@pytest.fixture
def tree(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)


def test_what_is_published(tree: int) -> None:
    found = {each["path"]: each for each in published.read(tree)}
    assert list(found) == ["", "..1", "..1/deep", "..1/deep/er", "..1/key", "..data", "key"]
    key = found["..1/key"]
    assert (key["kind"], key["mode"], key["uid"]) == ("file", 0o440, os.getuid())
    assert base64.b64decode(key["data"]) == b"\0value"
    assert (found["..data"]["kind"], found["..data"]["data"]) == ("link", "..1")
    assert found[""]["kind"] == found["..1/deep"]["kind"] == "folder"


def test_no_more_than_fits(folder: Path, tree: int) -> None:
    (folder / "..1/large").write_bytes(bytes(published.MAX_BYTES - 7))
    published.read(tree)
    (folder / "..1/more").write_bytes(b"x")
    with pytest.raises(ResourceExhausted, match="bytes"):
        published.read(tree)


def test_not_too_many_nor_too_deep(
    folder: Path, tree: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(published, "MAX_ENTRIES", 6)
    with pytest.raises(ResourceExhausted, match="entries"):
        published.read(tree)
    monkeypatch.undo()
    (folder / "..1" / "/".join("d" * 20)).mkdir(parents=True)
    with pytest.raises(ResourceExhausted, match="deep"):
        published.read(tree)


def test_something_else_is_not_read(folder: Path, tree: int) -> None:
    os.mkfifo(folder / "..1/fifo")
    with pytest.raises(FailedPrecondition, match="fifo"):
        published.read(tree)


def test_an_exchange_meanwhile_is_noticed(
    folder: Path, tree: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    walk = published._walk

    def exchange(*args: object) -> int:
        left = walk(*args)  # type: ignore[arg-type]
        (folder / "..data").unlink()
        (folder / "..data").symlink_to("..2")
        return left

    monkeypatch.setattr(published, "_walk", exchange)
    with pytest.raises(Unavailable, match="exchanged"):
        published.read(tree)
    (folder / "..data").unlink()
    with pytest.raises(Unavailable):
        published.read(tree)
