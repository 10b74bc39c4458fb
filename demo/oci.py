"""Reproducible OCI images, built file by file: same inputs, same bytes, same digests."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import zstandard

from demo import debs
from hostlib.errors import Unavailable

MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
CONFIG: Final = "application/vnd.oci.image.config.v1+json"
LAYER_GZIP: Final = "application/vnd.oci.image.layer.v1.tar+gzip"
LAYER_ZSTD: Final = "application/vnd.oci.image.layer.v1.tar+zstd"

_EPOCH: Final = 1_700_000_000
_MERGED: Final = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_SKIPPED: Final = ("usr/share/doc/", "usr/share/man/", "usr/share/locale/", "usr/share/lintian/")


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


@dataclass(frozen=True)
class Blob:
    """Bytes with the media type under which a manifest names them."""

    media_type: str
    data: bytes

    @property
    def descriptor(self) -> dict[str, Any]:
        return {
            "mediaType": self.media_type,
            "digest": digest(self.data),
            "size": len(self.data),
        }


@dataclass(frozen=True)
class Image:
    """A whole image: its manifest, config and layers."""

    manifest: Blob
    config: Blob
    layers: tuple[Blob, ...]

    @property
    def digest(self) -> str:
        return digest(self.manifest.data)


def _merged(path: str) -> str:
    """The place of a package's path on a system whose /bin, /lib are links into /usr."""
    first, slash, rest = path.partition("/")
    return f"usr/{first}{slash}{rest}" if first in _MERGED else path


@dataclass
class Layer:
    """One layer under construction. Paths are relative to the root, without a leading slash."""

    zstd: bool = False
    _entries: dict[str, tuple[tarfile.TarInfo, bytes]] = field(default_factory=dict)

    def _add(self, info: tarfile.TarInfo, data: bytes = b"") -> None:
        info.size = len(data)
        self._entries[info.name] = (info, data)

    def _info(
        self, path: str, kind: bytes, mode: int, uid: int = 0, gid: int = 0
    ) -> tarfile.TarInfo:
        for parent in [str(p) for p in Path(path).parents if str(p) != "."]:
            if parent not in self._entries:
                self.directory(parent)
        info = tarfile.TarInfo(path)
        info.type, info.mode, info.mtime = kind, mode, _EPOCH
        info.uid, info.gid = uid, gid
        return info

    def directory(self, path: str, mode: int = 0o755, uid: int = 0, gid: int = 0) -> Layer:
        self._add(self._info(path, tarfile.DIRTYPE, mode, uid, gid))
        return self

    def file(self, path: str, data: bytes | str, mode: int = 0o644) -> Layer:
        raw = data.encode() if isinstance(data, str) else data
        self._add(self._info(path, tarfile.REGTYPE, mode), raw)
        return self

    def symlink(self, path: str, target: str) -> Layer:
        info = self._info(path, tarfile.SYMTYPE, 0o777)
        info.linkname = target
        self._add(info)
        return self

    def link(self, path: str, target: str) -> Layer:
        """Another name of a file of this layer."""
        info = self._info(path, tarfile.LNKTYPE, 0o644)
        info.linkname = target
        self._add(info)
        return self

    def delete(self, path: str) -> Layer:
        """Hide `path` of a lower layer: a whiteout of the OCI image specification."""
        at = Path(path)
        return self.file(str(at.parent / f".wh.{at.name}"), b"")

    def replace(self, path: str) -> Layer:
        """Hide all that lower layers have in the directory `path`: an opaque whiteout."""
        return self.file(f"{path}/.wh..wh..opq", b"")

    def merge_usr(self) -> Layer:
        """The links of a merged /usr."""
        for name in ("bin", "sbin", "lib", "lib64"):
            self.directory(f"usr/{name}")
            self.symlink(name, f"usr/{name}")
        return self

    def package(self, deb: Path, *, only: Iterable[str] = ()) -> Layer:
        """All files of a Debian package (or those below `only`), less documentation."""
        wanted = tuple(only)
        with debs.data(deb) as archive:
            for member in archive:
                path = _merged(member.name.removeprefix("./").strip("/"))
                if not path or path in _MERGED or path.startswith(_SKIPPED):
                    continue
                if wanted and not member.isdir() and not path.startswith(wanted):
                    continue
                data = b""
                if member.isreg():
                    source = archive.extractfile(member)
                    data = source.read() if source else b""
                info = self._info(path, member.type, member.mode, member.uid, member.gid)
                info.mtime = member.mtime
                info.linkname = member.linkname
                if member.islnk():
                    info.linkname = _merged(member.linkname.removeprefix("./"))
                self._add(info, data)
        return self

    def tar(self) -> bytes:
        """The layer as an uncompressed archive, sorted by path."""
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
            links_last = sorted(self._entries.values(), key=lambda e: (e[0].islnk(), e[0].name))
            for info, data in links_last:
                info.uname = info.gname = ""
                archive.addfile(info, io.BytesIO(data) if info.isreg() else None)
        return out.getvalue()

    def blob(self) -> tuple[Blob, str]:
        """The compressed layer, and its diff_id."""
        plain = self.tar()
        if self.zstd:
            return Blob(LAYER_ZSTD, zstandard.ZstdCompressor(level=3).compress(plain)), digest(
                plain
            )
        return Blob(LAYER_GZIP, gzip.compress(plain, 4, mtime=0)), digest(plain)


