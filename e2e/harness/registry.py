"""Debian's docker-registry on loopback, with its own configuration and storage."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import socket
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import httpx

from demo import oci
from e2e.harness.waiting import until
from hostlib.errors import FailedPrecondition
from hostlib.process import ENVIRONMENT

HOST = "registry.test"
"""The name under which images are pulled; hosts.toml leads to the loopback port."""


PORTS = range(10_000, 32_768)
"""Below those that Linux gives to whoever connects (net.ipv4.ip_local_port_range)."""


def free_port() -> int:
    """A TCP and UDP port that nothing on this host used a moment ago, and most likely nobody takes
    meanwhile."""
    while True:
        port = random.choice(PORTS)
        with socket.socket() as stream, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
            try:
                for probe in (stream, datagrams):
                    probe.bind(("", port))
            except OSError:
                continue
        return port


class Registry:
    """A registry process; a context manager."""

    def __init__(
        self,
        folder: Path,
        *,
        settings: Mapping[str, Any] | None = None,
        scheme: str = "http",
        client: Mapping[str, Any] | None = None,
        host: str = HOST,
    ) -> None:
        """`settings` are sections of its own configuration; `client` is what an httpx client needs
        to be let in; `host` is the name under which its images are pulled."""
        self.host = host
        self.folder = folder
        self.settings = dict(settings or {})
        self.scheme = scheme
        self.client = dict(client or {})
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    def argv(self) -> list[str]:
        """Its command line; writes what that names."""
        program = shutil.which("docker-registry", path=ENVIRONMENT["PATH"])
        if program is None:
            raise FailedPrecondition("docker-registry is not installed", hint="make setup")
        http = {"addr": f"127.0.0.1:{self.port}", **self.settings.get("http", {})}
        config = self.folder / "registry.json"
        # YAML reads JSON.
        config.write_text(
            json.dumps(
                {
                    "version": 0.1,
                    "log": {"level": "warn", "accesslog": {"disabled": True}},
                    "storage": {
                        "filesystem": {"rootdirectory": str(self.folder / "storage")},
                        "delete": {"enabled": True},
                    },
                    **self.settings,
                    "http": http,
                }
            )
        )
        return [program, "serve", str(config)]

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        argv = self.argv()
        with (self.folder / "registry.log").open("ab") as log:
            self._process = subprocess.Popen(argv, stdout=log, stderr=log, env=dict(ENVIRONMENT))
        until("the registry answers", self._answers)
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(60)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise AssertionError((self.folder / "registry.log").read_text()[-2000:])
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{self.url}/v2/", trust_env=False, **self.client).status_code == 200
        return False

    def push(self, image: oci.Image, repository: str, tag: str = "latest") -> str:
        """Push, and return the reference to pull it by."""
        oci.push(image, self.url, repository, tag, **self.client)
        return f"{self.host}/{repository}:{tag}"

    def write_hosts(self, folder: Path, names: Iterable[str] = ()) -> None:
        """Write the hosts.toml, in containerd's form, that lead to this registry under `names`; its
        own where there are none."""
        for name in names or (self.host,):
            place = folder / name
            place.mkdir(parents=True, exist_ok=True)
            (place / "hosts.toml").write_text(
                f'server = "{self.url}"\n\n[host."{self.url}"]\n'
                'capabilities = ["pull", "resolve"]\n'
            )
