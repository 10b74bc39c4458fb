"""A private certificate authority, and what it signs."""

from __future__ import annotations

import subprocess
from pathlib import Path

from hostlib.process import ENVIRONMENT


class Authority:
    """Certificates in `folder`: ``NAME.pem`` and ``NAME.key``, the authority's own is ``ca``."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self._folder = folder
        self._name = name
        folder.mkdir(parents=True, exist_ok=True)
        self._openssl(
            "req", "-x509", *self._new(name), "-subj", f"/CN=Test {name}", "-days", "2",
            "-addext", "basicConstraints=critical,CA:TRUE", "-out", str(self.path(f"{name}.pem")),
        )  # fmt: skip

    def path(self, name: str) -> Path:
        return self._folder / name

    @property
    def certificate(self) -> Path:
        return self.path(f"{self._name}.pem")

    def issue(self, name: str) -> tuple[Path, Path]:
        """A certificate for 127.0.0.1, good for servers and clients, and its key."""
        request, extensions = self.path(f"{name}.csr"), self.path(f"{name}.ext")
        certificate, key = self.path(f"{name}.pem"), self.path(f"{name}.key")
        self._openssl("req", *self._new(name), "-subj", f"/CN={name}", "-out", str(request))
        extensions.write_text(
            "subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n"
        )
        self._openssl(
            "x509", "-req", "-in", str(request), "-days", "2", "-CAcreateserial",
            "-CA", str(self.certificate), "-CAkey", str(self.path(f"{self._name}.key")),
            "-extfile", str(extensions), "-out", str(certificate),
        )  # fmt: skip
        return certificate, key

    def _new(self, name: str) -> tuple[str, ...]:
        key = str(self.path(f"{name}.key"))
        return ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", key)

    @staticmethod
    def _openssl(*argv: str) -> None:
        subprocess.run(["openssl", *argv], check=True, capture_output=True, env=dict(ENVIRONMENT))
