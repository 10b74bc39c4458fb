"""The client of registries: OCI distribution specification over httpx.

Transient failures (429, 5xx, a lost connection) are tried again with back-off; nothing else is.
There is no overall time-out: a transfer may take hours, but not stall. Every byte is checked
against the digest it was asked by.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Final, Self

import httpx

from hostlib import failpoint
from hostlib.errors import (
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    ThawError,
    Unauthenticated,
    Unavailable,
)
from hostlib.tasks import in_thread
from images import hosts, manifest
from images.auth import MAX_TOKEN_ANSWER, Tokens, applies
from images.hosts import Host
from images.manifest import Descriptor
from images.model import Auth, Limits
from images.reference import Reference

ATTEMPTS: Final = 5
BACKOFF: Final = 0.25
"""Seconds before the second attempt; doubled for each one after it."""
MAX_WAIT: Final = 30.0
MAX_RESUMES: Final = 50
"""How often one blob may break off, though each time some bytes came."""
MAX_REDIRECTS: Final = 5
CONNECT_TIMEOUT: Final = 15.0

Sink = Callable[[bytes], Awaitable[None]]


class _Transient(Exception):
    """Carries the error to raise when trying again does not help."""

    def __init__(self, error: ThawError, wait: float | None = None) -> None:
        super().__init__(str(error))
        self.error = error
        self.wait = wait


def _transport(error: httpx.TransportError, netloc: str, limits: Limits) -> ThawError:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, socket.gaierror):
            return Unavailable(
                f"registry host {netloc} is unknown",
                hint="check the image's name, and the node's DNS",
            )
        if isinstance(cause, ConnectionRefusedError):
            return Unavailable(
                f"registry {netloc} refused the connection",
                hint="check that it runs, its port, and the proxy settings",
            )
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, httpx.ReadTimeout):
        return DeadlineExceeded(
            f"registry {netloc} sent nothing for {limits.stall_timeout:g} s",
            hint="the registry or the network is overloaded: try again",
        )
    return Unavailable(
        f"registry {netloc} cannot be reached: {str(error) or type(error).__name__}",
        hint="check the network; for plain http or a private CA, write a hosts.toml",
    )


def _refusal(status: int, what: str, netloc: str) -> ThawError:
    if status == 401:
        return Unauthenticated(
            f"{netloc} refused access to {what}",
            hint="check the credentials, and that they may read this image",
        )
    if status == 403:
        return PermissionDenied(
            f"{netloc} forbids access to {what}", hint="check that the user may read this image"
        )
    if status == 404:
        return NotFound(f"{netloc} has no {what}", hint="check the image's name and tag")
    if status == 429:
        return ResourceExhausted(
            f"{netloc} limits the rate of requests (429) for {what}",
            hint="wait, log in, or use a mirror",
        )
    if status >= 500:
        return Unavailable(f"{netloc} failed with {status} for {what}", hint="try again later")
    return FailedPrecondition(f"{netloc} answered {status} for {what}")


def _retry_after(response: httpx.Response) -> float | None:
    value = response.headers.get("Retry-After", "")
    return min(float(value), MAX_WAIT) if value.isascii() and value.isdigit() else None


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


class Registry:
    """Reads one repository, with one set of credentials. A context manager; use it once."""

    def __init__(
        self, ref: Reference, *, config_path: Path | None, auth: Auth | None, limits: Limits
    ) -> None:
        self._ref = ref
        self._config_path = config_path
        self._auth = auth
        self._limits = limits
        self._tokens = Tokens(auth)
        self._clients: dict[Host, httpx.AsyncClient] = {}
        self._hosts: tuple[Host, ...] = ()

    async def __aenter__(self) -> Self:
        self._hosts = await in_thread(hosts.find, self._config_path, self._ref.domain)
        return self

    async def __aexit__(self, *_: object) -> None:
        for client in self._clients.values():
            await client.aclose()

    async def _client(self, host: Host) -> httpx.AsyncClient:
        if host not in self._clients:
            verify = await in_thread(host.tls)
            self._clients[host] = httpx.AsyncClient(
                verify=verify,
                follow_redirects=False,
                timeout=httpx.Timeout(self._limits.stall_timeout, connect=CONNECT_TIMEOUT),
                headers={"User-Agent": "thaw", "Accept-Encoding": "identity"},
                # A local registry is never behind the node's proxy.
                trust_env=not hosts.is_local(host.netloc),
            )
        return self._clients[host]

    @property
    def _scope(self) -> str:
        return f"repository:{self._ref.path}:pull"

    @contextlib.asynccontextmanager
    async def _send(
        self, host: Host, method: str, path: str, headers: dict[str, str]
    ) -> AsyncIterator[httpx.Response]:
        """One request, challenges answered and redirects followed. Raises httpx's errors."""
        client = await self._client(host)
        url = httpx.URL(f"{host.base}/{self._ref.path}/{path}")
        if host.is_mirror:
            url = url.copy_merge_params({"ns": host.namespace})
        origin = _origin(url)
        challenged = False
        for _ in range(MAX_REDIRECTS + 2):
            sent = dict(headers)
            # Neither credentials nor configured headers go to where a redirect leads.
            if _origin(url) == origin:
                sent |= dict(host.header)
                if token := self._tokens.kept(host.base, self._scope):
                    sent["Authorization"] = token
            async with client.stream(method, url, headers=sent) as response:
                if response.status_code == 401 and not challenged and _origin(url) == origin:
                    challenged = True
                    header = ", ".join(response.headers.get_list("WWW-Authenticate"))
                    self._tokens.forget(host.base, self._scope)
                elif response.is_redirect:
                    target = url.join(response.headers.get("Location", ""))
                    if target.scheme not in ("http", "https") or (
                        url.scheme == "https" and target.scheme == "http"
                    ):
                        raise FailedPrecondition(
                            f"{host.netloc} redirects from https to {target.scheme}: refused"
                        )
                    url = target
                    continue
                else:
                    yield response
                    return
            trusted = applies(self._auth, host.netloc, self._ref.domain)
            await self._tokens.answer(
                header, host.base, self._scope, trusted=trusted, fetch=self._fetcher(client)
            )
        raise Unavailable(f"{host.netloc} redirects more than {MAX_REDIRECTS} times")

    def _fetcher(
        self, client: httpx.AsyncClient
    ) -> Callable[[httpx.Request], Awaitable[tuple[int, bytes]]]:
        async def fetch(request: httpx.Request) -> tuple[int, bytes]:
            request.extensions["timeout"] = client.timeout.as_dict()
            response = await client.send(request, stream=True)
            try:
                if response.status_code == 429 or response.status_code >= 500:
                    raise _Transient(
                        _refusal(response.status_code, "a token", request.url.host),
                        _retry_after(response),
                    )
                return response.status_code, await _limited(response, MAX_TOKEN_ANSWER, "a token")
            finally:
                await response.aclose()

        return fetch

    @contextlib.asynccontextmanager
    async def _get(
        self, host: Host, path: str, what: str, headers: dict[str, str], method: str = "GET"
    ) -> AsyncIterator[httpx.Response]:
        """A successful answer. Raises `_Transient`, and `ThawError` for final refusals."""
        try:
            await failpoint.hit("registry.request")
            async with self._send(host, method, path, headers) as response:
                status = response.status_code
                if status not in (200, 206):
                    error = _refusal(status, what, host.netloc)
                    if status in (408, 429) or status >= 500:
                        raise _Transient(error, _retry_after(response))
                    raise error
                yield response
        except httpx.TransportError as error:
            found = _transport(error, host.netloc, self._limits)
            if "is unknown" in found.message:
                raise found from error
            raise _Transient(found) from error
        except (httpx.InvalidURL, httpx.HTTPError, httpx.StreamError) as error:
            raise Unavailable(f"{host.netloc} answers badly: {error}") from error

    async def _each_host(self, capability: str, work: Callable[[Host], Awaitable[bytes]]) -> bytes:
        """The first host's answer; a mirror that fails is passed over for the next."""
        usable = [host for host in self._hosts if capability in host.capabilities]
        if not usable:
            raise FailedPrecondition(
                f"no host may {capability} for {self._ref.domain}",
                hint="check the capabilities in its hosts.toml",
            )
        for host in usable[:-1]:
            with contextlib.suppress(ThawError):
                return await work(host)
        return await work(usable[-1])

    async def manifest(self, target: str) -> tuple[bytes, str]:
        """The manifest or index behind a tag or digest: its bytes and content type.

        Raises `NotFound`, `Unauthenticated`, `PermissionDenied`, `ResourceExhausted`,
        `Unavailable`, `DeadlineExceeded`, and `DataLoss` for bytes of another digest.
        """
        content_type = ""

        async def once(host: Host) -> bytes:
            nonlocal content_type
            what = f"manifest {target} of {self._ref.path}"
            path = f"manifests/{target}"
            async with self._get(host, path, what, {"Accept": manifest.ACCEPT}) as response:
                content_type = response.headers.get("Content-Type", "")
                return await _limited(response, self._limits.manifest_bytes, what)

        data = await self._each_host("resolve", lambda host: _retried(lambda: once(host)))
        if target.startswith("sha256:"):
            found = f"sha256:{hashlib.sha256(data).hexdigest()}"
            if found != target:
                raise DataLoss(f"manifest {target} of {self._ref.name} arrived as {found}")
        return data, content_type

    async def small_blob(self, descriptor: Descriptor) -> bytes:
        """A blob that fits in memory: the caller has judged its size."""
        parts: list[bytes] = []

        async def sink(data: bytes) -> None:
            parts.append(data)

        await self.blob(descriptor, sink)
        return b"".join(parts)

    async def blob(self, descriptor: Descriptor, sink: Sink) -> None:
        """Send a blob's bytes to `sink`, each once and in order, resuming where it breaks off.

        Raises what `manifest` does; `DataLoss` when size or digest are not the descriptor's, known
        only after `sink` had the last byte.
        """
        transfer = _Transfer(descriptor, sink)
        path = f"blobs/{descriptor.digest}"
        what = f"blob {descriptor.digest} of {self._ref.path}"

        async def once(host: Host) -> bytes:
            headers = {"Range": f"bytes={transfer.done}-"} if transfer.done else {}
            async with self._get(host, path, what, headers) as response:
                await transfer.receive(response, host.netloc)
            return b""

        async def whole(host: Host) -> bytes:
            for _ in range(MAX_RESUMES):
                before = transfer.done
                try:
                    return await _retried(lambda: once(host), progress=lambda: transfer.done)
                except _Resume:
                    if transfer.done == before:
                        raise
            raise Unavailable(
                f"{host.netloc} broke off {what} more than {MAX_RESUMES} times",
                hint="the network is unreliable: try again",
            )

        if descriptor.size:
            try:
                await self._each_host("pull", whole)
            except _SinkFailed as failure:
                raise failure.error from failure
        transfer.check()


