"""The client of registries: OCI distribution specification over httpx.

Transient failures (429, 5xx, a lost connection) are tried again with back-off; nothing else is.
There is no overall time-out: a transfer may take hours, but not stall. Every byte is checked
against the digest it was asked by.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Final, Self

import httpx

from hostlib import failpoint
from hostlib.errors import DataLoss, FailedPrecondition, ThawError, Unavailable
from hostlib.tasks import in_thread
from images import hosts, manifest
from images.answers import Transient, limited, refusal, retry_after, transport
from images.auth import MAX_TOKEN_ANSWER, Tokens, applies
from images.hosts import Host
from images.manifest import Descriptor
from images.model import Auth, Limits
from images.reference import Reference
from images.source import Sink
from images.transfer import Resume, SinkFailed, Transfer, retried

log = logging.getLogger(__name__)

MAX_RESUMES: Final = 50
"""How often one blob may break off, though each time some bytes came."""
MAX_REDIRECTS: Final = 5
CONNECT_TIMEOUT: Final = 15.0
"""Seconds, where hosts.toml gives no ``dial_timeout``."""


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def _netloc(error: httpx.TransportError) -> str:
    """Whom the request that failed was for: a redirect's target, or a token server, as well."""
    try:
        return error.request.url.netloc.decode("ascii")
    except RuntimeError:
        return ""


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
        self._clients: dict[tuple[Host, bool], httpx.AsyncClient] = {}
        self._hosts: tuple[Host, ...] = ()

    async def __aenter__(self) -> Self:
        self._hosts = await in_thread(hosts.find, self._config_path, self._ref.domain)
        return self

    async def __aexit__(self, *_: object) -> None:
        for client in self._clients.values():
            await client.aclose()

    async def _client(self, host: Host, url: httpx.URL) -> httpx.AsyncClient:
        """The client for `url`, which `host` may have named.

        Another host than itself is not shown the client certificate, and is verified though `host`
        need not be: hosts.toml says both of the one host that it names. The authorities that it
        trusts are for what it leads to as well.
        """
        if _origin(url) != _origin(httpx.URL(host.base)):
            host = replace(host, client=(), skip_verify=False)
        local = hosts.is_local(url.netloc.decode("ascii"))
        if (host, local) not in self._clients:
            verify = await in_thread(host.tls)
            connect = CONNECT_TIMEOUT if host.dial_timeout is None else host.dial_timeout
            self._clients[host, local] = httpx.AsyncClient(
                verify=verify,
                follow_redirects=False,
                timeout=httpx.Timeout(self._limits.stall_timeout, connect=connect),
                headers={"User-Agent": "thaw", "Accept-Encoding": "identity"},
                # What is on this machine is never behind the node's proxy.
                trust_env=not local,
            )
        return self._clients[host, local]

    @property
    def _scope(self) -> str:
        return f"repository:{self._ref.path}:pull"

    @contextlib.asynccontextmanager
    async def _send(
        self, host: Host, method: str, path: str, headers: dict[str, str]
    ) -> AsyncIterator[httpx.Response]:
        """One request, challenges answered and redirects followed. Raises httpx's errors."""
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
            client = await self._client(host, url)
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
            await self._tokens.answer(
                header,
                host.base,
                self._scope,
                trusted=applies(self._auth, host, self._ref.domain),
                fetch=lambda request: self._token(host, request),
            )
        raise Unavailable(f"{host.netloc} redirects more than {MAX_REDIRECTS} times")

    async def _token(self, host: Host, request: httpx.Request) -> tuple[int, bytes]:
        client = await self._client(host, request.url)
        request.extensions["timeout"] = client.timeout.as_dict()
        response = await client.send(request, stream=True)
        try:
            if response.status_code == 429 or response.status_code >= 500:
                raise Transient(
                    refusal(response.status_code, "a token", request.url.host),
                    retry_after(response),
                )
            return response.status_code, await limited(response, MAX_TOKEN_ANSWER, "a token")
        finally:
            await response.aclose()

    @contextlib.asynccontextmanager
    async def _get(
        self, host: Host, path: str, what: str, headers: dict[str, str], method: str = "GET"
    ) -> AsyncIterator[httpx.Response]:
        """A successful answer. Raises `Transient`, and `ThawError` for final refusals."""
        try:
            await failpoint.hit("registry.request")
            async with self._send(host, method, path, headers) as response:
                status = response.status_code
                if status not in (200, 206):
                    error = refusal(status, what, host.netloc)
                    if status in (408, 429) or status >= 500:
                        raise Transient(error, retry_after(response))
                    raise error
                yield response
        except httpx.TransportError as error:
            found = transport(error, _netloc(error) or host.netloc, self._limits)
            if "is unknown" in found.message:
                raise found from error
            raise Transient(found) from error
        except ssl.SSLError as error:
            # With TLS 1.3 a client's certificate is refused only after the handshake, which httpx
            # does not expect.
            raise Unavailable(
                f"registry {host.netloc} ended the TLS connection: {error.reason or error}",
                hint="check client in its hosts.toml: the registry may want another certificate",
            ) from error
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
            try:
                return await work(host)
            except ThawError as error:
                log.warning("%s is passed over for %s: %s", host.netloc, self._ref.domain, error)
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
                return await limited(response, self._limits.manifest_bytes, what)

        # What a tag means is to be trusted; what has a digest can come from anywhere.
        capability = "pull" if target.startswith("sha256:") else "resolve"
        data = await self._each_host(capability, lambda host: retried(lambda: once(host)))
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
        transfer = Transfer(descriptor, sink)
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
                    return await retried(lambda: once(host), progress=lambda: transfer.done)
                except Resume:
                    if transfer.done == before:
                        raise
            raise Unavailable(
                f"{host.netloc} broke off {what} more than {MAX_RESUMES} times",
                hint="the network is unreliable: try again",
            )

        if descriptor.size:
            try:
                await self._each_host("pull", whole)
            except SinkFailed as failure:
                raise failure.error from failure
        transfer.check()
