"""Logging for Thaw's processes: one line an event, on standard error, or in a file."""

from __future__ import annotations

import logging
import sys
import time
from typing import Final

LEVELS: Final = ("debug", "info", "warning", "error")


class _Formatter(logging.Formatter):
    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"


def setup(level: str, *, process: str) -> None:
    """Send this process's log to standard error, marked with the name of the `process`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(f"%(asctime)s %(levelname)-7s {process} %(name)s: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for noisy in ("httpx", "httpcore", "qemu", "pyroute2", "asyncio", "grpc"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
