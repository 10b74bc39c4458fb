"""Names of registry servers, as credentials carry them."""

from __future__ import annotations

from urllib.parse import urlsplit

from hostlib.errors import InvalidArgument


def server_of(address: str) -> str:
    """Host and port of a server address: ``host[:port]`` or a URL, a path and https's own port
    left out. Raises `InvalidArgument`."""
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if host is None or any(c.isspace() for c in address):
        raise InvalidArgument(
            "the registry credentials' server address is malformed",
            hint="write HOST[:PORT], or its URL",
        )
    name = f"[{host}]" if ":" in host else host
    return f"{name}:{port}" if port is not None and port != 443 else name
