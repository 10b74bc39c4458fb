"""crane, of the Go library go-containerregistry: a registry of another make, and its own tool."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final

from e2e.harness.registry import Registry
from hostlib.errors import FailedPrecondition
from hostlib.process import ENVIRONMENT

PROGRAM: Final = Path(__file__).resolve().parents[2] / ".build" / "bin" / "crane"


class CraneRegistry(Registry):
    """`crane registry serve`; what is pushed is gone with it."""

    def argv(self) -> list[str]:
        return [_program(), "registry", "serve", "--address", f"127.0.0.1:{self.port}"]


def crane(*argv: str) -> str:
    """Run the tool; what it prints."""
    done = subprocess.run(
        [_program(), *argv], capture_output=True, text=True, check=False, env=dict(ENVIRONMENT),
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def _program() -> str:
    if not PROGRAM.exists():
        raise FailedPrecondition("crane is not built", hint="tools/clients.sh")
    return str(PROGRAM)
