"""The streaming server: one port for HTTP, WebSocket and SPDY."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
from dataclasses import dataclass
from typing import Any, Final

from cri.streaming.certificates import CertificateFiles, Certificates
from cri.streaming.exchange import Exchange, Refused
from cri.streaming.link import Link, connect
from cri.streaming.requests import Backend, Request
from cri.streaming.sessions import Client, Session, agree
from cri.streaming.tokens import Tokens
from hostlib.errors import FailedPrecondition, NotFound
from hostlib.tasks import Tasks

log = logging.getLogger(__name__)

MAX_UNASKED: Final = 64
"""Connections that have not sent their request yet; beyond it the oldest is closed."""
SWEEP: Final = 5.0
"""Seconds between two looks at what is idle."""
BACKLOG: Final = 256


@dataclass(frozen=True)
class Options:
    """`cri.config.Streaming` says what they mean."""

    address: str
    port: int
    tls: CertificateFiles | None
    idle_timeout: float
    creation_timeout: float
    max_connections: int


class StreamingServer:
    """Serves what the one-shot URLs stand for. Life: `start`, any number of `url`, `stop`."""

    def __init__(self, options: Options, backend: Backend) -> None:
        self._options = options
        self._backend = backend
        self._tokens = Tokens()
        self._certificates = Certificates(options.tls) if options.tls else None
        self._tasks = Tasks()
        self._unasked: dict[asyncio.Task[Any], None] = {}
        self.links: set[Link] = set()
        """Of clients that were let in."""
        self._listener: socket.socket | None = None
        self.base = ""
        """What all URLs begin with, once it is started."""

    async def start(self) -> None:
        """Listens. Raises `FailedPrecondition` when the address or the certificate is no good."""
        if self._certificates is not None:
            await self._certificates.context()
        address = ipaddress.ip_address(self._options.address)
        family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            listener.setblocking(False)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((str(address), self._options.port))
            listener.listen(BACKLOG)
        except OSError as error:
            listener.close()
            raise FailedPrecondition(
                f"the streaming server cannot listen on {address} port {self._options.port}: "
                f"{error.strerror}",
                hint="see streaming.address and streaming.port",
            ) from error
        self._listener = listener
        # Whoever follows a URL is on this machine: a wildcard is reached by the loopback.
        if address.is_unspecified:
            address = ipaddress.ip_address("::1" if address.version == 6 else "127.0.0.1")
        host = f"[{address}]" if address.version == 6 else str(address)
        scheme = "https" if self._certificates else "http"
        self.base = f"{scheme}://{host}:{listener.getsockname()[1]}"
        self._tasks.start(self._accept(listener), "streaming listener")
        self._tasks.start(self._sweep(), "streaming sweep")
        log.info("the streaming server listens on %s", self.base)

    async def stop(self) -> None:
        """Ends all connections. Idempotent."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        await self._tasks.close()

    def url(self, request: Request) -> str:
        """A URL for `request`, for one use within a minute. Raises `ResourceExhausted`."""
        return self.base + self._tokens.issue(request)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(listener)
            except OSError as error:
                # Out of descriptors, or the client left in between.
                log.warning("the streaming server cannot take a connection: %s", error)
                await asyncio.sleep(0.1)
                continue
            while len(self._unasked) >= MAX_UNASKED:
                oldest = next(iter(self._unasked))
                del self._unasked[oldest]
                oldest.cancel()
            task = self._tasks.start(self._serve(sock), "streaming connection")
            self._unasked[task] = None
            task.add_done_callback(lambda done: self._unasked.pop(done, None))

    async def _serve(self, sock: socket.socket) -> None:
        link = Link()
        exchange = Exchange(link)
        try:
            async with asyncio.timeout(self._options.creation_timeout) as deadline:
                context = await self._certificates.context() if self._certificates else None
                await connect(link, sock, context, self._options.creation_timeout)
                try:
                    session = await self._session(exchange, link)
                except Refused as refused:
                    await exchange.refuse(refused)
                    return
                deadline.reschedule(None)
            await self._run(session, link)
        except (OSError, TimeoutError) as error:
            log.debug("a streaming connection was given up: %s", error)
        finally:
            if link.connected:
                link.abort()
            else:
                sock.close()

    async def _session(self, exchange: Exchange, link: Link) -> Session:
        """What the client has a right to, its protocol agreed. Raises `Refused`."""
        request = await exchange.request()
        if request.method not in ("GET", "POST"):
            raise Refused(405, "method not allowed", (("Allow", "GET, POST"),))
        if len(self.links) >= self._options.max_connections:
            raise Refused(
                503,
                f"{len(self.links)} clients are connected (streaming.max_connections)",
                (("Retry-After", "1"),),
            )
        try:
            wanted = self._tokens.take(request.path)
        except NotFound as error:
            raise Refused(404, error.message) from error
        client = Client(link, self._backend, self._options.creation_timeout)
        return agree(exchange, request, wanted, client)

    async def _run(self, start: Session, link: Link) -> None:
        """Carries a session out until it ends or the client leaves."""
        task = asyncio.current_task()
        if task is not None:
            self._unasked.pop(task, None)
        self.links.add(link)
        session = asyncio.create_task(start(), name="streaming session")
        try:
            await asyncio.wait([session, link.gone], return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.links.discard(link)
            session.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await session

    async def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        idle = self._options.idle_timeout
        while True:
            await asyncio.sleep(min(SWEEP, idle / 4))
            now = loop.time()
            for link in list(self.links):
                quiet = now - link.last_active
                if quiet > idle:
                    log.info("a streaming connection was idle for %.0f s and is closed", quiet)
                    link.abort()
                elif quiet > SWEEP and link.left_unread:
                    link.abort()
