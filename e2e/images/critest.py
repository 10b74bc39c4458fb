"""The images that critest asks for, by the names and with the programs that its specs rely on.

Stand-ins, made from Debian packages: critest names images of registries that a test cannot reach.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from demo import images, oci
from hostlib.errors import FailedPrecondition

REGISTRIES: Final = ("registry.k8s.io", "k8s.gcr.io", "gcr.io")
"""The registries of these images; a repository is the same one in all of them."""

_PGREP: Final = """#!/bin/sh
# pgrep NAME: the processes of that name, one a line.
pids=$(pidof "$1") || exit 1
printf '%s\\n' $pids
"""
_HTTPD: Final = "set -x; exec httpd -f -v -p 80 -h /srv"
"""The trace names the program in the container's log, as Apache does."""

_DEFAULT_USER: Final = "default-user:x:1000:1000:default-user:/home/default-user:/bin/sh\n"
_DEFAULT_GROUPS: Final = "default-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n"


def _tools(files: dict[str, Path]) -> oci.Image:
    # Not the static one: its shell runs what busybox has without a look at the file system.
    layer = images.base(busybox=files["busybox"])
    # Names of one file, not links to it: a name that is masked must not mask them all.
    for applet in [*images.APPLETS.split(), "brctl", "httpd"]:
        layer.link(f"usr/bin/{applet}", "usr/bin/busybox")
    # Debian's busybox has neither.
    layer.file("usr/bin/pgrep", _PGREP, 0o755)
    layer.package(files["util-linux"], only=["usr/bin/ipcs"])
    layer.package(files["libc6"], only=["usr/lib/x86_64-linux-gnu/l", "usr/lib64/"])
    layer.file("srv/index.html", images.PAGE)
    return oci.image([layer], {"Env": [images.PATH], "Cmd": ["sh"]})


def _nonewprivs(_: dict[str, Path]) -> oci.Image:
    source = Path(__file__).parent / "nonewprivs" / "main.go"
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "nonewprivs"
        command = ["go", "build", "-trimpath", "-ldflags", "-s -w -buildid=", "-o", str(program)]
        path = f"{os.environ.get('PATH', os.defpath)}:/usr/local/go/bin"
        done = subprocess.run(
            [*command, str(source)],
            env={**os.environ, "CGO_ENABLED": "0", "PATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise FailedPrecondition(f"go cannot build {source}: {done.stderr[-500:]}")
        layer = oci.Layer().file("nonewprivs", program.read_bytes(), 0o4755)
    return oci.image([layer], {"Entrypoint": ["/nonewprivs"]})


_TOOLS: Final = images.Spec("critest/tools", ("busybox", "util-linux", "libc6"), None, _tools)
_NONEWPRIVS: Final = images.Spec("critest/nonewprivs", (), None, _nonewprivs)


def built(build: Path) -> dict[tuple[str, str], oci.Image]:
    """The images by repository and tag, made under `build` unless they are there already."""
    made = images.built(build, (*images.SPECS, _TOOLS, _NONEWPRIVS))
    tools = made[_TOOLS.repository]

    def named(name: str, config: Mapping[str, Any] | None = None, *layers: oci.Layer) -> oci.Image:
        """An image of its own, with its own id."""
        return oci.derived(tools, {"Labels": {"name": name}, **(config or {})}, layers)

    users = {
        "uid": "1002",
        "username": "www-data",
        "uid-group": "1003:1004",
        "username-group": "www-data:1004",
    }
    groups = oci.Layer().file("etc/passwd", f"root:x:0:0:root:/root:/bin/sh\n{_DEFAULT_USER}")
    groups.file("etc/group", f"root:x:0:\n{_DEFAULT_GROUPS}")
    same = named("tags")
    staging = "k8s-staging-cri-tools"
    return {
        ("e2e-test-images/busybox", "1.29-2"): tools,
        ("e2e-test-images/nginx", "1.14-2"): made["demo/nginx"],
        ("e2e-test-images/nonewprivs", "1.3"): made[_NONEWPRIVS.repository],
        ("e2e-test-images/httpd", "2.4.39-4"): named("httpd", {"Cmd": ["sh", "-c", _HTTPD]}),
        ("pause", "3.9"): named("pause", {"Cmd": ["sleep", "1000000"]}),
        (f"{staging}/test-image-tag", "test"): named("tag"),
        (f"{staging}/test-image-tag", "all"): named("all"),
        (f"{staging}/test-image-latest", "latest"): named("latest"),
        **{
            (f"{staging}/test-image-{number}", "latest"): named(str(number)) for number in (1, 2, 3)
        },
        **{(f"{staging}/test-image-tags", tag): same for tag in ("1", "2", "3")},
        **{
            (f"{staging}/test-image-user-{kind}", "latest"): named(kind, {"User": user})
            for kind, user in users.items()
        },
        (f"{staging}/test-image-predefined-group", "latest"): named(
            "predefined-group", {"User": "1000"}, groups
        ),
    }
