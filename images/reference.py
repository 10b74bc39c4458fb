"""Image references, by the grammar of ``github.com/distribution/reference``.

::

    reference := name [ ":" tag ] [ "@" digest ]
    name      := [ domain "/" ] path-component [ "/" path-component ]*
    domain    := (domain-name | "[" IPv6 "]") [ ":" port ]
    tag       := [A-Za-z0-9_][A-Za-z0-9_.-]{0,127}
    digest    := algorithm ":" hex

A first component is a domain only if it holds a dot or a colon, is ``localhost``, or has capitals;
without one, ``docker.io`` is meant, and there a single component means ``library/`` and it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from hostlib.errors import InvalidArgument, Unimplemented

MAX_NAME: Final = 255
"""Bytes of domain and path together (``NameTotalLengthMax``)."""
MAX_REFERENCE: Final = 1024
DEFAULT_DOMAIN: Final = "docker.io"
DEFAULT_TAG: Final = "latest"

_DOMAIN_COMPONENT: Final = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN: Final = re.compile(
    rf"(?:{_DOMAIN_COMPONENT}(?:\.{_DOMAIN_COMPONENT})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?"
)
_PATH_COMPONENT: Final = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH: Final = re.compile(rf"{_PATH_COMPONENT}(?:/{_PATH_COMPONENT})*")
_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST: Final = re.compile(r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}")
_SHA256: Final = re.compile(r"sha256:[0-9a-f]{64}")
_BARE_ID: Final = re.compile(r"[0-9a-f]{64}")

_HINT: Final = "write [HOST[:PORT]/]PATH[:TAG][@sha256:HEX], path in lower case"


def is_digest(text: str) -> bool:
    """Whether `text` is a sha256 digest, the only algorithm that Thaw verifies."""
    return _SHA256.fullmatch(text) is not None


@dataclass(frozen=True)
class Reference:
    """A normalised reference: domain and path are always there, tag and digest where given."""

    domain: str
    path: str
    tag: str | None = None
    digest: str | None = None

    @property
    def name(self) -> str:
        """Domain and path."""
        return f"{self.domain}/{self.path}"

    @property
    def target(self) -> str:
        """What to ask the registry for: the digest where there is one, else the tag."""
        return self.digest or self.tag or DEFAULT_TAG

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.name}{tag}{digest}"


def _bad(text: str, why: str) -> InvalidArgument:
    return InvalidArgument(f"bad image reference {text[:300]!r}: {why}", hint=_HINT)


def _split_domain(name: str) -> tuple[str, str]:
    first, slash, rest = name.partition("/")
    if not slash or not (
        "." in first or ":" in first or first == "localhost" or first.lower() != first
    ):
        return DEFAULT_DOMAIN, name
    return ("docker.io" if first == "index.docker.io" else first), rest


def parse(text: str) -> Reference:
    """The normalised reference that `text` means; with neither tag nor digest, the tag ``latest``.

    Raises `InvalidArgument`; `Unimplemented` for digests other than sha256.
    """
    if not text:
        raise _bad(text, "it is empty")
    if len(text) > MAX_REFERENCE:
        raise _bad(text, f"longer than {MAX_REFERENCE} characters")
    if _BARE_ID.fullmatch(text):
        raise _bad(text, "64 hexadecimal digits are an image's id, not a name")
    rest, at, digest = text.partition("@")
    if at and not _DIGEST.fullmatch(digest):
        raise _bad(text, "the digest is malformed")
    if at and not is_digest(digest):
        raise Unimplemented(
            f"digest {digest[:200]} is not sha256", hint="name the image by a sha256 digest"
        )
    name, tag = rest, None
    colon = rest.rfind(":")
    if colon > rest.rfind("/"):
        name, tag = rest[:colon], rest[colon + 1 :]
        if not _TAG.fullmatch(tag):
            raise _bad(text, "the tag is malformed")
    domain, path = _split_domain(name)
    if domain == DEFAULT_DOMAIN and path and "/" not in path:
        path = f"library/{path}"
    if not _DOMAIN.fullmatch(domain):
        raise _bad(text, "the host is malformed")
    if not _PATH.fullmatch(path):
        lower = " (capitals are not allowed)" if path.lower() != path else ""
        raise _bad(text, f"the path is malformed{lower}")
    if len(domain) + 1 + len(path) > MAX_NAME:
        raise _bad(text, f"the name is longer than {MAX_NAME} characters")
    if tag is None and not at:
        tag = DEFAULT_TAG
    return Reference(domain, path, tag, digest if at else None)
