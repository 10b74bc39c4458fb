"""TLS of the streaming server: certificates that are read again when their files change."""

from __future__ import annotations

import logging
import os
import ssl
from dataclasses import dataclass
from pathlib import Path

from hostlib.errors import FailedPrecondition
from hostlib.tasks import in_thread

log = logging.getLogger(__name__)

_Stamp = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class CertificateFiles:
    """Paths of PEM files; with `client_ca` clients must show a certificate that it has signed."""

    cert: Path
    key: Path
    client_ca: Path | None = None

    def stamp(self) -> _Stamp:
        """What changes when a file is replaced or written. Raises `OSError`."""
        found = [os.stat(path) for path in (self.cert, self.key, self.client_ca) if path]
        return tuple((each.st_ino, each.st_mtime_ns, each.st_size) for each in found)

    def load(self) -> ssl.SSLContext:
        """Raises `OSError`, `ssl.SSLError` among them."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self.cert, self.key, password=_no_password)
        if self.client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self.client_ca)
        context.set_alpn_protocols(["http/1.1"])
        return context


def _no_password() -> str:
    # Without it OpenSSL asks on the terminal.
    raise ssl.SSLError("the key is encrypted")


class Certificates:
    """The context for each handshake: of the newest files that were good."""

    def __init__(self, files: CertificateFiles) -> None:
        self._files = files
        self._stamp: _Stamp | None = None
        self._context: ssl.SSLContext | None = None

    async def context(self) -> ssl.SSLContext:
        """Raises `FailedPrecondition` when there never were good files."""
        try:
            stamp = self._files.stamp()
            if stamp != self._stamp:
                # A file that is wrong is reported once, not for each client.
                self._stamp = stamp
                self._context = await in_thread(self._files.load)
                log.info("the streaming server uses the certificate in %s", self._files.cert)
        except OSError as error:
            problem = f"the streaming server's certificate cannot be used: {error}"
            if self._context is None:
                raise FailedPrecondition(
                    problem,
                    hint="see streaming.tls_cert, streaming.tls_key and streaming.tls_client_ca",
                ) from error
            log.error("%s; the former one stays in use", problem)
        assert self._context is not None
        return self._context
