from __future__ import annotations

import pytest

from hostlib.errors import InvalidArgument
from images.pinned import Pinned


def test_names_and_patterns() -> None:
    pinned = Pinned(("nginx", "r.example/base/*", "r.example/one:1.?"))
    for name in (
        "docker.io/library/nginx:latest", "r.example/base/a/b:1", "r.example/base/a@sha256:0",
        "r.example/one:1.2",
    ):  # fmt: skip
        assert pinned((name,)), name
    for name in ("docker.io/library/nginx:1", "r.example/basement:1", "r.example/one:1.23"):
        assert not pinned((name,)), name
    assert pinned(("x.example/y:1", "docker.io/library/nginx:latest"))
    assert not Pinned()(("a",)) and not pinned(())


def test_a_name_that_is_none() -> None:
    with pytest.raises(InvalidArgument):
        Pinned(("Bad//Name",))
