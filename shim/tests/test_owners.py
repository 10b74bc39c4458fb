from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostlib.errors import InvalidArgument
from shim.owners import Owners, Range
from shim.sandbox import SharedMount

WORKER = 0x70000123
ids = st.integers(0, 2**32 - 2)


def wire(inside: int = 0, outside: int = 1000, size: int = 10, **more: Any) -> dict[str, Any]:
    line = {"containerID": inside, "hostID": outside, "size": size}
    return {"uidMappings": [line], "gidMappings": [line]} | more


def test_a_worker_has_a_line_of_its_own() -> None:
    own = f"0 1000 10\n{WORKER} {WORKER} 1\n"
    assert Range(0, 1000, 10).lines(WORKER) == own
    # One that the guest may be anyway, one whose id files may have already, and root.
    assert Range(0, WORKER, 1).lines(WORKER) == f"0 {WORKER} 1\n"
    assert Range(WORKER, 0, 1).lines(WORKER).endswith(f"\n4294967294 {WORKER} 1\n")
    assert Range(0, 1000, 10).lines(0).endswith("\n4294967294 0 1\n")


@given(ids, ids, st.integers(1, 100000), ids)
def test_lines_do_not_overlap(inside: int, outside: int, length: int, worker: int) -> None:
    length = min(length, 2**32 - 2 - max(inside, outside)) or 1
    if inside + length > 2**32 - 2 and worker not in range(outside, outside + length):
        # The last id is taken, and the worker's may be.
        return
    lines = [
        tuple(map(int, line.split()))
        for line in Range(inside, outside, length).lines(worker).splitlines()
    ]
    assert any(start <= worker < start + size for _, start, size in lines)
    for column in (0, 1):
        taken = sorted((line[column], line[2]) for line in lines)
        assert all(a + size <= b for (a, size), (b, _) in itertools.pairwise(taken))


def test_owners_in_a_request() -> None:
    share = {"share": "c-0", "owners": wire(), "path": "/data"}
    parsed = SharedMount.parse(share)
    assert parsed.owners == Owners(Range(0, 1000, 10), Range(0, 1000, 10))
    assert parsed.path == "/data"
    assert SharedMount.parse({"share": "c-0"}).owners is None


@pytest.mark.parametrize(
    "owners",
    [
        None,
        {},
        wire(gidMappings=[]),
        wire(uidMappings=[1]),
        wire(size=0),
        wire(inside=-1),
        wire(outside=2**32 - 1),
        wire(uidMappings=[{"containerID": True, "hostID": 0, "size": 1}]),
        wire(uidMappings=wire()["uidMappings"] * 2),
    ],
)
def test_owners_that_are_refused(owners: object) -> None:
    with pytest.raises(InvalidArgument, match="a shared mount's"):
        SharedMount.parse({"share": "c-0", "owners": owners})
