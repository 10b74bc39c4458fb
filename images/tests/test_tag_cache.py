from __future__ import annotations

import pytest

from images import tag_cache
from images.tag_cache import TagCache


def test_a_digest_is_known_for_its_life(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    cache = TagCache(10, clock=lambda: now)
    cache.put("a:1", "one")
    now = 9
    assert cache.get("a:1") == "one"
    now = 10
    assert cache.get("a:1") is None
    cache.put("a:1", "two")
    assert cache.get("a:1") == "two"
    cache.forget("a:1")
    assert cache.get("a:1") is None
    never = TagCache(0)
    never.put("a:1", "one")
    assert never.get("a:1") is None


def test_it_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tag_cache, "MAX_TAGS", 2)
    cache = TagCache(10, clock=lambda: 0)
    for name in "abac":
        cache.put(name, name)
    assert [cache.get(name) for name in "abc"] == ["a", None, "c"]
