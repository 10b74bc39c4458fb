"""Images and layers made in memory, for the tests of this package."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from dataclasses import dataclass, field
from typing import Any

import zstandard

from images.manifest import architecture

OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"


def sha(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@dataclass
class Entry:
    """One member of a test layer."""

    name: str
    data: bytes = b""
    type: bytes = tarfile.REGTYPE
    link: str = ""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: float = 0
    device: tuple[int, int] = (0, 0)
    xattrs: dict[str, str] = field(default_factory=dict)


def folder(name: str, **more: Any) -> Entry:
    return Entry(name, type=tarfile.DIRTYPE, **{"mode": 0o755, **more})


def hard_link(name: str, target: str) -> Entry:
    return Entry(name, type=tarfile.LNKTYPE, link=target)


def symlink(name: str, target: str) -> Entry:
    return Entry(name, type=tarfile.SYMTYPE, link=target, mode=0o777)


def tar(*entries: Entry, kind: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(
        fileobj=out, mode="w", format=kind, encoding="utf-8", errors="surrogateescape"
    ) as archive:
        for entry in entries:
            info = tarfile.TarInfo(entry.name)
            info.type, info.linkname, info.mode = entry.type, entry.link, entry.mode
            info.uid, info.gid, info.mtime = entry.uid, entry.gid, entry.mtime
            info.devmajor, info.devminor = entry.device
            info.size = len(entry.data)
            info.pax_headers = {f"SCHILY.xattr.{k}": v for k, v in entry.xattrs.items()}
            archive.addfile(info, io.BytesIO(entry.data))
    return out.getvalue()


@dataclass
class Built:
    """An image as blobs by digest, and its manifest."""

    blobs: dict[str, bytes]
    manifest: bytes
    media_type: str = OCI_MANIFEST

    @property
    def digest(self) -> str:
        return sha(self.manifest)

    @property
    def config_digest(self) -> str:
        return str(json.loads(self.manifest)["config"]["digest"])

    @property
    def layers(self) -> list[str]:
        return [item["digest"] for item in json.loads(self.manifest)["layers"]]


def compress(data: bytes, form: str) -> bytes:
    if form == "+gzip":
        return gzip.compress(data, mtime=0)
    return zstandard.compress(data) if form == "+zstd" else data


def image(
    *layers: bytes,
    form: str = "+gzip",
    config: dict[str, Any] | None = None,
    diff_ids: list[str] | None = None,
    raw: list[bytes] | None = None,
) -> Built:
    """An image of uncompressed tars; `raw` replaces the blobs that stand for them."""
    blobs = raw if raw is not None else [compress(layer, form) for layer in layers]
    body = json.dumps(
        {
            "architecture": architecture(),
            "os": "linux",
            "config": {"Cmd": ["/bin/sh"], "Env": ["A=b"], **(config or {})},
            "rootfs": {"type": "layers", "diff_ids": diff_ids or [sha(item) for item in layers]},
        }
    ).encode()
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": OCI_CONFIG, "digest": sha(body), "size": len(body)},
            "layers": [
                {"mediaType": OCI_LAYER + form, "digest": sha(item), "size": len(item)}
                for item in blobs
            ],
        }
    ).encode()
    return Built({sha(body): body, **{sha(item): item for item in blobs}}, manifest)


def index(*entries: tuple[str, Built]) -> bytes:
    return json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": OCI_INDEX,
            "manifests": [
                {
                    "mediaType": built.media_type,
                    "digest": built.digest,
                    "size": len(built.manifest),
                    "platform": {"os": "linux", "architecture": arch},
                }
                for arch, built in entries
            ],
        }
    ).encode()
