"""A network of the test's own: the address of a node that is neither loopback nor the host's."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Final

from e2e.harness.outside import sh
from hostlib import linux

ADDRESS: Final = "198.18.0.1"
"""Of RFC 2544's range for tests of networks."""


@contextlib.contextmanager
def own_network() -> Iterator[str]:
    """This thread is in a network namespace of its own meanwhile, and with it all that it starts. A
    bridge has the address that is given; loopback works, and there is no way out."""
    host = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        linux.unshare(linux.CLONE_NEWNET)
        try:
            sh("ip", "link", "set", "lo", "up")
            sh("ip", "link", "add", "node0", "type", "bridge")
            sh("ip", "address", "add", f"{ADDRESS}/24", "dev", "node0")
            sh("ip", "link", "set", "node0", "up")
            yield ADDRESS
        finally:
            linux.setns(host, linux.CLONE_NEWNET)
    finally:
        os.close(host)
