"""Eight clients at once, at random, on few names; `make stress` does it for an hour."""

from __future__ import annotations

import os
import random
from typing import Final

import pytest

from e2e.harness.daemon import Daemon
from e2e.stress import stress

SECONDS: Final = 120.0


@pytest.mark.timeout(600)
def test_clients_that_do_what_they_like(daemon: Daemon) -> None:
    seed = int(os.environ.get("THAW_E2E_SEED", random.randrange(1 << 30)))
    model = stress(daemon, SECONDS, seed)
    assert not model.wrong, (seed, model.wrong)
    # Else nobody met anybody.
    assert model.containers
    assert model.lost
    assert not daemon.client.pods()
