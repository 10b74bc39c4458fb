"""Obtains Debian's kernel package and unpacks it, without installing it.

An installed kernel would run initramfs and boot-loader hooks on the host. The newer kernel of the
release's backports is taken where the host's mirror has it, else the release's own. apt runs on a
source list, lists and a cache of its own, so that the host's configuration neither matters nor
changes; it verifies the package by the archive's keyring.
"""

from __future__ import annotations

import platform
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hostlib import process
from hostlib.errors import FailedPrecondition, ThawError, Unavailable

_SOURCES: Final = Path("/etc/apt/sources.list.d/debian.sources")
_SOURCES_LIST: Final = Path("/etc/apt/sources.list")
_KEYRING: Final = "/usr/share/keyrings/debian-archive-keyring.gpg"
_SUITES: Final = ("bookworm-backports", "bookworm")
_DOWNLOAD_TIMEOUT: Final = 900.0


@dataclass(frozen=True)
class Kernel:
    """An unpacked kernel: its version as `uname -r` says it, its image and its modules' folder."""

    version: str
    image: Path
    modules: Path


def debian_architecture() -> str:
    machine = platform.machine()
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)


def mirror(sources: str) -> str | None:
    """The first archive in `sources` (deb822 or one-line form) that is not the security one."""
    found = re.findall(r"^URIs:\s*(\S+)", sources, re.MULTILINE)
    found += re.findall(r"^deb\s+(?:\[[^]]*\]\s+)?(\S+)", sources, re.MULTILINE)
    return next((uri for uri in found if "security" not in uri), None)


def _mirror_of_host() -> str:
    for path in (_SOURCES, _SOURCES_LIST):
        if path.exists() and (uri := mirror(path.read_text())):
            return uri
    raise FailedPrecondition(
        "no Debian archive is configured on this host",
        hint=f"write {_SOURCES}, or pass --kernel-package FILE.deb",
    )


async def _fetch_suite(suite: str, apt: Path, cache: Path) -> Path:
    """Download the newest kernel package of `suite` into `cache`."""
    get = process.find("apt-get", package="apt")
    query = process.find("apt-cache", package="apt")
    for folder in ("lists/partial", "archives/partial"):
        (apt / folder).mkdir(parents=True, exist_ok=True)
    sources = apt / "thaw.sources"
    sources.write_text(
        f"Types: deb\nURIs: {_mirror_of_host()}\nSuites: {suite}\nComponents: main\n"
        f"Signed-By: {_KEYRING}\n"
    )
    options = [
        f"-oDir::Etc::sourcelist={sources}",
        "-oDir::Etc::sourceparts=-",
        f"-oDir::State::Lists={apt}/lists",
        f"-oDir::Cache={apt}",
        "-oAPT::Sandbox::User=root",
        "-oAcquire::Retries=3",
    ]
    await process.run(get, *options, "-qq", "update", timeout=_DOWNLOAD_TIMEOUT)
    meta = f"linux-image-{debian_architecture()}"
    found = await process.run(query, *options, "depends", "--no-recommends", meta, check=False)
    names = re.findall(r"Depends:\s*(linux-image-\S+)", found.stdout.decode())
    if not names:
        raise Unavailable(f"the archive's suite {suite} has no {meta}")
    await process.run(
        get, *options, "-qq", "download", names[0], cwd=str(cache), timeout=_DOWNLOAD_TIMEOUT
    )
    packages = sorted(cache.glob(f"{names[0]}_*.deb"), key=lambda path: path.stat().st_mtime)
    if not packages:
        raise Unavailable(f"apt-get did not download {names[0]}")
    return packages[-1]


async def fetch(build: Path, *, refresh: bool = False) -> Path:
    """The kernel's .deb, from `build`/cache when it is there, else from the host's mirror.

    Raises `Unavailable` when no suite of the archive yields one.
    """
    cache = build / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    if not refresh:
        kept = sorted(cache.glob("linux-image-*.deb"), key=lambda path: path.stat().st_mtime)
        if kept:
            return kept[-1]
    failures: list[str] = []
    for suite in _SUITES:
        try:
            return await _fetch_suite(suite, build / "apt" / suite, cache)
        except FailedPrecondition:
            raise
        except ThawError as error:
            failures.append(f"{suite}: {error.message}")
    raise Unavailable(
        "the guest's kernel could not be downloaded: " + "; ".join(failures),
        hint="check the network to the Debian mirror, or pass --kernel-package FILE.deb",
    )


async def unpack(package: Path, into: Path) -> Kernel:
    """Unpack the package into the folder `into`, replacing it, and index its modules."""
    if into.exists():
        shutil.rmtree(into)
    into.mkdir(parents=True)
    dpkg = process.find("dpkg-deb", package="dpkg")
    depmod = process.find("depmod", package="kmod")
    await process.run(dpkg, "-x", str(package), str(into), timeout=300)
    folders = [*into.glob("lib/modules/*"), *into.glob("usr/lib/modules/*")]
    images = list(into.glob("boot/vmlinuz-*"))
    if len(folders) != 1 or len(images) != 1:
        raise FailedPrecondition(f"{package.name} is not a kernel package")
    version = folders[0].name
    base = folders[0].parent.parent.parent
    await process.run(depmod, "-b", str(base), version, timeout=120)
    return Kernel(version, images[0], folders[0])
