from __future__ import annotations

from bench import promises
from bench.rows import PEER, THAW
from bench.samples import Figures


def test_what_was_measured_is_judged() -> None:
    figures = Figures()
    figures.add("up1", THAW, 100.0, "ms")
    figures.add("exec", THAW, 15.5, "ms")
    figures.add("exec", PEER, 1.0, "ms")
    found = {each["promise"]: each for each in promises.document(figures)}
    # Without its divisor a share is not known.
    assert list(found) == ["ExecSync true, ms"]
    assert not found["ExecSync true, ms"]["met"]
    figures.add("drained", THAW, 400.0, "ms")
    figures.add("restore_speedup", THAW, 31.0, "x")
    found = {each["promise"]: each for each in promises.document(figures)}
    assert found["pod up: from the pool / restored on the spot"]["value"] == 0.25
    assert all(each["met"] for name, each in found.items() if not name.startswith("ExecSync"))
