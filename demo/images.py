"""The demo's and the tests' images: nginx in five layers, a shell, a Python web application."""

from __future__ import annotations

import hashlib
import inspect
import json
import shutil
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from demo import debs, oci

PAGE: Final = "<h1>Thawed</h1>\n<p>nginx, served from a microVM.</p>\n"
DELETED: Final = "/usr/share/nginx/html/removed.html"
REPLACED: Final = "/var/www/html"

_USERS: Final = """root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin
www-data:x:33:33:www-data:/var/www:/usr/sbin/nologin
app:x:1000:1000:app:/home/app:/bin/sh
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
"""
_GROUP: Final = """root:x:0:
daemon:x:1:
tty:x:5:
www-data:x:33:
staff:x:50:app
app:x:1000:
nogroup:x:65534:
"""
_NGINX_CONF: Final = """daemon off;
user www-data;
worker_processes 1;
pid /run/nginx.pid;
error_log /dev/stderr notice;
events { worker_connections 64; }
http {
    include /etc/nginx/mime.types;
    access_log /dev/stdout;
    server {
        listen 80 default_server;
        root /var/www/html;
        index index.html;
        location /removed { alias /usr/share/nginx/html/removed.html; }
    }
}
"""
_APP: Final = '''"""A small web application: says who it is, and counts its visits."""

import http.server
import json
import os
import platform

visits = 0


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        global visits
        visits += 1
        body = json.dumps(
            {"hello": os.environ.get("GREETING", "world"), "host": platform.node(),
             "python": platform.python_version(), "visits": visits}
        ).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


print("listening on 8080", flush=True)
http.server.ThreadingHTTPServer(("", 8080), Handler).serve_forever()
'''
PATH: Final = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Spec:
    """How one image is made; `build` gets the files of the packages, and of those that they depend
    on, by package name."""

    repository: str
    packages: tuple[str, ...]
    without: tuple[str, ...] | None
    """Dependencies that are left out, with what only they need; None leaves out all."""
    build: Callable[[dict[str, Path]], oci.Image]


def base(*, busybox: Path) -> oci.Layer:
    """A root file system with a shell, users and groups."""
    layer = oci.Layer().merge_usr()
    layer.package(busybox, only=["usr/bin/"])
    for applet in APPLETS.split():
        layer.symlink(f"usr/bin/{applet}", "busybox")
    layer.file("etc/passwd", _USERS).file("etc/group", _GROUP)
    layer.file("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n")
    for path in ("proc", "sys", "dev", "run", "var/log", "home"):
        layer.directory(path)
    layer.symlink("var/run", "/run")
    layer.directory("root", 0o700).directory("tmp", 0o1777).directory("home/app", 0o755, 1000, 1000)
    return layer


APPLETS: Final = """
sh ash cat echo ls mkdir rm rmdir touch chmod chown cp mv dd df du env find grep head tail
hostname id ip kill ln mount umount nc netstat nslookup ping printf ps pwd readlink realpath
route sed seq sleep sort stat sync tar tee test top tr true false tty uname uniq uptime vi wc
wget which whoami xargs yes date sha256sum md5sum od hexdump free pidof awk cut expr dmesg
"""


def _shell(files: dict[str, Path]) -> oci.Image:
    layer = base(busybox=files["busybox-static"])
    return oci.image([layer], {"Env": [PATH], "Cmd": ["sh"], "WorkingDir": "/"})


def _libraries(files: dict[str, Path], names: set[str]) -> oci.Layer:
    layer = oci.Layer()
    for name in sorted(files.keys() - names):
        layer.package(files[name])
    return layer


def _nginx(files: dict[str, Path]) -> oci.Image:
    own = {"busybox-static", "nginx", "nginx-common"}
    server = oci.Layer().package(files["nginx"]).package(files["nginx-common"])
    server.file(DELETED[1:], "a later layer deletes this\n")
    server.file(f"{REPLACED[1:]}/hidden.html", "a later layer replaces this folder\n")
    server.directory("var/lib/nginx", 0o755, 33, 33).directory("var/log/nginx", 0o755)
    settings = oci.Layer(zstd=True).file("etc/nginx/nginx.conf", _NGINX_CONF)
    settings.delete(DELETED[1:])
    content = oci.Layer().replace(REPLACED[1:]).file(f"{REPLACED[1:]}/index.html", PAGE)
    return oci.image(
        [base(busybox=files["busybox-static"]), _libraries(files, own), server, settings, content],
        {
            "Env": [PATH],
            "Cmd": ["nginx"],
            "ExposedPorts": {"80/tcp": {}},
            "StopSignal": "SIGQUIT",
        },
    )


def _webapp(files: dict[str, Path]) -> oci.Image:
    python = {"python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib"}
    runtime = oci.Layer(zstd=True)
    for name in sorted(python):
        runtime.package(files[name])
    runtime.symlink("usr/bin/python3", "python3.11")
    return oci.image(
        [
            base(busybox=files["busybox-static"]),
            _libraries(files, python | {"busybox-static"}),
            runtime,
            oci.Layer().file("srv/app.py", _APP),
        ],
        {
            "Env": [PATH, "PYTHONUNBUFFERED=1"],
            "Entrypoint": ["/usr/bin/python3"],
            "Cmd": ["/srv/app.py"],
            "WorkingDir": "/srv",
            "User": "app",
            "ExposedPorts": {"8080/tcp": {}},
        },
    )


SPECS: Final = (
    Spec("demo/shell", ("busybox-static",), ("libc6",), _shell),
    Spec("demo/nginx", ("nginx", "nginx-common", "busybox-static"), (), _nginx),
    Spec(
        "demo/webapp",
        ("python3.11-minimal", "libpython3.11-stdlib", "busybox-static"),
        ("media-types",),
        _webapp,
    ),
)


def _build(spec: Spec, cache: Path) -> None:
    if spec.without is None:
        packages = debs.named(spec.packages)
    else:
        packages = debs.closure(spec.packages, without=spec.without)
    files = dict(zip([p.name for p in packages], debs.download(packages, cache), strict=True))
    folder = cache.parent / "images" / spec.repository
    shutil.rmtree(folder, ignore_errors=True)
    oci.save(spec.build(files), folder)
    (folder / "recipe").write_text(_key(spec))


def _key(spec: Spec) -> str:
    """What the image comes from: its packages, and the code that makes it."""
    sources = [inspect.getsource(sys.modules[name]) for name in (__name__, spec.build.__module__)]
    text = json.dumps([spec.repository, spec.packages, spec.without, *sources])
    return hashlib.sha256(text.encode()).hexdigest()


def built(build: Path, specs: Iterable[Spec] = SPECS) -> dict[str, oci.Image]:
    """The images by repository, made under `build` unless they are there already."""
    images: dict[str, oci.Image] = {}
    for spec in specs:
        folder = build / "images" / spec.repository
        recipe = folder / "recipe"
        if not recipe.is_file() or recipe.read_text() != _key(spec):
            _build(spec, build / "debs")
        images[spec.repository] = oci.load(folder)
    return images


if __name__ == "__main__":
    for repository, made in built(Path(".build")).items():
        print(repository, made.digest, [len(layer.data) for layer in made.layers])
