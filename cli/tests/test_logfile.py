from __future__ import annotations

import tempfile
import threading
import time
import tracemalloc
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli import logfile
from cli.verb_logs import since_time
from hostlib.errors import InvalidArgument
from shim.log import LogWriter, StreamName

T = b"2026-01-01T00:00:00.000000000Z"


def test_lines_are_read_with_their_stream_and_joined_where_they_go_on(tmp_path: Path) -> None:
    log = tmp_path / "c.log"
    log.write_bytes(
        T + b" stdout P begin \n" + T + b" stderr F oops\n" + T + b" stdout F end\nnonsense\n"
    )
    assert list(logfile.read(str(log))) == [
        ("stdout", b"begin "),
        ("stderr", b"oops\n"),
        ("stdout", b"end\n"),
    ]


def test_tail_keeps_the_last_lines(tmp_path: Path) -> None:
    log = tmp_path / "c.log"
    log.write_bytes(b"".join(T + b" stdout F %d\n" % n for n in range(5)))
    assert [line.content for line in logfile.read(str(log), tail=2)] == [b"3\n4\n"]


def test_an_empty_line_is_a_line() -> None:
    assert logfile.parse(T + b" stdout F ") == (T, "stdout", False, b"\n")


def test_follow_goes_over_a_rotation_and_ends_when_the_container_has(tmp_path: Path) -> None:
    log = tmp_path / "c.log"
    done = threading.Event()

    def write() -> None:
        time.sleep(0.1)
        with log.open("wb") as old:
            old.write(T + b" stdout F one\n" + T + b" stdo")
            old.flush()
            time.sleep(0.1)
            old.write(b"ut F two\n")
        log.rename(tmp_path / "c.log.1")
        log.write_bytes(T + b" stdout F three\n")
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    found = b"".join(piece.content for piece in logfile.follow(str(log), done.is_set))
    writer.join()
    assert found == b"one\ntwo\nthree\n"


def test_follow_of_a_log_that_never_came_ends(tmp_path: Path) -> None:
    assert list(logfile.follow(str(tmp_path / "none"), lambda: True)) == []


def record(number: int, stream: str = "stdout", tag: str = "F", text: str = "") -> bytes:
    return f"2026-01-01T00:00:{number:02}.000000000Z {stream} {tag} {text or number}\n".encode()


def shown(pieces: Iterable[logfile.Piece]) -> list[tuple[str, bytes]]:
    return [(piece.stream, piece.content) for piece in pieces]


def test_a_line_in_pieces_is_one_line_of_the_tail(tmp_path: Path) -> None:
    log = tmp_path / "c.log"
    log.write_bytes(
        record(1)
        + record(2, "stderr", "P", "begun ")
        + record(3, "stdout", "P", "long ")
        + record(4, "stderr", "F", "before")
        + record(5, "stdout", "P", "and longer ")
        + record(6, "stdout", "F", "end")
    )
    assert shown(logfile.read(str(log), tail=1)) == [("stdout", b"long and longer end\n")]
    assert shown(logfile.read(str(log), tail=2)) == [
        ("stderr", b"begun "),
        ("stdout", b"long "),
        ("stderr", b"before\n"),
        ("stdout", b"and longer end\n"),
    ]
    assert shown(logfile.read(str(log), tail=0)) == []


def test_since_takes_lines_that_begin_then(tmp_path: Path) -> None:
    log = tmp_path / "c.log"
    log.write_bytes(
        record(1) + record(2, tag="P", text="old ") + record(3, text="end") + record(4) + record(5)
    )
    since = b"2026-01-01T00:00:03.000000000Z"
    assert shown(logfile.read(str(log), since=since)) == [("stdout", b"4\n5\n")]
    assert shown(logfile.read(str(log), since=since, tail=1)) == [("stdout", b"5\n")]
    assert shown(logfile.read(str(log), since=since, tail=9)) == [("stdout", b"4\n5\n")]


def test_following_a_tail_shows_all_that_comes(tmp_path: Path) -> None:
    log = tmp_path / "c.log"
    log.write_bytes(record(1) + record(2, tag="P", text="half "))
    looks = 0

    def ended() -> bool:
        nonlocal looks
        looks += 1
        if looks == 2:
            with log.open("ab") as more:
                more.write(record(3, text="line") + record(4))
        return looks == 2

    assert shown(logfile.follow(str(log), ended, tail=1)) == [
        ("stdout", b"half "),
        ("stdout", b"line\n4\n"),
    ]


def test_what_is_written_between_the_last_look_and_a_rotation_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "c.log"
    log.write_bytes(record(1))
    look = logfile._rotated
    old = log.open("ab")

    def rotate(descriptor: int, path: str) -> bool:
        if not old.closed:
            old.write(record(2))
            old.close()
            log.rename(tmp_path / "c.log.1")
            log.write_bytes(record(3))
        return look(descriptor, path)

    monkeypatch.setattr(logfile, "_rotated", rotate)
    pieces = logfile.follow(str(log), lambda: True)
    assert b"".join(piece.content for piece in pieces) == b"1\n2\n3\n"


@given(
    st.lists(st.tuples(st.sampled_from(["stdout", "stderr"]), st.binary(max_size=40)), max_size=30),
    st.integers(0, 8),
)
def test_the_bytes_of_a_writer_come_back(writes: list[tuple[StreamName, bytes]], tail: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/c.log"
        writer = LogWriter(path)
        for stream, data in writes:
            writer.write(stream, data)
        writer.close()
        for name in ("stdout", "stderr"):
            written = b"".join(data for stream, data in writes if stream == name)
            found = [piece.content for piece in logfile.read(path) if piece.stream == name]
            assert b"".join(found) == written
        if {stream for stream, _ in writes} == {"stdout"}:
            lines = written_lines(b"".join(data for _, data in writes))
            last = b"".join(piece.content for piece in logfile.read(path, tail=tail))
            assert last == b"".join(lines[len(lines) - min(tail, len(lines)) :])


def written_lines(data: bytes) -> list[bytes]:
    *whole, rest = data.split(b"\n")
    return [line + b"\n" for line in whole] + ([rest] if rest else [])


def test_what_is_no_log_costs_bounded_memory(tmp_path: Path) -> None:
    log = tmp_path / "c.log"
    log.write_bytes(b"x" * 10_000_000 + b"\n" + record(1) + record(2))
    for tail in (None, 1):
        tracemalloc.start()
        try:
            found = shown(logfile.read(str(log), tail=tail))
            assert tracemalloc.get_traced_memory()[1] < 3_000_000
        finally:
            tracemalloc.stop()
        assert found == [("stdout", b"2\n" if tail else b"1\n2\n")]


NOW = 1_767_225_600_000_000_000


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("90s", "2025-12-31T23:58:30.000000000Z"),
        ("1h30m", "2025-12-31T22:30:00.000000000Z"),
        ("2d", "2025-12-30T00:00:00.000000000Z"),
        ("500ms", "2025-12-31T23:59:59.500000000Z"),
        ("1.5s", "2025-12-31T23:59:58.500000000Z"),
        ("2026-01-01T02:00:00.25+02:00", "2026-01-01T00:00:00.250000000Z"),
        ("2026-01-01T00:00:00Z", "2026-01-01T00:00:00.000000000Z"),
    ],
)
def test_points_in_time(text: str, time: str) -> None:
    assert since_time(text, NOW).decode() == time


@pytest.mark.parametrize("text", ["", "5", "5x", "yesterday", "2026-01-01T00:00:00", "1970", "-5s"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(InvalidArgument):
        since_time(text, NOW)
