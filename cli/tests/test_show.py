from __future__ import annotations

import json

import pytest

from cli import show, verb_trace
from cri.api import v1_pb2
from hostlib.errors import NotFound


def test_a_table_aligns_its_columns() -> None:
    text = show.table(("A", "LONG"), [("wider", "x"), ("y", "")])
    assert text.split("\n") == ["A      LONG", "wider  x", "y"]


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (5 << 20, "5.0 MiB"),
        (3 << 30, "3.0 GiB"),
    ],
)
def test_sizes(count: int, text: str) -> None:
    assert show.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (119, "119s"), (120, "2m"), (7200, "2h"), (400000, "4d")]
)
def test_ages(seconds: int, text: str) -> None:
    assert show.age(10**9, 10**9 * (seconds + 1)) == text


def test_a_clock_that_went_back_shows_no_negative_age() -> None:
    assert show.age(5 * 10**9, 10**9) == "0s"


def test_json_has_every_field_by_its_protocol_name() -> None:
    found = json.loads(show.as_json([v1_pb2.Image(id="sha256:1", repo_tags=["a:b"])]))
    assert found[0]["repo_tags"] == ["a:b"]
    assert found[0]["repo_digests"] == []


def test_errors_and_hints_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    show.error(NotFound("no pod x", hint="thaw pods"))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "error: no pod x\nhint: thaw pods\n"


@pytest.mark.parametrize(
    ("current", "total", "text"),
    [(0, 10, "[....]   0 %"), (5, 10, "[##..]  50 %"), (20, 10, "[####] 100 %"), (5, 0, "5 B")],
)
def test_bars(current: int, total: int, text: str) -> None:
    assert show.bar(current, total, 4) == text


def test_steps_have_their_place_in_the_whole() -> None:
    assert verb_trace.bar(0, 10, 10) == "#" * 40
    assert verb_trace.bar(5, 5, 10) == " " * 20 + "#" * 20
    assert verb_trace.bar(10, 0, 10) == " " * 39 + "#"
