"""What exec and attach say beside the three standard streams: how it ended, and terminal sizes."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Final

from hostlib.errors import InvalidArgument

STREAM_TYPE: Final = "streamtype"
"""The header of a SPDY stream that says which of `STREAM_TYPES` it is; lower case, as received."""
STREAM_TYPES: Final = ("stdin", "stdout", "stderr", "error", "resize")
"""A stream's type; over WebSocket its place here is the number of its channel."""

NON_ZERO_EXIT: Final = "NonZeroExitCode"
EXIT_CODE: Final = "ExitCode"
INTERNAL_ERROR: Final = "InternalError"

_EXIT_CODE: Final = re.compile(r"[0-9]{1,3}")

MAX_STATUS: Final = 64 * 1024
MAX_MESSAGE: Final = 8 * 1024
"""Characters of an error's text that are sent; JSON's escapes make six bytes of some."""

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
    if not json_status:
        return outcome.message.encode(errors="replace")
    status: dict[str, Any] = {"metadata": {}, "status": "Success"}
    if outcome.message:
        status = {"metadata": {}, "status": "Failure", "message": outcome.message}
        if outcome.exit_code is None:
            status |= {"reason": INTERNAL_ERROR, "code": 500}
        else:
            cause = {"reason": EXIT_CODE, "message": str(outcome.exit_code)}
            status |= {"reason": NON_ZERO_EXIT, "details": {"causes": [cause]}}
    text = json.dumps(status, separators=(",", ":"), ensure_ascii=False)
    return text.encode(errors="replace")


def decode_outcome(data: bytes, *, json_status: bool) -> Outcome:
    """Reads what came on the error stream, once it has ended. Raises `MalformedMessage`.

    An empty stream before v4 is a success; there a text stands for an error of unknown exit code.
    """
    if len(data) > MAX_STATUS:
        raise MalformedMessage(f"a status is longer than {MAX_STATUS} bytes")
    if not json_status:
        text = data.decode(errors="replace")
        return Outcome(None, text) if text else Outcome()
    status = _object(data, "a status")
    if status.get("status") == "Success":
        return Outcome()
    if status.get("status") != "Failure":
        raise MalformedMessage("a status is neither success nor failure")
    if status.get("reason") == NON_ZERO_EXIT:
        return Outcome(_exit_code(status))
    return Outcome(None, str(status.get("message") or ""))


@dataclass(frozen=True)
class TerminalSize:
    """In characters, each 0 to 65,535."""

    width: int
    height: int


def encode_size(size: TerminalSize) -> bytes:
    """The JSON object for the resize stream, with the newline that Go's encoder writes."""
    return json.dumps({"Width": size.width, "Height": size.height}).encode() + b"\n"


class SizeDecoder:
    """Takes the bytes of a resize stream as they come, gives the sizes in them."""

    def __init__(self) -> None:
        self._held = bytearray()

    def receive(self, data: bytes | bytearray | memoryview) -> list[TerminalSize]:
        """Raises `MalformedMessage`: the stream is of no use then (Go's servers leave it, too)."""
        sizes = []
        # The objects are flat, so each ends at its first brace; and no string in them holds one.
        *whole, rest = bytes(data).split(b"}")
        for part in whole:
            self._hold(part)
            sizes.append(_size(bytes(self._held) + b"}"))
            self._held.clear()
        self._hold(rest)
        return sizes

    def _hold(self, part: bytes) -> None:
        if len(self._held) + len(part) > MAX_RESIZE:
            raise MalformedMessage(f"a terminal size is longer than {MAX_RESIZE} bytes")
        self._held += part


def _size(data: bytes) -> TerminalSize:
    # Go's decoder, the reference, takes names in any case and 0 for one that is missing.
    given = {name.lower(): value for name, value in _object(data, "a terminal size").items()}
    width, height = given.get("width", 0), given.get("height", 0)
    for value in (width, height):
        if type(value) is not int or not 0 <= value <= 0xFFFF:
            raise MalformedMessage("a terminal size is out of range")
    return TerminalSize(width, height)


def _exit_code(status: dict[str, Any]) -> int:
    details = status.get("details")
    causes = details.get("causes") if isinstance(details, dict) else None
    for cause in causes if isinstance(causes, list) else ():
        if isinstance(cause, dict) and cause.get("reason") == EXIT_CODE:
            text = cause.get("message")
            if isinstance(text, str) and _EXIT_CODE.fullmatch(text) and int(text) <= 255:
                return int(text)
    raise MalformedMessage("a status has no exit code")


def _object(data: bytes, what: str) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise MalformedMessage(f"{what} is no JSON") from error
    if not isinstance(found, dict):
        raise MalformedMessage(f"{what} is no JSON object")
    return found
