"""A registry in this process that misbehaves on demand."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

from images.tests.build import OCI_MANIFEST, Built, sha


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes = b""
    certificate: bool = False
    """Whether the client showed one."""


@dataclass
class Answer:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    length: int | None = None
    """Content-Length where it shall lie."""
    chunks: Callable[[asyncio.StreamWriter], Awaitable[None]] | None = None


Behaviour = Callable[[Request], Answer | None]


class FakeRegistry:
    """Serves blobs and manifests; `behave` sees each request first."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, tuple[bytes, str]] = {}
        self.requests: list[Request] = []
        self.behave: Behaviour = lambda _: None
        self.port = 0

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def add(self, built: Built, tag: str = "latest") -> Built:
        self.blobs |= built.blobs
        self.add_manifest(built.manifest, built.media_type, tag)
        return built

    def add_manifest(self, data: bytes, media_type: str = OCI_MANIFEST, tag: str = "") -> None:
        self.manifests[sha(data)] = (data, media_type)
        if tag:
            self.manifests[tag] = (data, media_type)

    def paths(self, part: str) -> list[Request]:
        return [item for item in self.requests if part in item.path]

    def _answer(self, request: Request) -> Answer:
        if (special := self.behave(request)) is not None:
            return special
        kind, _, name = request.path.partition("?")[0].rpartition("/")
        if kind.endswith("/manifests") and name in self.manifests:
            data, media_type = self.manifests[name]
            return Answer(200, data, {"Content-Type": media_type})
        if kind.endswith("/blobs") and name in self.blobs:
            data = self.blobs[name]
            if (span := request.headers.get("range", "")).startswith("bytes="):
                start = int(span[6:].partition("-")[0])
                where = f"bytes {start}-{len(data) - 1}/{len(data)}"
                return Answer(206, data[start:], {"Content-Range": where})
            return Answer(200, data)
        return Answer(404)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while line := await reader.readline():
                method, path, _ = line.decode().split(" ", 2)
                headers: dict[str, str] = {}
                while (text := (await reader.readline()).decode().strip()) != "":
                    name, _, value = text.partition(":")
                    headers[name.lower()] = value.strip()
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                shown = bool(writer.get_extra_info("peercert"))
                request = Request(method, path, headers, body, shown)
                self.requests.append(request)
                answer = self._answer(request)
                length = len(answer.body) if answer.length is None else answer.length
                lines = [f"HTTP/1.1 {answer.status} X", f"Content-Length: {length}"]
                lines += [f"{name}: {value}" for name, value in answer.headers.items()]
                writer.write("\r\n".join([*lines, "", ""]).encode() + answer.body)
                await writer.drain()
                if answer.chunks is not None:
                    await answer.chunks(writer)
                if answer.length is not None:
                    break


@contextlib.asynccontextmanager
async def running(tls: ssl.SSLContext | None = None) -> AsyncIterator[FakeRegistry]:
    registry = FakeRegistry()
    connections: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        try:
            await registry._serve(reader, writer)
        except asyncio.CancelledError:
            writer.transport.abort()
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                await writer.wait_closed()
            connections.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    registry.port = server.sockets[0].getsockname()[1]
    try:
        yield registry
    finally:
        server.close()
        for task in list(connections):
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
        await server.wait_closed()
