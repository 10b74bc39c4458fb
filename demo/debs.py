"""Debian packages as a source of files: resolved and downloaded by apt, read in Python.

A package is an ar archive with ``control.tar.*`` and ``data.tar.*`` (deb(5)); nothing is installed
and no maintainer script runs.
"""

from __future__ import annotations

import io
import lzma
import re
import subprocess
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import zstandard

from hostlib.errors import DataLoss, FailedPrecondition, NotFound

SCRIPTS_ONLY: Final = frozenset(
    # What maintainer scripts and the boot of a real machine need, and no container does.
    [
        "debconf",
        "dpkg",
        "init-system-helpers",
        "lsb-base",
        "iproute2",
        "adduser",
        "perl-base",
        "perl",
    ]
)

_FIRST_NAME: Final = re.compile(r"\s*([a-z0-9][a-z0-9+.-]*)")


@dataclass(frozen=True)
class Package:
    """A package at the version that apt would install."""

    name: str
    version: str
    depends: tuple[str, ...]

    @property
    def file_name(self) -> str:
        return f"{self.name}_{self.version.replace(':', '%3a')}"


def _apt(*argv: str, cwd: Path | None = None) -> str:
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise FailedPrecondition(
            f"{' '.join(argv[:3])} failed: {done.stderr.strip()[-500:]}",
            hint="run apt-get update, and see that the mirrors in /etc/apt answer",
        )
    return done.stdout


def _candidates(names: Iterable[str]) -> dict[str, Package]:
    names = sorted(names)
    if not names:
        return {}
    text = _apt("apt-cache", "show", "--no-all-versions", *names)
    found: dict[str, Package] = {}
    for stanza in text.split("\n\n"):
        fields = dict(re.findall(r"^([A-Za-z-]+): (.*)$", stanza, re.MULTILINE))
        if "Package" not in fields:
            continue
        relations = ",".join(filter(None, (fields.get("Depends"), fields.get("Pre-Depends"))))
        depends = tuple(
            match[1] for part in relations.split(",") if (match := _FIRST_NAME.match(part))
        )
        found.setdefault(fields["Package"], Package(fields["Package"], fields["Version"], depends))
    return found


def named(names: Iterable[str]) -> list[Package]:
    """The packages alone, in the order given. Raises `NotFound` for what apt does not know."""
    names = list(names)
    found = _candidates(names)
    if missing := set(names) - found.keys():
        raise NotFound(f"apt knows no package {', '.join(sorted(missing))}")
    return [found[name] for name in names]


def closure(names: Iterable[str], *, without: Iterable[str] = ()) -> list[Package]:
    """The packages named and all that they depend on (first alternatives), sorted by name.

    What `without` and `SCRIPTS_ONLY` name is left out, with what only they need. Raises `NotFound`
    for a name that apt does not know.
    """
    left_out = SCRIPTS_ONLY | frozenset(without)
    known: dict[str, Package] = {}
    wanted = set(names) - left_out
    while wanted:
        found = _candidates(wanted)
        if missing := wanted - found.keys():
            raise NotFound(f"apt knows no package {', '.join(sorted(missing))}")
        known |= found
        wanted = {name for p in found.values() for name in p.depends} - left_out - known.keys()
    return [known[name] for name in sorted(known)]


def download(packages: Iterable[Package], cache: Path) -> list[Path]:
    """The packages' files, in their order, fetched into `cache` unless they are there."""
    cache.mkdir(parents=True, exist_ok=True)
    packages = list(packages)
    missing = [p for p in packages if not list(cache.glob(f"{p.file_name}_*.deb"))]
    if missing:
        pins = [f"{p.name}={p.version}" for p in missing]
        _apt("apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", *pins, cwd=cache)
    files = []
    for package in packages:
        match = sorted(cache.glob(f"{package.file_name}_*.deb"))
        if not match:
            raise NotFound(f"apt-get did not download {package.name} {package.version}")
        files.append(match[0])
    return files


def _members(deb: bytes) -> Iterator[tuple[str, bytes]]:
    if not deb.startswith(b"!<arch>\n"):
        raise DataLoss("not a Debian package: the ar magic is missing")
    offset = 8
    while offset + 60 <= len(deb):
        name = deb[offset : offset + 16].decode("ascii").rstrip().rstrip("/")
        size = int(deb[offset + 48 : offset + 58])
        yield name, deb[offset + 60 : offset + 60 + size]
        offset += 60 + size + size % 2


def data(deb: Path) -> tarfile.TarFile:
    """The files of a package, as an open tar archive."""
    for name, body in _members(deb.read_bytes()):
        if name == "data.tar.xz":
            return tarfile.open(fileobj=io.BytesIO(lzma.decompress(body)))
        if name == "data.tar.zst":
            plain = zstandard.ZstdDecompressor().decompressobj().decompress(body)
            return tarfile.open(fileobj=io.BytesIO(plain))
        if name == "data.tar.gz":
            return tarfile.open(fileobj=io.BytesIO(body), mode="r:gz")
    raise DataLoss(f"{deb.name} has no data archive")
