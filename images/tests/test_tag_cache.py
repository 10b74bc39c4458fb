from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from hostlib import failpoint, records
from images import tag_cache
from images.tag_cache import KIND, VERSION, TagCache

ONE, TWO = f"sha256:{'1' * 64}", f"sha256:{'2' * 64}"


async def test_a_digest_is_known_for_its_life() -> None:
    now = 0.0
    cache = TagCache(10, clock=lambda: now)
    await cache.put("a:1", ONE)
    now = 9
    assert cache.get("a:1") == ONE
    now = 10
    assert cache.get("a:1") is None
    await cache.put("a:1", TWO)
    assert cache.get("a:1") == TWO
    # A clock that was set back.
    now = 9
    assert cache.get("a:1") is None
    await cache.forget("a:1")
    assert cache.get("a:1") is None
    never = TagCache(0)
    await never.put("a:1", ONE)
    assert never.get("a:1") is None


async def test_it_is_bounded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tag_cache, "MAX_TAGS", 2)
    path = tmp_path / "tags.json"
    times = iter(range(100))
    cache = TagCache(1000, path, clock=lambda: next(times))
    for name in "abac":
        await cache.put(name, ONE)
    assert [cache.get(name) for name in "abc"] == [ONE, None, ONE]
    monkeypatch.setattr(tag_cache, "MAX_TAGS", 1)
    cache = TagCache(1000, path, clock=lambda: next(times))
    cache.load()
    assert [cache.get(name) for name in "abc"] == [None, None, ONE]


async def test_it_outlives_its_process(tmp_path: Path) -> None:
    path = tmp_path / "tags.json"
    first = TagCache(1000, path)
    await asyncio.gather(*(first.put(f"a:{n}", ONE) for n in range(50)))
    await first.put("b", TWO)
    await first.forget("a:7")
    (tmp_path / ".tags.json.1.tmp").write_text("what a crash left")
    second = TagCache(1000, path)
    second.load()
    assert [second.get(name) for name in ("a:0", "a:7", "a:49", "b")] == [ONE, None, ONE, TWO]
    assert [each.name for each in tmp_path.iterdir()] == ["tags.json"]
    unwanted = TagCache(0, path)
    unwanted.load()
    assert unwanted.get("b") is None


@pytest.mark.parametrize(
    "tags",
    [
        None, 1, [], {"a": None}, {"a": [ONE]}, {"a": [ONE, "1"]}, {"a": [ONE, 1, 2]},
        {"a": ["sha256:x", 1]}, {"a": [1, 1]}, {"a": [ONE, float("nan")]},
        {"a": [ONE, float("inf")]},
    ],
)  # fmt: skip
async def test_what_is_no_record_is_an_empty_one(tmp_path: Path, tags: Any) -> None:
    path = tmp_path / "tags.json"
    body = {"kind": KIND, "version": VERSION, "tags": tags}
    for text in (json.dumps(body), json.dumps(body)[:-5], "", json.dumps(body | {"version": 9})):
        path.write_text(text)
        cache = TagCache(1000, path)
        cache.load()
        assert cache.get("a") is None
    await cache.put("a", ONE)
    assert cache.get("a") == ONE


async def test_a_record_that_cannot_be_written_fails_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = TagCache(1000, tmp_path / "missing/tags.json")
    await cache.put("a", ONE)
    assert cache.get("a") == ONE
    path = tmp_path / "tags.json"
    cache = TagCache(1000, path)
    failpoint.arm("tags.save=1*error")
    await cache.put("a", ONE)
    assert caplog.text.count("not kept for the next start") == 2
    assert not path.exists()
    await cache.put("b", TWO)
    assert set(records.read(path, KIND, VERSION)["tags"]) == {"a", "b"}
