"""What a guest says of the user of a container's process is checked."""

from __future__ import annotations

from typing import Any

import pytest

from hostlib.errors import Internal
from shim.container import MAX_GROUPS, user_of


def test_a_user_is_kept() -> None:
    user = {"uid": 1000, "gid": 0, "additionalGids": [0, 2**32 - 1]}
    assert user_of({"pid": 7, "user": {**user, "home": "x" * 100}}) == user
    assert user_of({"pid": 7}) == {}


@pytest.mark.parametrize(
    "user",
    [
        "root",
        {},
        {"uid": 0, "gid": 0},
        {"uid": -1, "gid": 0, "additionalGids": []},
        {"uid": 0, "gid": 2**32, "additionalGids": []},
        {"uid": True, "gid": 0, "additionalGids": []},
        {"uid": 0, "gid": 0, "additionalGids": ["1"]},
        {"uid": 0, "gid": 0, "additionalGids": [0] * (MAX_GROUPS + 1)},
    ],
)
def test_what_is_no_user_is_refused(user: Any) -> None:
    with pytest.raises(Internal, match="user"):
        user_of({"user": user})