def image(
    layers: Iterable[Layer], config: Mapping[str, Any], *, architecture: str = "amd64"
) -> Image:
    """An image of `layers`, lowest first; `config` is the config's inner ``config`` object."""
    made = [layer.blob() for layer in layers]
    return _assembled([b for b, _ in made], [diff_id for _, diff_id in made], config, architecture)


def derived(base: Image, config: Mapping[str, Any], layers: Iterable[Layer] = ()) -> Image:
    """An image of the layers of `base` and more of its own; its `config` adds to, and replaces
    fields of, the other's."""
    document = json.loads(base.config.data)
    made = [layer.blob() for layer in layers]
    return _assembled(
        [*base.layers, *(blob for blob, _ in made)],
        [*document["rootfs"]["diff_ids"], *(diff_id for _, diff_id in made)],
        {**document["config"], **config},
        document["architecture"],
    )


def _assembled(
    blobs: list[Blob], diff_ids: list[str], config: Mapping[str, Any], architecture: str
) -> Image:
    document = {
        "architecture": architecture,
        "os": "linux",
        "created": "2023-11-14T22:13:20Z",
        "config": dict(config),
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": [{"created_by": f"layer {n}"} for n in range(len(blobs))],
    }
    config_blob = Blob(CONFIG, json.dumps(document, sort_keys=True).encode())
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": config_blob.descriptor,
        "layers": [blob.descriptor for blob in blobs],
    }
    return Image(
        Blob(MANIFEST, json.dumps(manifest, sort_keys=True).encode()), config_blob, tuple(blobs)
    )


def save(built: Image, folder: Path) -> None:
    """Write the image as an OCI image layout."""
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    for blob in (*built.layers, built.config, built.manifest):
        (blobs / digest(blob.data).removeprefix("sha256:")).write_bytes(blob.data)
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    index = {"schemaVersion": 2, "manifests": [built.manifest.descriptor]}
    # Last, since it makes the folder an image.
    (folder / "index.json").write_text(json.dumps(index))


def load(folder: Path) -> Image:
    """Read what `save` wrote."""

    def read(descriptor: Mapping[str, Any]) -> Blob:
        name = str(descriptor["digest"]).removeprefix("sha256:")
        return Blob(descriptor["mediaType"], (folder / "blobs" / "sha256" / name).read_bytes())

    manifest = read(json.loads((folder / "index.json").read_text())["manifests"][0])
    document = json.loads(manifest.data)
    return Image(manifest, read(document["config"]), tuple(map(read, document["layers"])))


def push(built: Image, registry: str, repository: str, tag: str, **options: Any) -> str:
    """Upload the image by the registry's HTTP API (distribution specification); its digest.

    `registry` is a base URL, `options` are httpx's. Raises `Unavailable` when the registry refuses
    something.
    """
    with httpx.Client(base_url=registry, timeout=60, trust_env=False, **options) as client:
        for blob in (*built.layers, built.config):
            name = digest(blob.data)
            if client.head(f"/v2/{repository}/blobs/{name}").status_code == 200:
                continue
            begun = client.post(f"/v2/{repository}/blobs/uploads/")
            place = httpx.URL(begun.headers.get("location", "")).copy_merge_params({"digest": name})
            done = client.put(place, content=blob.data)
            if done.status_code != 201:
                raise Unavailable(f"the registry refused a blob: {done.status_code} {done.text}")
        done = client.put(
            f"/v2/{repository}/manifests/{tag}",
            content=built.manifest.data,
            headers={"content-type": built.manifest.media_type},
        )
        if done.status_code != 201:
            raise Unavailable(f"the registry refused the manifest: {done.status_code} {done.text}")
    return built.digest
