"""``make bench``: measure, print, and write bench/results/first-pod.json with its plot."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from bench import machines, plot, pods
from bench.samples import Figures

RESULTS: Final = Path(__file__).parent / "results"

GOALS: Final = (
    ("restore is at least 30 times faster than a cold boot", "cold/restore", ">=", 30.0),
    ("a pod from the pool takes at most a third of one restored", "pool/restored", "<=", 1 / 3),
    ("an idle pod holds at most 60 MiB", "idle", "<=", 60.0),
    ("an idle pod holds at most 60 MiB besides translated code", "idle, no code", "<=", 60.0),
    ("ExecSync true takes at most 15 ms", "exec", "<=", 15.0),
)


def values(figures: Figures) -> dict[str, float]:
    """What the goals speak of."""
    median = {name: series.median for name, series in figures.items()}
    return {
        "cold/restore": median["cold boot to the agent's answer"]
        / median["restore to the agent's answer"],
        "pool/restored": median["pod up, from the pool"] / median["pod up, restored on the spot"],
        "idle": median["idle pod, private memory"],
        "idle, no code": median["idle pod, without translated code"],
        "exec": median["ExecSync true"],
    }


def machine() -> dict[str, object]:
    qemu = subprocess.run(
        [machines.QEMU, "--version"], capture_output=True, text=True, check=True
    ).stdout.splitlines()[0]
    return {
        "cpus": os.cpu_count(),
        "load": os.getloadavg()[0],
        "kernel": platform.release(),
        "python": platform.python_version(),
        "qemu": qemu,
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=10, help="pod lives and VM pairs (10)")
    options = parser.parse_args()
    figures = Figures()
    begun = machine()
    accelerator = asyncio.run(machines.measure(figures, options.rounds))
    pods.measure(figures, options.rounds)
    reached = []
    for text, key, relation, goal in GOALS:
        value = values(figures)[key]
        met = value >= goal if relation == ">=" else value <= goal
        reached.append({"goal": text, "value": value, "limit": goal, "met": met})
    RESULTS.mkdir(exist_ok=True)
    target = RESULTS / "first-pod.json"
    target.write_text(
        json.dumps(
            {
                "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "machine": begun,
                "accelerator": accelerator,
                "figures": {name: series.to_dict() for name, series in figures.items()},
                "goals": reached,
            },
            indent=1,
        )
    )
    plot.draw(figures, target)
    print(f"accelerator {accelerator}")
    for name, series in figures.items():
        spread = f"{min(series.values):.1f} to {max(series.values):.1f}"
        print(f"{name:45} {series.median:9.1f} {series.unit}  ({spread}, n={len(series.values)})")
    for each in reached:
        print(f"{'met   ' if each['met'] else 'MISSED'} {each['goal']}: {each['value']:.2f}")
    print(f"written: {target} and its plot beside it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
