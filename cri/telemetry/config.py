"""The configuration's section of the daemon's own metrics."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from hostlib.config import BadValue, setting


@dataclass(frozen=True)
class Metrics:
    listen: str = setting(
        "",
        "Where the daemon's own metrics are served for Prometheus, at /metrics: ADDRESS:PORT, for\n"
        'example "127.0.0.1:9464" or "[::1]:9464". They name no pod. There is neither TLS nor a\n'
        "password. Empty: nowhere.",
    )

    def validate(self) -> None:
        if not self.listen:
            return
        try:
            split(self.listen)
        except ValueError as error:
            raise BadValue("listen", str(error), 'write "127.0.0.1:9464", or nothing') from error


def split(listen: str) -> tuple[str, int]:
    """The address and the port. Raises ValueError."""
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([0-9.]+)):([0-9]{1,5})", listen)
    if match is None:
        raise ValueError(f"{listen!r} is no ADDRESS:PORT")
    port = int(match[3])
    if not 1 <= port <= 65535:
        raise ValueError(f"port {port} is out of range")
    return str(ipaddress.ip_address(match[1] or match[2])), port
