"""The `thaw` command, run as a user does."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from typing import Final

from e2e.harness.daemon import PROJECT, Daemon

THAW: Final = str(PROJECT / ".venv" / "bin" / "thaw")


def thaw(
    daemon: Daemon, *argv: str, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    return subprocess.run(
        [THAW, "--address", daemon.address, *argv],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, **(environment or {})},
    )
