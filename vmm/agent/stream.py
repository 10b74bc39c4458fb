"""One stream of the agent protocol: both directions, each with its own credit."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from hostlib.errors import ThawError, Unavailable
from vmm.agent.codec import (
    INITIAL_CREDIT,
    MAX_CREDIT,
    MAX_PAYLOAD,
    AgentProtocolError,
    Flag,
    Type,
)

# Credit goes back in pieces worth a frame: a reader of single bytes would answer each with 32.
_CREDIT_STEP: Final = INITIAL_CREDIT // 4

Send = Callable[[Type, int, bytes, Flag], None]


class StreamReset(Unavailable):
    """The stream was broken off, with what was still under way lost."""


class Stream:
    """A stream to the guest. One reader and one writer at a time.

    At most 262,144 received bytes are held: the guest has no credit for more.
    """

    def __init__(
        self,
        number: int,
        send: Send,
        drain: Callable[[], Awaitable[None]],
        forget: Callable[[int, bool], None],
    ) -> None:
        self.id = number
        self._send = send
        self._drain = drain
        self._forget = forget
        self._received = bytearray()
        self._window = INITIAL_CREDIT
        self._owed = 0
        self._credit = INITIAL_CREDIT
        self._fin_received = False
        self._fin_sent = False
        self._error: ThawError | None = None
        self._changed = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()

    async def read(self, limit: int = INITIAL_CREDIT) -> bytes:
        """What has come, at most `limit` bytes; waits for some. b"" at the end of the stream.

        Raises `StreamReset`, or the reason for which the connection ended.
        """
        while not self._received:
            if self._error is not None:
                raise self._error
            if self._fin_received:
                return b""
            self._changed.clear()
            await self._changed.wait()
        data = bytes(self._received[:limit])
        del self._received[: len(data)]
        self._owed += len(data)
        if self._error is None and not self._fin_received and self._owed >= _CREDIT_STEP:
            self._give_credit()
        return data

    def _give_credit(self) -> None:
        self._window += self._owed
        self._send(Type.CREDIT, self.id, self._owed.to_bytes(4, "little"), Flag.NONE)
        self._owed = 0

    async def write(self, data: bytes) -> None:
        """Send `data`; waits while the guest gives no credit. Raises as `read` does."""
        view = memoryview(data)
        while view:
            while self._credit == 0 and self._error is None:
                self._writable.clear()
                await self._writable.wait()
            if self._error is not None:
                raise self._error
            if self._fin_sent:
                raise StreamReset(f"stream {self.id} is closed for writing")
            size = min(len(view), self._credit, MAX_PAYLOAD)
            self._credit -= size
            self._send(Type.DATA, self.id, bytes(view[:size]), Flag.NONE)
            view = view[size:]
            await self._drain()

    def close_write(self) -> None:
        """Tell the guest that no more will come. Idempotent."""
        if self._fin_sent or self._error is not None:
            return
        self._fin_sent = True
        self._send(Type.DATA, self.id, b"", Flag.FIN)
        self._forget_if_over()

    def reset(self) -> None:
        """Break the stream off in both directions. Idempotent."""
        if self._error is not None or (self._fin_sent and self._fin_received):
            return
        self._send(Type.RESET, self.id, b"", Flag.NONE)
        self.fail(StreamReset(f"stream {self.id} was reset"))
        self._forget(self.id, True)

    def on_data(self, payload: bytes, fin: bool) -> None:
        """The guest sent DATA. Raises `AgentProtocolError` when it had no credit for it."""
        if self._fin_received:
            raise AgentProtocolError(f"the guest sent data after the end of stream {self.id}")
        if len(payload) > self._window:
            raise AgentProtocolError(f"the guest sent more than its credit on stream {self.id}")
        if not payload and not fin:
            raise AgentProtocolError(f"the guest sent empty data on stream {self.id}")
        self._window -= len(payload)
        self._received += payload
        self._fin_received = fin
        self._changed.set()
        self._forget_if_over()

    def on_credit(self, payload: bytes) -> None:
        if len(payload) != 4:
            raise AgentProtocolError("the guest sent a malformed CREDIT frame")
        self._credit += int.from_bytes(payload, "little")
        if self._credit > MAX_CREDIT:
            raise AgentProtocolError(f"the guest gave too much credit on stream {self.id}")
        if self._credit:
            self._writable.set()

    def on_reset(self) -> None:
        """The guest broke the stream off."""
        self.fail(StreamReset(f"the guest reset stream {self.id}"))
        self._forget(self.id, False)

    def fail(self, error: ThawError) -> None:
        """End the stream with `error`, unless it has ended; what was received is dropped."""
        if self._error is None and not (self._fin_received and self._fin_sent):
            self._error = error
            if not self._fin_received:
                self._received.clear()
        self._changed.set()
        self._writable.set()

    def _forget_if_over(self) -> None:
        if self._fin_received and self._fin_sent:
            self._forget(self.id, False)
