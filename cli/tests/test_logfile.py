from __future__ import annotations

import threading
import time
from pathlib import Path

from cli import logfile

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
