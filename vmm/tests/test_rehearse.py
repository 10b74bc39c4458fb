from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from hostlib.errors import DeadlineExceeded
from vmm import rehearse
from vmm.microvm import MicroVM


class Deaf:
    """A VM whose agent never answers."""

    agent = None


async def test_a_rehearsal_that_does_not_end_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def hang(*_: Any) -> None:
        await asyncio.sleep(60)

    monkeypatch.setattr("vmm.restore.restore_guest", hang)
    monkeypatch.setattr(rehearse, "_TIMEOUT", 0.01)
    with pytest.raises(DeadlineExceeded, match="rehearsal did not end"):
        await rehearse.run(cast("MicroVM", Deaf()), tmp_path, with_exec=False)
