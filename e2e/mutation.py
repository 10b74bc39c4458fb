"""``make mutation``: does a test notice each field that is done?

For every field that `cri/api/coverage.toml` calls done, its test is run with the field taken out
of every message on the way (`e2e.harness.dropping`). The test must fail; those that pass are
listed, and the exit code is 1. ``python -m e2e.mutation NAME...`` does some, each a message or
Message.field: all of them are hours of work.
"""

from __future__ import annotations

import os
import subprocess
import sys

from cri.api.coverage import Entry, load
from e2e.harness.daemon import PROJECT
from e2e.harness.dropping import ENVIRONMENT


def notices(entry: Entry) -> bool:
    """Whether the entry's test fails without the field. Raises `AssertionError` where it fails with
    the field, too."""
    argv = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", entry.test]

    def passes(field: str) -> bool:
        environment = {**os.environ, ENVIRONMENT: field}
        done = subprocess.run(argv, cwd=PROJECT, env=environment, capture_output=True, check=False)
        return done.returncode == 0

    if passes(entry.name):
        return False
    assert passes(""), f"{entry.test} fails anyway"
    return True


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> int:
    chosen = set(sys.argv[1:])
    entries = [
        entry
        for entry in load().fields
        if entry.state == "done" and (not chosen or {entry.name, entry.message} & chosen)
    ]
    survived = []
    for entry in entries:
        seen = notices(entry)
        say(f"{'noticed ' if seen else 'SURVIVED'} {entry.name}  {entry.test}")
        if not seen:
            survived.append(entry.name)
    say(f"{len(entries) - len(survived)} of {len(entries)} noticed")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
