"""``python -m bench.scale``: each shared part alone, with 10, 100 and 1,000 fake pods.

Times are of the processor. Needs root, and no VM: what is made on the host lives in namespaces of
the process that makes it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from bench.report import number
from bench.scale import daemon, host, network
from bench.scale.figure import Figure
from cri.main import raise_open_files

COUNTS: Final = (10, 100, 1000)

TMPFS: Final = "/dev/shm"
"""Records lie under /run, which is such a file system too."""

PARTS: Final[dict[str, Callable[[int, Path], list[Figure]]]] = {
    "lists": daemon.lists,
    "lives": daemon.lives,
    "adoption": daemon.adoption,
    "network": network.network,
    "leases": network.leases,
    "mounts": host.mounts,
    "cgroups": host.cgroups,
    "files": host.files,
    "forks": host.forks,
}


def measure(part: str, count: int) -> list[Figure]:
    """The figures of a part beside `count` pods, in a process of its own.

    Raises `subprocess.CalledProcessError` when it fails.
    """
    argv = [sys.executable, "-m", "bench.scale", "--part", part, "--count", str(count)]
    done = subprocess.run(argv, stdout=subprocess.PIPE, check=True)
    return [Figure(**each) for each in json.loads(done.stdout)]


def _alone(part: str, count: int) -> None:
    raise_open_files()
    with tempfile.TemporaryDirectory(prefix="thaw-scale-", dir=TMPFS) as folder:
        found = PARTS[part](count, Path(folder))
    print(json.dumps([vars(each) for each in found]))


def table(parts: Sequence[str], counts: Sequence[int]) -> None:
    """Print what one pod costs beside so many others."""
    heads = "".join(f"{f'at {each:,}':>12}" for each in counts)
    print(f"{'one pod costs':44}{heads}  unit")
    for part in parts:
        for row in zip(*(measure(part, each) for each in counts), strict=True):
            values = "".join(f"{number(each.value):>12}" for each in row)
            print(f"{f'{part}: {row[0].name}':44}{values}  {row[0].unit}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=__doc__)
    parser.add_argument("--part", choices=sorted(PARTS), help="one part, as JSON")
    parser.add_argument("--count", type=int, default=1000, help="the pods beside it, with --part")
    options = parser.parse_args()
    if options.part:
        _alone(options.part, options.count)
    else:
        table(list(PARTS), COUNTS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
