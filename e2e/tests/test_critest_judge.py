"""How critest's report is judged: no spec is let off that the excuses do not name."""

from __future__ import annotations

import pytest

from e2e.harness.critest import Excuse, Outcome, excuses, judge, outcomes

EXCUSED = {"pods share": Excuse("a VM has nothing to share", "cannot be .* shared")}
SHARED = Outcome("pods share", "failed", "it cannot be so shared", 1)


@pytest.mark.parametrize(
    ("outcome", "wrong"),
    [
        (Outcome("pods run", "passed", "", 1), []),
        (Outcome("pods run", "failed", "no", 1), ["failed: pods run: no"]),
        (Outcome("pods run", "skipped", "", 0), ["skipped: pods run: "]),
        (Outcome("pods run", "timedout", "", 9), ["timedout: pods run: "]),
    ],
)
def test_a_spec_passes_or_is_named(outcome: Outcome, wrong: list[str]) -> None:
    assert judge([SHARED, outcome], EXCUSED) == wrong


def test_an_excuse_is_used_and_for_what_it_says() -> None:
    assert judge([], EXCUSED) == ["excused, but not there: pods share"]
    passed = Outcome("pods share", "passed", "", 1)
    assert judge([passed], EXCUSED) == ["passed, though excused: pods share"]
    other = Outcome("pods share", "failed", "the registry is down", 1)
    assert judge([other], EXCUSED) == [
        "failed, but not as excused: pods share: the registry is down"
    ]


def test_a_report_tells_of_specs_and_of_what_came_before_them() -> None:
    def node(kind: str, state: str, *names: str) -> dict[str, object]:
        *above, last = names
        return {
            "ContainerHierarchyTexts": above or None,
            "LeafNodeText": last,
            "LeafNodeType": kind,
            "State": state,
            "Failure": {"Message": "why"},
            "RunTime": 2_000_000_000,
        }

    before = node("BeforeSuite", "passed", "")
    assert outcomes([{"SpecReports": [before, node("It", "passed", "pods", "run")]}]) == [
        Outcome("pods run", "passed", "why", 2.0)
    ]
    broken = node("BeforeSuite", "failed", "")
    assert judge(outcomes([{"SpecReports": [broken]}]), {}) == ["failed: : why"]


def test_each_excuse_has_a_reason() -> None:
    assert all(each.reason and each.says for each in excuses().values())
