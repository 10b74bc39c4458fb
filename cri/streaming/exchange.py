"""The one HTTP/1.1 exchange of a connection: a request, then a refusal or a switch of protocols."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import h11

from cri.streaming.link import Link

MAX_HEAD: Final = 16 * 1024
"""Bytes of the request line and all headers."""
MAX_BODY: Final = 64 * 1024
"""Bytes of a body, which nobody reads."""
LINGER: Final = 2.0
"""Seconds for a client to take a refusal."""


class Refused(Exception):
    """The request is answered with this."""

    def __init__(
        self, status: int, message: str, headers: tuple[tuple[str, str], ...] = ()
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers


@dataclass(frozen=True)
class HttpRequest:
    method: str
    path: str
    query: dict[str, list[str]]
    headers: tuple[tuple[str, str], ...]
    """Names in lower case."""

    def values(self, name: str) -> list[str]:
        """The values of a header, in order; `name` in lower case."""
        return [value for key, value in self.headers if key == name]

    def tokens(self, name: str) -> str:
        """The values of a header in lower case, joined."""
        return ",".join(self.values(name)).lower()

    @property
    def wants_websocket(self) -> bool:
        return self._upgrades and self.tokens("upgrade").strip() == "websocket"

    @property
    def wants_spdy(self) -> bool:
        return self._upgrades and "spdy/3.1" in self.tokens("upgrade")

    @property
    def _upgrades(self) -> bool:
        return "upgrade" in self.tokens("connection")


class Exchange:
    """Reads the request of a link, which it takes over, and answers it."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
        self._head: h11.Request | None = None
        self._body = 0
        self._read: asyncio.Future[HttpRequest] = asyncio.get_running_loop().create_future()
        link.receive = self._receive

    async def request(self) -> HttpRequest:
        """The request, body and all. Raises `Refused`, `ConnectionError` when the client left."""
        ends: list[asyncio.Future[Any]] = [self._read, self._link.gone]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if not self._read.done():
            raise ConnectionResetError("the client left")
        return self._read.result()

    def _receive(self, data: memoryview) -> None:
        if self._read.done():
            return
        try:
            self._http.receive_data(bytes(data))
            while not self._read.done():
                event = self._http.next_event()
                if event is h11.NEED_DATA:
                    return
                if isinstance(event, h11.Request):
                    self._head = event
                    # h11 bounds what is incomplete; a head may come whole, in one piece.
                    size = sum(len(name) + len(value) for name, value in event.headers)
                    if size + len(event.target) > MAX_HEAD:
                        raise Refused(431, "the request has long headers")
                elif isinstance(event, h11.Data):
                    self._body += len(event.data)
                    if self._body > MAX_BODY:
                        raise Refused(413, "the request has a body")
                else:
                    self._link.hold(True)
                    self._read.set_result(self._parsed())
        except h11.RemoteProtocolError as error:
            self._fail(Refused(error.error_status_hint, f"bad request: {error}"))
        except Refused as error:
            self._fail(error)

    def _fail(self, error: Refused) -> None:
        self._link.hold(True)
        self._read.set_exception(error)

    def _parsed(self) -> HttpRequest:
        head = self._head
        if head is None:
            raise Refused(400, "bad request")
        try:
            url = urlsplit(head.target.decode("ascii"))
            query = parse_qs(url.query, keep_blank_values=True, max_num_fields=256)
        except ValueError as error:
            raise Refused(400, "bad request: its target is malformed") from error
        headers = tuple(
            (name.decode("latin-1"), value.decode("latin-1")) for name, value in head.headers
        )
        return HttpRequest(head.method.decode("latin-1"), url.path, query, headers)

    def switch(self, headers: list[tuple[str, str]]) -> bytes:
        """Answers 101 and gives what the client has sent in the new protocol already."""
        self._link.write(
            self._http.send(
                h11.InformationalResponse(
                    status_code=101, headers=headers, reason=b"Switching Protocols"
                )
            )
        )
        return self._http.trailing_data[0]

    async def refuse(self, refused: Refused) -> None:
        """Answers with an error, and ends the connection."""
        if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = refused.message.encode(errors="replace") + b"\n"
            headers = [
                ("Content-Type", "text/plain; charset=utf-8"),
                ("Content-Length", str(len(body))),
                ("Connection", "close"),
                *refused.headers,
            ]
            parts = (
                self._http.send(h11.Response(status_code=refused.status, headers=headers)),
                self._http.send(h11.Data(data=body)) if not self._head_only else b"",
            )
            self._link.write(b"".join(part for part in parts if part))
        await self._link.close(LINGER)

    @property
    def _head_only(self) -> bool:
        return self._head is not None and self._head.method == b"HEAD"
