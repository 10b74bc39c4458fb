"""A pytest plugin, the inside of `e2e.mutation`: each test that cri/api/coverage.toml names runs
once for every field that names it, without that field, and before and after with everything.

Only a test's own work is without the field. What it shares with others, registry and daemons, is
made and cleaned up as ever, so that one serves all runs; that it still does is what the last run
with everything shows.
"""

from __future__ import annotations

import json
import os
from collections.abc import Generator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from cri.api import coverage
from e2e.harness import dropping

FIRST: Final = "first"
LAST: Final = "last"
_CONTROLS: Final = (FIRST, LAST)


@dataclass
class Run:
    """One run of a test: what it did without, and how the test itself ended. `outcome` is empty
    where its fixtures failed, and `why` is the first line of what was said."""

    test: str
    lacking: str
    outcome: str = ""
    seconds: float = 0.0
    why: str = ""


class _State:
    def __init__(self) -> None:
        self.results = Path(os.devnull)
        self.fields: dict[str, list[str]] = {}
        self.runs: dict[pytest.Item, Run] = {}
        self.seconds: dict[str, float] = {}
        """Of a test with everything."""
        self.settled: set[tuple[str, str]] = set()


_state = _State()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--without", default="", help="the fields, Message.field, with commas")
    parser.addoption("--results", default=os.devnull, help="a file, a line of JSON for each run")


def pytest_configure(config: pytest.Config) -> None:
    os.environ.setdefault(dropping.ENVIRONMENT, "")
    _state.results = Path(config.getoption("--results"))
    chosen = config.getoption("--without").split(",")
    for entry in coverage.load().shown():
        if entry.name in chosen:
            _state.fields.setdefault(entry.test, []).append(entry.name)


@pytest.fixture
def lacking(request: pytest.FixtureRequest) -> str:
    """What this run does without; `FIRST` and `LAST` do without nothing."""
    return str(request.param)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    fields = _state.fields.get(metafunc.definition.nodeid)
    if fields:
        metafunc.fixturenames.append("lacking")
        metafunc.parametrize("lacking", [FIRST, *fields, LAST], indirect=True)


def _of(item: pytest.Item) -> tuple[str, str]:
    """Its test, as coverage.toml names it, and what it does without."""
    test = item.nodeid.partition("[")[0]
    call: Any = getattr(item, "callspec", None)
    return test, call.params.get("lacking", "") if call else ""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test with parameters of its own has all of them without a field, then without the next."""
    tests = {test: number for number, test in enumerate(dict.fromkeys(_of(i)[0] for i in items))}

    def place(item: pytest.Item) -> tuple[int, int]:
        test, lacks = _of(item)
        return tests[test], [FIRST, *_state.fields.get(test, ()), LAST].index(lacks or FIRST)

    items.sort(key=place)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    test, lacks = _of(item)
    if lacks not in _CONTROLS and test in _state.seconds:
        # One that waits for what never comes has noticed.
        item.add_marker(pytest.mark.timeout(60 + 3 * _state.seconds[test]))
    return (yield)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    test, lacks = _of(item)
    if (test, FIRST) in _state.settled:
        pytest.skip("it fails with everything")
    if (test, lacks) in _state.settled:
        pytest.skip("another set of its parameters has noticed")
    _state.runs[item] = Run(test, lacks)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    lacks = _of(item)[1]
    with dropping.without("" if lacks in _CONTROLS else lacks):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    run = _state.runs.get(item)
    if run is None:
        return report
    run.seconds += report.duration
    if report.when == "call":
        run.outcome = report.outcome
        if report.failed:
            _state.settled.add((run.test, run.lacking))
        elif run.lacking == FIRST:
            _state.seconds[run.test] = max(_state.seconds.get(run.test, 0.0), report.duration)
    if report.failed and not run.why:
        crash = getattr(report.longrepr, "reprcrash", None)
        said = str(crash.message if crash else report.longrepr)
        run.why = f"{report.when}: {said.splitlines()[0] if said else ''}"[:300]
    if report.when == "teardown":
        with _state.results.open("a") as target:
            target.write(json.dumps(asdict(_state.runs.pop(item))) + "\n")
    return report
