"""What exec and attach say beside the three standard streams: how it ended, and terminal sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from hostlib.errors import InvalidArgument

STREAM_TYPE: Final = "streamtype"
"""The header of a SPDY stream that says which of `STREAM_TYPES` it is; lower case, as received."""
STREAM_TYPES: Final = ("stdin", "stdout", "stderr", "error", "resize")
"""A stream's type; over WebSocket its place here is the number of its channel."""

NON_ZERO_EXIT: Final = "NonZeroExitCode"
EXIT_CODE: Final = "ExitCode"
INTERNAL_ERROR: Final = "InternalError"

MAX_STATUS: Final = 64 * 1024
MAX_MESSAGE: Final = 16 * 1024
MAX_RESIZE: Final = 1024


class MalformedMessage(InvalidArgument):
    """The peer sent a status or a size that is none."""


@dataclass(frozen=True)
class Outcome:
    """How a command ended: with an exit code, or, when it did not come to that, an error."""

    exit_code: int | None = 0
    error: str = ""

    @property
    def message(self) -> str:
        """Text for people; empty on success."""
        if self.exit_code is None:
            return self.error[:MAX_MESSAGE] or "unknown error"
        if self.exit_code:
            return f"command terminated with non-zero exit code: {self.exit_code}"
        return ""


def encode_outcome(outcome: Outcome, *, json_status: bool) -> bytes:
    """The bytes for the error stream; empty (nothing is to be sent) on success before v4."""
    raise NotImplementedError


def decode_outcome(data: bytes, *, json_status: bool) -> Outcome:
    """Reads what came on the error stream, once it has ended. Raises `MalformedMessage`.

    An empty stream before v4 is a success; there a text stands for an error of unknown exit code.
    """
    raise NotImplementedError


@dataclass(frozen=True)
class TerminalSize:
    """In characters, each 0 to 65,535."""

    width: int
    height: int


def encode_size(size: TerminalSize) -> bytes:
    """The JSON object for the resize stream, with the newline that Go's encoder writes."""
    raise NotImplementedError


class SizeDecoder:
    """Takes the bytes of a resize stream as they come, gives the sizes in them."""

    def receive(self, data: bytes | bytearray | memoryview) -> list[TerminalSize]:
        """Raises `MalformedMessage`: the stream is of no use then (Go's servers leave it, too)."""
        raise NotImplementedError
