"""``make mutation``: does a test notice each field that it is named for?

For every field and RPC that `cri/api/coverage.toml` names a test for, the test is run with the
field taken out of every message on the way (`e2e.harness.dropping`), or with an RPC that is not
there. It must fail; what it does not notice is listed, and the exit code is 1.

The tests of a file share one session of pytest (`e2e.harness.mutants`), in which each runs with
everything first and last. A test that passes without a field there has another chance in a session
of its own, where fixtures do without it too.

Verdicts go to a file as they are found. ``--resume`` keeps those in it that were noticed by a test
that reads as it did then; names, Message.field or Message, do some.
"""

from __future__ import annotations

import argparse
import ast
import functools
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from cri.api.coverage import Entry, load
from e2e.harness.daemon import PROJECT
from e2e.harness.dropping import ENVIRONMENT
from e2e.harness.mutants import FIRST, LAST, Run

RESULTS: Final = PROJECT / ".build" / "mutation.jsonl"
NOTICED: Final = "noticed"
SURVIVED: Final = "SURVIVED"
BROKEN: Final = "BROKEN"
"""The test fails with everything, too, or did not run."""

_PYTEST: Final = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb", "short")


@dataclass(frozen=True)
class Verdict:
    name: str
    test: str
    digest: str
    verdict: str
    seconds: float
    why: str

    def __str__(self) -> str:
        return f"{self.verdict:8} {self.seconds:5.0f} s  {self.name}  {self.test}  {self.why}"


@functools.cache
def _functions(path: str) -> dict[str, str]:
    source = (PROJECT / path).read_text()
    return {
        node.name: hashlib.sha256((ast.get_source_segment(source, node) or "").encode()).hexdigest()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    }


def digest(test: str) -> str:
    """Of the text of a test."""
    path, _, name = test.partition("::")
    return _functions(path)[name]


def verdict(entry: Entry, found: str, seconds: float, why: str) -> Verdict:
    return Verdict(entry.name, entry.test, digest(entry.test), found, round(seconds, 1), why)


def together(entries: list[Entry]) -> list[Run]:
    """All the runs of one session."""
    with tempfile.NamedTemporaryFile("r", prefix="thaw-mutation-") as results:
        argv = [
            *_PYTEST,
            *("-p", "e2e.harness.mutants", "--timeout", "600", "--results", results.name),
            *("--without", ",".join(entry.name for entry in entries)),
            *dict.fromkeys(entry.test for entry in entries),
        ]
        done = subprocess.run(argv, cwd=PROJECT, capture_output=True, text=True, check=False)
        runs = [Run(**json.loads(line)) for line in results]
    if not runs:
        say(f"no test ran: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return runs


def alone(test: str, field: str) -> tuple[bool, float, str]:
    """Whether the test fails in a session that does without the field from the start, in how many
    seconds, and why. What the session's end says is not the test's word."""
    argv = [*_PYTEST, "-x", "--timeout", "600", test]
    begun = time.monotonic()
    # A narrow summary leaves the reasons out.
    environment = {**os.environ, ENVIRONMENT: field, "COLUMNS": "400"}
    done = subprocess.run(
        argv, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False
    )
    said = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR "))]
    fails = (
        any(line.startswith("FAILED") for line in said)
        or "ERROR at setup of" in done.stdout
        or " passed" not in done.stdout
    )
    why = f"alone: {said[0].partition(' - ')[2]}"[:300] if said else ""
    return fails, time.monotonic() - begun, why


def judge(entries: list[Entry]) -> Iterator[Verdict]:
    """The verdicts on the fields whose tests are in one file."""
    runs = together(entries)
    for test in dict.fromkeys(entry.test for entry in entries):
        of_test = [run for run in runs if run.test == test]
        # A test with parameters has several of each.
        controls = [run for run in of_test if run.lacking in (FIRST, LAST)]
        sound = {run.lacking for run in controls} == {FIRST, LAST} and all(
            run.outcome == "passed" for run in controls
        )
        if not sound and alone(test, "")[0]:
            said = [run.why for run in controls if run.why] or ["it did not run"]
            for entry in entries:
                if entry.test == test:
                    yield verdict(entry, BROKEN, 0, said[0])
            continue
        for entry in entries:
            if entry.test == test:
                yield _judge(entry, [run for run in of_test if run.lacking == entry.name], sound)


def _judge(entry: Entry, runs: list[Run], sound: bool) -> Verdict:
    seconds = sum(run.seconds for run in runs)
    failed = [run for run in runs if run.outcome == "failed"]
    if sound and failed:
        return verdict(entry, NOTICED, seconds, failed[0].why)
    fails, more, why = alone(entry.test, entry.name)
    return verdict(entry, NOTICED if fails else SURVIVED, seconds + more, why)


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def noticed(path: Path) -> dict[str, Verdict]:
    """What a file says was noticed, by tests that have not changed since."""
    if not path.exists():
        return {}
    found = {}
    for line in path.read_text().splitlines():
        each = Verdict(**json.loads(line))
        found[each.name] = each
    tests = {entry.name: entry.test for entry in load().shown()}
    return {
        name: each
        for name, each in found.items()
        if each.verdict == NOTICED
        and each.test == tests.get(name)
        and each.digest == digest(each.test)
    }


def by_file(entries: Iterable[Entry]) -> list[list[Entry]]:
    """The entries of each file of tests; most first, so that two at once end together."""
    files: dict[str, list[Entry]] = {}
    for entry in entries:
        files.setdefault(entry.test.partition("::")[0], []).append(entry)
    return sorted(files.values(), key=len, reverse=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m e2e.mutation")
    parser.add_argument("names", nargs="*", metavar="NAME", help="Message.field, Message or a file")
    parser.add_argument("--jobs", type=int, default=1, help="files of tests at once")
    parser.add_argument("--resume", action="store_true", help="keep what was noticed before")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    chosen = set(arguments.names)
    entries = [
        entry
        for entry in load().shown()
        if not chosen or {entry.name, entry.message, entry.test.partition("::")[0]} & chosen
    ]
    if not arguments.resume:
        arguments.results.unlink(missing_ok=True)
    known = noticed(arguments.results)
    missing = [entry for entry in entries if entry.name not in known]
    say(f"{len(entries)} fields and RPCs, {len(missing)} of them to do")
    for entry in missing:
        # Of the tests as they are now, whatever is edited meanwhile.
        digest(entry.test)

    def work(group: list[Entry]) -> None:
        for each in judge(group):
            with arguments.results.open("a") as target:
                target.write(json.dumps(asdict(each)) + "\n")
            say(str(each))

    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(arguments.jobs) as workers:
        list(workers.map(work, by_file(missing)))
    known = noticed(arguments.results)
    survived = [entry for entry in entries if entry.name not in known]
    say(f"{len(entries) - len(survived)} of {len(entries)} noticed")
    for entry in survived:
        say(f"not: {entry.name}  {entry.test}")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
