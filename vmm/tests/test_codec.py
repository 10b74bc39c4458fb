import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.agent.codec import (
    _ALLOWED_FLAGS,
    HEADER_SIZE,
    MAX_MESSAGE,
    MAX_PAYLOAD,
    AgentProtocolError,
    Assembler,
    Decoder,
    Flag,
    Frame,
    Type,
    encode,
    encode_message,
    parse_json,
)
from vmm.tests import fuzz_codec


@st.composite
def frames(draw: st.DrawFn) -> Frame:
    kind = draw(st.sampled_from(Type))
    flag = Flag(_ALLOWED_FLAGS[kind]) if draw(st.booleans()) else Flag.NONE
    return Frame(
        draw(st.integers(1, 2**64 - 1)),
        kind,
        draw(st.integers(0, 2**32 - 1)),
        draw(st.binary(max_size=300)),
        flag,
    )


@given(st.lists(frames(), max_size=8), st.data())
def test_any_split_gives_the_same_frames(sent: list[Frame], data: st.DataObject) -> None:
    raw = b"".join(map(encode, sent))
    decoder, got, at = Decoder(), [], 0
    while at < len(raw):
        size = data.draw(st.integers(1, 200))
        got += decoder.feed(raw[at : at + size])
        at += size
    assert got == sent
    assert decoder.skipped == decoder.buffered == 0


@given(st.binary(max_size=400), frames())
def test_a_frame_after_garbage_is_found(garbage: bytes, frame: Frame) -> None:
    if b"THAW" in garbage or any(garbage.endswith(b"THAW"[:n]) for n in (1, 2, 3)):
        garbage = garbage.replace(b"T", b"t")
    decoder = Decoder()
    assert decoder.feed(garbage + encode(frame)) == [frame]
    assert decoder.skipped == len(garbage)


@given(st.lists(st.binary(max_size=300), max_size=20))
def test_hostile_bytes_never_raise_nor_pile_up(chunks: list[bytes]) -> None:
    decoder = Decoder()
    for chunk in chunks:
        decoder.feed(chunk)
        assert decoder.buffered < HEADER_SIZE + MAX_PAYLOAD


@given(frames(), st.integers(0, 27), st.integers(1, 255))
def test_a_damaged_header_is_skipped(frame: Frame, place: int, change: int) -> None:
    raw = bytearray(encode(Frame(frame.nonce, frame.type, frame.stream)))
    raw[place] ^= change
    good = Frame(7, Type.DATA, 1, b"x")
    assert Decoder().feed(bytes(raw) + encode(good))[-1:] == [good]


def test_half_a_header_then_a_frame() -> None:
    frame = Frame(9, Type.EVENT, 0, b"{}")
    assert Decoder().feed(encode(frame)[:13] + encode(frame)) == [frame]


def test_limits() -> None:
    with pytest.raises(ValueError, match="payload"):
        encode(Frame(1, Type.DATA, 1, bytes(MAX_PAYLOAD + 1)))
    with pytest.raises(ValueError, match="message"):
        encode_message(1, Type.REQUEST, 1, {"a": "x" * MAX_MESSAGE})


@given(st.integers(0, 300_000))
def test_long_messages_come_together(size: int) -> None:
    body = {"method": "x", "params": {"a": "y" * size}}
    assembler, whole = Assembler(), None
    for frame in Decoder().feed(encode_message(5, Type.REQUEST, 3, body)):
        assert whole is None
        whole = assembler.add(frame)
    assert whole is not None
    assert json.loads(whole) == body


def test_endless_messages_are_refused() -> None:
    assembler = Assembler()
    part = Frame(1, Type.EVENT, 0, bytes(MAX_PAYLOAD), Flag.MORE)
    with pytest.raises(AgentProtocolError):
        for _ in range(MAX_MESSAGE // MAX_PAYLOAD + 1):
            assembler.add(part)
    many = Assembler()
    with pytest.raises(AgentProtocolError):
        for number in range(2000):
            many.add(Frame(1, Type.RESPONSE, number, b"", Flag.MORE))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"\xff",
        b'{"a":' + b"[" * 65 + b"]" * 65 + b"}",
        b"[" * 100_000,
    ],
)
def test_bad_json(data: bytes) -> None:
    with pytest.raises(AgentProtocolError):
        parse_json(data)


def test_deep_json_within_the_limit() -> None:
    data = b'{"a":' + b"[" * 62 + b"]" * 62 + b"}"
    assert "a" in parse_json(data)


def test_layout() -> None:
    """The bytes of docs/protocol.md, written out."""
    raw = encode(Frame(0x1122334455667788, Type.DATA, 0x0A0B0C0D, b"hi", Flag.FIN))
    assert raw[:24].hex() == "544841578877665544332211050100000d0c0b0a02000000"
    assert raw[28:] == b"hi"


SAVED = sorted((Path(__file__).parents[2] / "guest_agent/fuzz/corpus/frames").iterdir())


@pytest.mark.parametrize("path", SAVED, ids=lambda path: path.name)
def test_inputs_that_fuzzing_saved(path: Path) -> None:
    fuzz_codec.one(path.read_bytes())
