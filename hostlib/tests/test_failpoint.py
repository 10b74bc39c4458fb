import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostlib import failpoint
from hostlib.errors import InvalidArgument


@pytest.fixture(autouse=True)
def _disarmed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(failpoint, "_file", None)
    monkeypatch.setattr(failpoint, "_file_stamp", (0, 0))
    yield
    failpoint.disarm()


async def test_an_armed_point_fails_as_often_as_it_says() -> None:
    failpoint.arm("a.b=2*error(gone)")
    for _ in range(2):
        with pytest.raises(failpoint.Injected, match="gone"):
            await failpoint.hit("a.b")
    await failpoint.hit("a.b")
    await failpoint.hit("other")


@pytest.mark.parametrize("text", ["a", "a=explode", "=error", "a=x*error"])
def test_a_malformed_point_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        failpoint.arm(text)


def test_a_point_kills_the_process() -> None:
    child = os.fork()
    if child == 0:
        failpoint.arm("a=kill")
        failpoint.hit_sync("a")
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == 9


async def test_a_point_holds_until_it_is_disarmed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "points"
    source.write_text("a=hold")
    monkeypatch.setenv(failpoint.ENV_FILE, str(source))
    failpoint.load_environment()
    held = asyncio.create_task(failpoint.hit("a"))
    for _ in range(5):
        await failpoint.hit("other")
        await asyncio.sleep(0.02)
    assert not held.done()
    (tmp_path / "new").write_text("b=error")
    (tmp_path / "new").rename(source)
    await asyncio.wait_for(held, 10)


async def test_a_file_arms_points_in_a_process_that_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "points"
    monkeypatch.setenv(failpoint.ENV_FILE, str(source))
    failpoint.load_environment()
    await failpoint.hit("a")
    source.write_text("a=error\n")
    with pytest.raises(failpoint.Injected):
        await failpoint.hit("a")
    source.unlink()
    await failpoint.hit("a")
