"""A socket that answers as a Docker daemon's does, for the one call that Thaw makes.

Docker itself is no part of the tests: what is spoken here is its Engine API as documented ("Export
an image", ``GET /images/{name}/get``), with an archive in the form of `docker save`.
"""

from __future__ import annotations

import gzip
import http.server
import io
import json
import socketserver
import tarfile
import threading
from pathlib import Path
from typing import Self
from urllib.parse import unquote

import zstandard

from demo import oci


def plain(blob: oci.Blob) -> bytes:
    """A layer's uncompressed tar."""
    if blob.media_type == oci.LAYER_GZIP:
        return gzip.decompress(blob.data)
    if blob.media_type == oci.LAYER_ZSTD:
        return zstandard.ZstdDecompressor().decompressobj().decompress(blob.data)
    return blob.data


def save(image: oci.Image, *tags: str) -> bytes:
    """What `docker save` writes before version 25: a folder for each layer, a link where a layer
    comes again, the table of contents last."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:

        def add(name: str, data: bytes, link: str = "") -> str:
            info = tarfile.TarInfo(name)
            info.size = 0 if link else len(data)
            info.type, info.linkname = (tarfile.SYMTYPE, link) if link else (tarfile.REGTYPE, "")
            archive.addfile(info, io.BytesIO(data))
            return name

        names: list[str] = []
        seen: dict[bytes, str] = {}
        for number, blob in enumerate(image.layers):
            data = plain(blob)
            link = f"../{seen[data]}" if data in seen else ""
            names.append(add(f"layer{number}/layer.tar", data, link))
            seen.setdefault(data, names[-1])
        config = add(f"{oci.digest(image.config.data)[7:]}.json", image.config.data)
        entry = {"Config": config, "RepoTags": list(tags) or None, "Layers": names}
        add("manifest.json", json.dumps([entry]).encode())
    return out.getvalue()


class DockerSocket:
    """Serves archives by image name; a context manager."""

    def __init__(self, path: Path, archives: dict[str, bytes]) -> None:
        self.path = path
        self.asked: list[str] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                name = unquote(self.path.removeprefix("/images/").removesuffix("/get"))
                found = archives.get(name)
                status = 404 if found is None else 200
                body = found or json.dumps({"message": f"No such image: {name}"}).encode()
                self.send_response(status)
                self.send_header(
                    "Content-Type", "application/x-tar" if found else "application/json"
                )
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def address_string(self) -> str:
                return "client"

            def log_message(self, *_: object) -> None:
                pass

        self._server = socketserver.ThreadingUnixStreamServer(str(path), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, name="docker socket")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join(60)
        self._server.server_close()
