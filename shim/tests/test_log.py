from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostlib.errors import FailedPrecondition
from shim import log
from shim.log import MAX_CONTENT, LogWriter, Splitter
from shim.tests import fuzz_log

SAVED = sorted((Path(__file__).parent / "corpus/log").iterdir())

LINE = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z) (stdout|stderr) ([PF]) ([^\n]*)\n")


def reassemble(data: bytes, stream: bytes = b"stdout") -> bytes:
    out = bytearray()
    position = 0
    while position < len(data):
        match = LINE.match(data, position)
        assert match is not None
        assert len(match[4]) <= MAX_CONTENT
        if match[2] == stream:
            out += match[4] + (b"\n" if match[3] == b"F" else b"")
        position = match.end()
    return bytes(out)


pieces = st.lists(
    st.one_of(
        st.binary(max_size=64),
        st.integers(MAX_CONTENT - 2, MAX_CONTENT + 2).map(lambda n: b"x" * n),
        st.just(b"\n"),
        st.just(b"y" * (3 * MAX_CONTENT)),
    ),
    max_size=12,
)


@given(pieces)
def test_every_byte_exactly_once(parts: list[bytes]) -> None:
    splitter = Splitter("stdout")
    out = b"".join(splitter.feed(part, 1) for part in parts) + splitter.finish(1)
    assert reassemble(out) == b"".join(parts)


def test_a_long_line_is_split_and_only_its_end_is_full() -> None:
    out = Splitter("stderr").feed(b"a" * (MAX_CONTENT * 2 + 5) + b"\n", 1)
    found = [(m[3], len(m[4])) for m in LINE.finditer(out)]
    assert found == [(b"P", MAX_CONTENT), (b"P", MAX_CONTENT), (b"F", 5)]


def test_a_line_of_exactly_the_limit_is_one_full_line() -> None:
    out = Splitter("stdout").feed(b"a" * MAX_CONTENT + b"\n", 1)
    assert [m[3] for m in LINE.finditer(out)] == [b"F"]


def test_the_timestamp_has_nine_digits() -> None:
    assert log.timestamp(1_700_000_000_000_000_007) == b"2023-11-14T22:13:20.000000007Z"


def test_both_streams_and_the_partial_last_line(tmp_path: Path) -> None:
    path = tmp_path / "0.log"
    writer = LogWriter(str(path))
    writer.write("stdout", b"one\ntw")
    writer.write("stderr", b"problem")
    writer.write("stdout", b"o\nlast")
    writer.close()
    data = path.read_bytes()
    assert reassemble(data) == b"one\ntwo\nlast"
    assert reassemble(data, b"stderr") == b"problem"


def test_rotation_goes_on_in_a_new_file(tmp_path: Path) -> None:
    path, old = tmp_path / "0.log", tmp_path / "0.log.1"
    writer = LogWriter(str(path))
    writer.write("stdout", b"before\nhal")
    path.rename(old)
    writer.write("stdout", b"f\n")
    writer.reopen()
    writer.write("stdout", b"after\n")
    writer.close()
    assert reassemble(old.read_bytes() + path.read_bytes()) == b"before\nhalf\nafter\n"


def test_a_failed_rotation_makes_no_file_and_loses_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    path = folder / "0.log"
    writer = LogWriter(str(path))
    moved = tmp_path / "moved"
    folder.rename(moved)
    with pytest.raises(FailedPrecondition, match="cannot be written"):
        writer.reopen()
    assert not folder.exists()
    writer.write("stdout", b"still here\n")
    writer.close()
    assert reassemble((moved / "0.log").read_bytes()) == b"still here\n"


def test_a_folder_that_is_missing_is_named() -> None:
    with pytest.raises(FailedPrecondition, match="nonexistent") as caught:
        LogWriter("/nonexistent/0.log")
    assert caught.value.hint


def test_a_full_disk_drops_lines_and_leaves_no_torn_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "0.log"
    writer = LogWriter(str(path))
    real = os.write
    room = [60]

    def write(fd: int, data: bytes) -> int:
        if room[0] == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        done = real(fd, bytes(data)[: room[0]])
        room[0] -= done
        return done

    monkeypatch.setattr(os, "write", write)
    writer.write("stdout", b"first line\nsecond line\nthird line\n")
    writer.write("stdout", b"lost\n")
    room[0] = 10**6
    writer.write("stdout", b"room again\n")
    monkeypatch.undo()
    writer.close()
    assert reassemble(path.read_bytes()) == b"first line\nsecond line\nroom again\n"
    assert writer.dropped > 0


@given(st.lists(st.integers(0, 300), max_size=30))
def test_lines_stay_whole_whatever_the_disk_takes(rooms: list[int]) -> None:
    out = bytearray()
    budget = [0]

    def write(_fd: int, data: bytes) -> int:
        if budget[0] == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        done = min(budget[0], len(data))
        out.extend(bytes(data)[:done])
        budget[0] -= done
        return done

    writer = LogWriter(os.devnull)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "write", write)
        for number, room in enumerate(rooms):
            budget[0] = room
            writer.write("stdout", b"line %d\n" % number * 3)
        budget[0] = 10**6
        writer.write("stdout", b"end\n")
    writer.close()
    assert reassemble(bytes(out)).endswith(b"end\n")


@pytest.mark.parametrize("saved", SAVED, ids=lambda path: path.name)
def test_saved_inputs(saved: Path) -> None:
    fuzz_log.one(saved.read_bytes())


@given(st.binary(max_size=64))
def test_any_order_of_writes_short_disks_and_rotations(instructions: bytes) -> None:
    fuzz_log.one(instructions)
