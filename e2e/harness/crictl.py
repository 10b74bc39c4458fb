"""The real crictl, as built by tools/clients.sh."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from e2e.harness.daemon import PROJECT, Daemon
from hostlib.process import ENVIRONMENT

PROGRAM: Final = PROJECT / ".build" / "bin" / "crictl"


class Crictl:
    """crictl against one daemon, with a configuration of its own."""

    def __init__(self, daemon: Daemon) -> None:
        subprocess.run([str(PROJECT / "tools" / "clients.sh")], check=True)
        self.folder = daemon.folder
        self.config = daemon.folder / "crictl.yaml"
        # YAML reads JSON.
        self.config.write_text(
            json.dumps(
                {
                    "runtime-endpoint": daemon.address,
                    "image-endpoint": daemon.address,
                    "timeout": 120,
                }
            )
        )

    def argv(self, *argv: str) -> list[str]:
        """The command line of a crictl command."""
        return [str(PROGRAM), "--config", str(self.config), *argv]

    @property
    def environment(self) -> dict[str, str]:
        return {**ENVIRONMENT, "HOME": str(self.folder)}

    def run(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run crictl; AssertionError with its stderr where it fails and `check` is set."""
        done = subprocess.run(
            self.argv(*argv),
            capture_output=True,
            text=True,
            check=False,
            timeout=180,
            env=self.environment,
        )
        assert done.returncode == 0 or not check, (argv, done.stdout, done.stderr)
        return done

    @contextlib.contextmanager
    def running(
        self, *argv: str, stdin: int = subprocess.DEVNULL
    ) -> Iterator[subprocess.Popen[bytes]]:
        """A crictl that runs on, its output in pipes; killed at the end of the block."""
        with subprocess.Popen(
            self.argv(*argv),
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.environment,
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def out(self, *argv: str) -> str:
        return self.run(*argv).stdout.strip()

    def json(self, *argv: str) -> Any:
        return json.loads(self.out(*argv, "--output", "json"))

    def write(self, name: str, document: dict[str, Any]) -> str:
        """A configuration file for crictl; its path."""
        path: Path = self.folder / name
        path.write_text(json.dumps(document))
        return str(path)
