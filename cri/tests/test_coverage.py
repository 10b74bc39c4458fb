from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

from cri.api import coverage
from hostlib.errors import InvalidArgument

PROJECT = Path(__file__).resolve().parents[2]
COVERAGE = coverage.load()


def test_the_table_is_the_protocol() -> None:
    rpcs, fields = coverage.protocol()
    assert [entry.field for entry in COVERAGE.rpcs] == rpcs
    assert [entry.name for entry in COVERAGE.fields] == fields
    assert (len(rpcs), len(fields)) == (43, 478)


def test_the_page_is_the_table() -> None:
    hint = "run python -m cri.api.coverage"
    assert coverage.PAGE.read_text() == coverage.page(COVERAGE), hint


@cache
def functions(path: Path) -> frozenset[str]:
    nodes = ast.walk(ast.parse(path.read_text()))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return frozenset(node.name for node in nodes if isinstance(node, kinds))


def test_what_is_claimed_names_a_test() -> None:
    shown = COVERAGE.shown()
    for entry in shown:
        path, _, name = entry.test.partition("::")
        assert name in functions(PROJECT / path), (entry.name, entry.test)
    for entry in (*COVERAGE.rpcs, *COVERAGE.fields):
        if entry.state in ("done", "refused"):
            assert entry in shown, entry.name


@pytest.mark.parametrize("line", ["done", "done:", "finished: x", ""])
def test_lines_that_are_none(line: str) -> None:
    with pytest.raises(InvalidArgument, match=r"Mount\.readonly"):
        coverage.load(f'[Mount]\nreadonly = "{line}"\n')
