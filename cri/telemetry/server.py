"""Serves the daemon's metrics over HTTP: one page, one request a connection, few at a time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Final

import h11

from cri.telemetry.config import split
from hostlib.errors import FailedPrecondition
from hostlib.tasks import SingleFlight, in_thread

log = logging.getLogger(__name__)

PATH: Final = "/metrics"
TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
MAX_CONNECTIONS: Final = 16
MAX_HEAD: Final = 16 * 1024
TIMEOUT: Final = 10.0
"""Seconds for a client to ask and to take the answer."""

_CHUNK: Final = 4096


class _Bad(Exception):
    """The request is answered with this status."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status, self.text = status, text


class MetricsServer:
    """Listens at ADDRESS:PORT; `render` makes the page, in a worker thread."""

    def __init__(self, listen: str, render: Callable[[], bytes], timeout: float = TIMEOUT) -> None:
        self._address, self._port = split(listen)
        self._render = render
        self._timeout = timeout
        self._rendering: SingleFlight[bytes] = SingleFlight()
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen. Raises `FailedPrecondition` where that cannot be."""
        try:
            self._server = await asyncio.start_server(
                self._accepted, self._address, self._port, limit=MAX_HEAD
            )
        except OSError as error:
            reason = error.strerror or str(error)
            raise FailedPrecondition(
                f"metrics cannot be served at {self._address} port {self._port}: {reason}",
                hint="see metrics.listen",
            ) from error
        log.info("metrics are served at %s port %d", self._address, self._port)

    async def stop(self) -> None:
        """End all connections. Idempotent."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for each in list(self._clients):
            each.cancel()
        if self._clients:
            await asyncio.wait(self._clients)
        # Aborted transports let their sockets go in the loop's next round.
        await asyncio.sleep(0)

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._clients) >= MAX_CONNECTIONS:
            writer.transport.abort()
            return
        task = asyncio.create_task(self._serve(reader, writer), name="metrics connection")
        self._clients.add(task)
        task.add_done_callback(self._clients.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A client that is gone, or late, is its own affair.
        try:
            with contextlib.suppress(ConnectionError, TimeoutError):
                async with asyncio.timeout(self._timeout):
                    await self._exchange(reader, writer)
        finally:
            # Aborted and not closed: what a late client has not taken is not kept for it.
            writer.transport.abort()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
        head = b""
        status, kind, headers = 200, TYPE, []
        try:
            head = await self._request(http, reader)
            body = await self._rendering.run("page", lambda: in_thread(self._render))
        except h11.RemoteProtocolError as error:
            status, kind, body = error.error_status_hint, "text/plain", b"bad request\n"
        except _Bad as error:
            status, kind, body = error.status, "text/plain", error.text.encode() + b"\n"
            if status == 405:
                headers = [("Allow", "GET, HEAD")]
        if http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        response = h11.Response(
            status_code=status,
            headers=[
                ("Content-Type", kind),
                ("Content-Length", str(len(body))),
                ("Connection", "close"),
                *headers,
            ],
        )
        data = http.send(response) or b""
        if head != b"HEAD":
            data += http.send(h11.Data(data=body)) or b""
        writer.write(data)
        await writer.drain()
        writer.write_eof()
        # Until the client took it all: closed before, unread bytes of its own would reset it.
        while await reader.read(_CHUNK):
            pass

    @staticmethod
    async def _request(http: h11.Connection, reader: asyncio.StreamReader) -> bytes:
        """The method. Raises `_Bad`, `h11.RemoteProtocolError`, ConnectionError."""
        while (event := http.next_event()) is h11.NEED_DATA:
            data = await reader.read(_CHUNK)
            http.receive_data(data)
            if not data:
                raise ConnectionResetError("the client left")
        if not isinstance(event, h11.Request):
            raise ConnectionResetError("the client left")
        if event.method not in (b"GET", b"HEAD"):
            raise _Bad(405, "only GET")
        if event.target.partition(b"?")[0] != PATH.encode():
            raise _Bad(404, f"see {PATH}")
        return event.method
