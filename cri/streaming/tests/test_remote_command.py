"""How commands ended, and terminal sizes."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri.streaming.remote_command import (
    MAX_MESSAGE,
    MAX_STATUS,
    MalformedMessage,
    Outcome,
    SizeDecoder,
    TerminalSize,
    decode_outcome,
    encode_outcome,
    encode_size,
)

SUCCESS = {"metadata": {}, "status": "Success"}


def test_the_statuses_are_those_of_kubernetes() -> None:
    assert json.loads(encode_outcome(Outcome(0), json_status=True)) == SUCCESS
    assert json.loads(encode_outcome(Outcome(3), json_status=True)) == {
        "metadata": {},
        "status": "Failure",
        "message": "command terminated with non-zero exit code: 3",
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": "3"}]},
    }
    assert json.loads(encode_outcome(Outcome(None, "no such container"), json_status=True)) == {
        "metadata": {},
        "status": "Failure",
        "message": "no such container",
        "reason": "InternalError",
        "code": 500,
    }


def test_before_v4_a_failure_is_a_text() -> None:
    assert encode_outcome(Outcome(0), json_status=False) == b""
    text = encode_outcome(Outcome(3), json_status=False)
    assert text == b"command terminated with non-zero exit code: 3"
    assert decode_outcome(text, json_status=False) == Outcome(None, text.decode())
    assert decode_outcome(b"", json_status=False) == Outcome()


@given(
    st.one_of(
        st.builds(Outcome, st.integers(0, 255)), st.builds(Outcome, st.none(), st.text(min_size=1))
    )
)
def test_outcomes_are_read_as_they_were_told(outcome: Outcome) -> None:
    told = encode_outcome(outcome, json_status=True)
    assert decode_outcome(told, json_status=True) == outcome


@pytest.mark.parametrize("letter", ["\0", "\N{GRINNING FACE}", "\ud800", '"'])
def test_a_long_error_stays_within_what_a_peer_reads(letter: str) -> None:
    outcome = Outcome(None, letter * 100_000)
    for json_status in (False, True):
        told = encode_outcome(outcome, json_status=json_status)
        assert len(told) <= MAX_STATUS
        assert len(decode_outcome(told, json_status=json_status).error) == MAX_MESSAGE


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b'{"status":"Perhaps"}',
        b'{"status":"Failure","reason":"NonZeroExitCode"}',
        b'{"status":"Failure","reason":"NonZeroExitCode","details":{"causes":[1,{}]}}',
        (
            b'{"status":"Failure","reason":"NonZeroExitCode",'
            b'"details":{"causes":[{"reason":"ExitCode","message":"256"}]}}'
        ),
        (
            b'{"status":"Failure","reason":"NonZeroExitCode",'
            b'"details":{"causes":[{"reason":"ExitCode","message":3}]}}'
        ),
        b"[" * 60_000,
        b" " * (MAX_STATUS + 1),
    ],
)
def test_statuses_that_are_none(data: bytes) -> None:
    with pytest.raises(MalformedMessage):
        decode_outcome(data, json_status=True)


def test_sizes_are_those_of_kubernetes() -> None:
    assert encode_size(TerminalSize(80, 24)) == b'{"Width": 80, "Height": 24}\n'
    given = b'{"Width":80,"Height":24}\n{"width":1} {}'
    assert SizeDecoder().receive(given) == [
        TerminalSize(80, 24),
        TerminalSize(1, 0),
        TerminalSize(0, 0),
    ]


@given(
    st.lists(st.builds(TerminalSize, st.integers(0, 0xFFFF), st.integers(0, 0xFFFF))),
    st.integers(1, 40),
)
def test_sizes_come_however_they_are_cut(sizes: list[TerminalSize], step: int) -> None:
    data = b"".join(encode_size(size) for size in sizes)
    decoder = SizeDecoder()
    found = [
        size for at in range(0, len(data), step) for size in decoder.receive(data[at : at + step])
    ]
    assert found == sizes


@pytest.mark.parametrize(
    "data",
    [
        b"}",
        b"[1]}",
        b'{"Width":65536}',
        b'{"Width":-1}',
        b'{"Height":1.5}',
        b'{"Height":true}',
        b'{"Height":"1"}',
        b" " * 1025,
    ],
)
def test_sizes_that_are_none(data: bytes) -> None:
    with pytest.raises(MalformedMessage):
        SizeDecoder().receive(data)


def test_a_size_that_never_ends() -> None:
    decoder = SizeDecoder()
    for _ in range(1024):
        assert decoder.receive(b" ") == []
    with pytest.raises(MalformedMessage):
        decoder.receive(b" ")