class _SinkFailed(Exception):
    """Who takes the bytes failed: no other host, and no second attempt, can help."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class _Resume(Exception):
    """A transfer broke off after some bytes."""


class _Transfer:
    """One blob on its way, over as many requests as it takes."""

    def __init__(self, descriptor: Descriptor, sink: Sink) -> None:
        self._descriptor = descriptor
        self._sink = sink
        self._hash = hashlib.sha256()
        self.done = 0

    async def receive(self, response: httpx.Response, netloc: str) -> None:
        """Take in one answer. Raises `_Transient` when it ends too early."""
        digest, size = self._descriptor.digest, self._descriptor.size
        skip = self.done
        if response.status_code == 206:
            start = response.headers.get("Content-Range", "").removeprefix("bytes ")
            if not start.startswith(f"{self.done}-"):
                raise DataLoss(f"{netloc} resumed blob {digest} at the wrong place")
            skip = 0
        async for chunk in response.aiter_raw():
            data = chunk
            if skip:
                data, skip = data[skip:], skip - min(skip, len(data))
            if not data:
                continue
            if self.done + len(data) > size:
                raise DataLoss(
                    f"{netloc} sends more than the {size} bytes of blob {digest}",
                    hint="the image is broken, or the registry is: push it again",
                )
            await failpoint.hit("pull.chunk")
            # httpcore reads at most 64 KiB at a time: hashed within 0.2 ms.
            self._hash.update(data)
            self.done += len(data)
            try:
                await self._sink(data)
            except Exception as error:
                raise _SinkFailed(error) from error
        if self.done < size:
            raise _Transient(
                Unavailable(
                    f"{netloc} ended blob {digest} after {self.done} of {size} bytes",
                    hint="the registry or the network is unreliable: try again",
                )
            )

    def check(self) -> None:
        found = f"sha256:{self._hash.hexdigest()}"
        if found != self._descriptor.digest:
            raise DataLoss(
                f"blob {self._descriptor.digest} arrived as {found}",
                hint="the registry's copy is damaged: push the image again",
            )


async def _limited(response: httpx.Response, limit: int, what: str) -> bytes:
    data = bytearray()
    async for chunk in response.aiter_raw(65536):
        data += chunk
        if len(data) > limit:
            raise ResourceExhausted(f"{what} is larger than {limit} bytes")
    return bytes(data)


async def _retried(
    work: Callable[[], Awaitable[bytes]], progress: Callable[[], int] | None = None
) -> bytes:
    """`work`, tried again on transient failures; attempts count anew (`_Resume`) after progress."""
    for attempt in range(1, ATTEMPTS + 1):
        before = progress() if progress else 0
        try:
            return await work()
        except _Transient as failure:
            if progress and progress() > before:
                raise _Resume from failure
            if attempt == ATTEMPTS:
                raise failure.error from failure
            wait = BACKOFF * 2 ** (attempt - 1) * random.uniform(0.8, 1.2)
            await asyncio.sleep(max(wait, failure.wait or 0))
    raise AssertionError("unreachable")
