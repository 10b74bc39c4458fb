"""The configuration's section of exec, attach and port-forward."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Final

from hostlib.config import BadValue, setting

_FILE: Final = "(/.*)?"
_FILE_HINT: Final = "an absolute path, or nothing"


@dataclass(frozen=True)
class Streaming:
    address: str = setting(
        "127.0.0.1",
        "Where the server of exec, attach and port-forward listens: an address of this host.",
    )
    port: int = setting(0, "Its port. 0: one that is free.", minimum=0, maximum=65535)
    tls_cert: str = setting(
        "",
        "The server's certificate, with its chain, as PEM. Empty: no TLS. Certificate, key and\n"
        "authority are read again when a file changes; what is wrong then is not used.",
        pattern=_FILE,
        pattern_hint=_FILE_HINT,
    )
    tls_key: str = setting("", "Its key, as PEM.", pattern=_FILE, pattern_hint=_FILE_HINT)
    tls_client_ca: str = setting(
        "",
        "The authority whose certificates clients must show, as PEM. Empty: none is asked for.",
        pattern=_FILE,
        pattern_hint=_FILE_HINT,
    )
    allow_plain_remote: bool = setting(
        False,
        "Whether to serve without TLS on an address that other machines reach. Who listens on the\n"
        "way reads all that goes through terminals, and can use a URL before its owner.",
    )
    idle_timeout_seconds: float = setting(
        4 * 3600.0, "A connection on which nothing moves for so long is closed.", minimum=1.0
    )
    creation_timeout_seconds: float = setting(
        30.0,
        "How long a client may take for its request, and then to open its streams.",
        minimum=0.1,
    )
    max_connections: int = setting(
        1024, "How many clients are served at a time.", minimum=1, maximum=100_000
    )

    def validate(self) -> None:
        try:
            address = ipaddress.ip_address(self.address)
        except ValueError as error:
            raise BadValue("address", str(error), "write an address, not a name") from error
        if bool(self.tls_cert) != bool(self.tls_key):
            given, missing = "tls_cert", "tls_key"
            if self.tls_key:
                given, missing = missing, given
            raise BadValue(given, f"there is no {missing} with it", "set both, or none")
        if self.tls_client_ca and not self.tls_cert:
            raise BadValue("tls_client_ca", "there is no TLS without tls_cert", "set tls_cert, too")
        if not (address.is_loopback or self.tls_cert or self.allow_plain_remote):
            raise BadValue(
                "address",
                f"{self.address} would be served without TLS to other machines",
                "set tls_cert and tls_key, or allow_plain_remote = true",
            )
