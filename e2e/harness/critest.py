"""critest, the conformance tests of the CRI: run whole, judged spec by spec."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from e2e.harness import leaks
from e2e.harness.daemon import PROJECT, Daemon
from hostlib.process import ENVIRONMENT

BIN: Final = PROJECT / ".build" / "bin"
EXCUSED: Final = PROJECT / "e2e" / "critest" / "excused.toml"
SECONDS: Final = 1500
"""Time for all specs. Ginkgo interrupts them a little sooner, and says which it was at."""


@dataclass(frozen=True)
class Outcome:
    """How one spec went."""

    spec: str
    state: str
    """Ginkgo's word: passed, failed, skipped, timedout, panicked, interrupted, aborted."""
    says: str
    """Why it failed or was skipped."""
    seconds: float

    @property
    def passed(self) -> bool:
        return self.state == "passed"


@dataclass(frozen=True)
class Excuse:
    """Why a spec need not pass."""

    reason: str
    says: str
    """A pattern of what the spec then says, so that it is not excused for something else."""


def excuses(path: Path = EXCUSED) -> dict[str, Excuse]:
    """The excused specs by name."""
    found: dict[str, Excuse] = {}
    for group in tomllib.loads(path.read_text())["excused"]:
        for spec in group["specs"]:
            assert spec not in found, f"{spec} is excused twice"
            found[spec] = Excuse(group["reason"], group["says"])
    return found


def run(
    daemon: Daemon, folder: Path, *, nodes: int, only: str = "", options: Sequence[str] = ()
) -> list[Outcome]:
    """Run the specs in whose names the pattern `only` is found, with critest's `options`: `nodes`
    at a time but for those that ask to run alone. Log and report lie in `folder`."""
    subprocess.run([str(PROJECT / "tools" / "clients.sh")], check=True)
    temporary = folder / "tmp"
    temporary.mkdir(parents=True)
    # Ginkgo takes what ends so for a suite that is built, and writes the report beside it.
    suite = folder / "critest.test"
    suite.symlink_to(BIN / "critest")
    command = [
        *(str(BIN / "ginkgo"), f"--procs={nodes}", f"--timeout={SECONDS - 60}s"),
        *("--no-color", "--json-report=report.json", f"--focus={only}"),
        *(str(suite), "--"),
        *(f"-runtime-endpoint={daemon.address}", f"-image-endpoint={daemon.address}", *options),
    ]
    try:
        with (folder / "critest.log").open("wb") as log:
            subprocess.run(
                command,
                stdout=log,
                stderr=log,
                check=False,
                cwd=folder,
                timeout=SECONDS,
                env={**ENVIRONMENT, "HOME": str(folder), "TMPDIR": str(temporary)},
            )
    finally:
        suite.unlink()
        # Specs about mounts leave theirs where they fail.
        for line in leaks.mounts(str(temporary)):
            subprocess.run(["umount", "--lazy", line.split()[5]], check=False)
    ran = outcomes(json.loads((folder / "report.json").read_text()))
    return [each for each in ran if re.search(only, each.spec)]


def outcomes(report: Iterable[Mapping[str, Any]]) -> list[Outcome]:
    """The outcomes in a report of Ginkgo's: of specs, and of their preparation if it failed."""
    return [
        Outcome(
            " ".join([*(spec["ContainerHierarchyTexts"] or []), spec["LeafNodeText"]]).strip(),
            spec["State"],
            spec.get("Failure", {}).get("Message", ""),
            spec.get("RunTime", 0) / 1e9,
        )
        for suite in report
        for spec in suite["SpecReports"] or []
        if spec["LeafNodeType"] == "It" or spec["State"] != "passed"
    ]


def judge(ran: Iterable[Outcome], excused: Mapping[str, Excuse]) -> list[str]:
    """What is wrong: specs that did not pass and are not excused, or for another reason; excuses
    that are of no use."""
    wrong = []
    unseen = set(excused)
    for each in ran:
        unseen.discard(each.spec)
        excuse = excused.get(each.spec)
        if each.passed:
            if excuse is not None:
                wrong.append(f"passed, though excused: {each.spec}")
        elif excuse is None:
            wrong.append(f"{each.state}: {each.spec}: {each.says[:300]}")
        elif re.search(excuse.says, each.says) is None:
            wrong.append(f"{each.state}, but not as excused: {each.spec}: {each.says[:300]}")
    return wrong + [f"excused, but not there: {spec}" for spec in sorted(unseen)]
