from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from hostlib import failpoint
from images import transfer
from images.service import Images, Limits
from images.tests.fake_registry import FakeRegistry, running


@pytest.fixture
async def registry() -> AsyncIterator[FakeRegistry]:
    async with running() as found:
        yield found


@pytest.fixture
async def images(tmp_path: Path) -> AsyncIterator[Images]:
    service = Images(tmp_path / "root", registry_config=None, limits=Limits(stall_timeout=2))
    await service.open()
    yield service
    await service.close()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(transfer, "BACKOFF", 0.01)
    yield
    failpoint.disarm()
