"""The vectors that both ends of the agent protocol are tested against."""

import json
from pathlib import Path
from typing import Any

import pytest

from vmm.agent.codec import Assembler, Decoder, Type

FOLDER = Path(__file__).resolve().parents[2] / "guest_agent" / "vectors"


def vectors(name: str) -> list[Any]:
    found = json.loads((FOLDER / name).read_text())
    return [pytest.param(vector, id=vector["name"]) for vector in found["vectors"]]


@pytest.mark.parametrize("vector", vectors("frames.json"))
def test_frames(vector: dict[str, Any]) -> None:
    decoder = Decoder()
    got = [frame for chunk in vector["chunks"] for frame in decoder.feed(bytes.fromhex(chunk))]
    assert [
        {
            "type": frame.type.name,
            "nonce": f"{frame.nonce:016x}",
            "flags": int(frame.flags),
            "stream": frame.stream,
            "payload": frame.payload.hex(),
        }
        for frame in got
    ] == vector["frames"]
    assert decoder.skipped == vector["skipped"]


@pytest.mark.parametrize("vector", vectors("messages.json"))
def test_messages(vector: dict[str, Any]) -> None:
    assembler, got = Assembler(), []
    for frame in Decoder().feed(bytes.fromhex(vector["input"])):
        if f"{frame.nonce:016x}" != vector["nonce"] or frame.type is not Type.REQUEST:
            continue
        if (data := assembler.add(frame)) is not None:
            got.append({"type": frame.type.name, "stream": frame.stream, "payload": data.decode()})
    assert got == vector["messages"]
