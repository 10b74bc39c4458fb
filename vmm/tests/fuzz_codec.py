"""The host's frame decoder under atheris: ``python -m vmm.tests.fuzz_codec CORPUS... [OPTION...]``.

The inputs are those of the agent's fuzz target `frames`. Run by `make fuzz`.
"""

from __future__ import annotations

import contextlib
import sys
import zlib

from vmm.agent import codec
from vmm.agent.codec import (
    HEADER_SIZE,
    MAGIC,
    MAX_MESSAGE,
    AgentProtocolError,
    Assembler,
    Decoder,
    encode,
    parse_json,
)


def _repair(data: bytearray) -> None:
    at = data.find(MAGIC)
    while 0 <= at <= len(data) - HEADER_SIZE:
        checksum = zlib.crc32(data[at : at + HEADER_SIZE - 4])
        data[at + HEADER_SIZE - 4 : at + HEADER_SIZE] = checksum.to_bytes(4, "little")
        at = data.find(MAGIC, at + 1)


def one(given: bytes) -> None:
    """The first byte says how many bytes come at once, its highest bit that checksums are repaired.

    However the bytes are cut, the frames are the same, and each is what encoding it again gives.
    """
    if not given:
        return
    data = bytearray(given[1:])
    if given[0] & 0x80:
        _repair(data)
    size = max(given[0] & 0x7F, 1)
    decoder, assembler = Decoder(), Assembler()
    heard = []
    for at in range(0, len(data), size):
        heard += decoder.feed(bytes(data[at : at + size]))
    whole = Decoder()
    assert whole.feed(bytes(data)) == heard
    assert whole.skipped == decoder.skipped
    with contextlib.suppress(AgentProtocolError):
        for frame in heard:
            assert encode(frame) in data
            message = assembler.add(frame)
            if message is not None:
                assert len(message) <= MAX_MESSAGE
                with contextlib.suppress(AgentProtocolError):
                    parse_json(message)


def main() -> None:
    import atheris

    # Of the standard library nothing: its branches would slow every input down.
    traced = (
        Decoder.feed,
        Decoder._next_magic,
        Assembler.add,
        codec._header,
        codec._too_deep,
        encode,
    )
    for function in (*traced, parse_json):
        atheris.instrument_func(function)
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
