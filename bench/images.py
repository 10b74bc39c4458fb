"""The benchmark's own images, beside the demo's: pause, a big one, a web server, lines to log."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from demo import debs, oci
from demo import images as demo
from e2e.harness.refs import SHELL
from e2e.harness.registry import HOST

PAUSE: Final = f"{HOST}/bench/pause:latest"
BIG: Final = f"{HOST}/bench/toolchains:latest"
WEB: Final = f"{HOST}/bench/web:latest"
LINES: Final = f"{HOST}/bench/lines:latest"
ONE_LAYER: Final = SHELL

LINE_COUNT: Final = 300_000
LINE_BYTES: Final = 100
"""Of a line in /lines, its end included."""

_RECIPE: Final = "1"
"""Part of each image's key; changed with what the functions below write."""

_BIG_LAYERS: Final = (
    ("vim-runtime", "libperl5.36", "perl-modules-5.36", "libicu72"),
    ("gcc-12", "libgcc-12-dev"),
    ("g++-12", "libstdc++-12-dev", "binutils-x86-64-linux-gnu"),
    ("libllvm14",),
    ("golang-1.19-src", "libruby3.1"),
)
"""Packages as toolchains have them, without what they depend on: nothing of them is run."""

_WEB_CONF: Final = """daemon off;
worker_processes 1;
pid /run/nginx.pid;
error_log /dev/stderr error;
events { worker_connections 256; }
http {
    access_log off;
    server {
        listen 80 default_server;
        root /var/www/html;
    }
}
"""


def line(number: int) -> bytes:
    """The line of this number in /lines, without its end."""
    return f"{number:08d} ".encode().ljust(LINE_BYTES - 1, b"x")


def extended(image: oci.Image, *layers: oci.Layer) -> oci.Image:
    """`image` with more layers on top, and the same configuration."""
    document = json.loads(image.config.data)
    blobs = list(image.layers)
    for layer in layers:
        blob, diff_id = layer.blob()
        blobs.append(blob)
        document["rootfs"]["diff_ids"].append(diff_id)
        document["history"].append({"created_by": f"layer {len(blobs) - 1}"})
    config = oci.Blob(image.config.media_type, json.dumps(document, sort_keys=True).encode())
    manifest = json.loads(image.manifest.data)
    manifest["config"] = config.descriptor
    manifest["layers"] = [blob.descriptor for blob in blobs]
    return oci.Image(
        oci.Blob(image.manifest.media_type, json.dumps(manifest, sort_keys=True).encode()),
        config,
        tuple(blobs),
    )


def _files(names: Iterable[str], cache: Path) -> list[Path]:
    return debs.download(debs.named(names), cache)


def _pause(cache: Path) -> oci.Image:
    layer = oci.Layer().merge_usr()
    layer.package(_files(["busybox-static"], cache)[0], only=["usr/bin/"])
    layer.symlink("usr/bin/sleep", "busybox")
    return oci.image([layer], {"Entrypoint": ["/bin/sleep", "2147483647"]})


def _big(cache: Path) -> oci.Image:
    layers = []
    for names in _BIG_LAYERS:
        layer = oci.Layer()
        for file in _files(names, cache):
            layer.package(file)
        layers.append(layer)
    layers.append(oci.Layer().file("etc/toolchains", "the last of seven layers\n"))
    return extended(_demo(cache)["demo/shell"], *layers)


def _web(cache: Path) -> oci.Image:
    settings = oci.Layer().file("etc/nginx/nginx.conf", _WEB_CONF)
    # The load generator for traffic between pods, with the one library that nginx does not bring.
    for file in _files(["wrk", "libluajit-5.1-2"], cache):
        settings.package(file)
    return extended(_demo(cache)["demo/nginx"], settings)


def _lines(cache: Path) -> oci.Image:
    text = b"".join(line(number) + b"\n" for number in range(LINE_COUNT))
    return extended(_demo(cache)["demo/shell"], oci.Layer().file("lines", text))


def _demo(cache: Path) -> dict[str, oci.Image]:
    return demo.built(cache.parent)


_BUILDERS: Final[dict[str, Callable[[Path], oci.Image]]] = {
    PAUSE: _pause,
    BIG: _big,
    WEB: _web,
    LINES: _lines,
}


def repository(reference: str) -> str:
    """The path in the registry: without host and tag."""
    return reference.removeprefix(f"{HOST}/").partition(":")[0]


def built(build: Path, wanted: Iterable[str], say: Callable[[str], None]) -> dict[str, oci.Image]:
    """The images by repository, the demo's among them, made under `build` unless they are there."""
    images = dict(demo.built(build))
    for reference in wanted:
        name = repository(reference)
        folder = build / "images" / name
        key = hashlib.sha256(repr((_RECIPE, name, _BIG_LAYERS, _WEB_CONF)).encode()).hexdigest()
        recipe = folder / "recipe"
        if not recipe.is_file() or recipe.read_text() != key:
            say(f"building the image {name}, once")
            shutil.rmtree(folder, ignore_errors=True)
            oci.save(_BUILDERS[reference](build / "debs"), folder)
            recipe.write_text(key)
        images[name] = oci.load(folder)
    return images
