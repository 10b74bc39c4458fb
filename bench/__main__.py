"""``make bench``: Thaw beside containerd + runc on this machine; bench/results/*.json and plots."""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
import traceback
import types
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from bench import images, peer, plot, promises, report
from bench.cases import growth, lives, machines, many, streams, traffic
from bench.cases import images as image_cases
from bench.cpu import Gate
from bench.node import Place
from bench.peer import Peer
from bench.session import Session
from bench.thaw import Thaw
from e2e.harness.daemon import PROJECT
from e2e.harness.registry import Registry
from hostlib.errors import ThawError

RESULTS: Final = Path(__file__).parent / "results"

FULL_SECONDS: Final = 13 * 60.0
QUICK_SECONDS: Final = 140.0
"""When cases begin to take as few samples as they can, so that a run ends in time."""

GATE_SECONDS: Final = 60.0
QUICK_GATE_SECONDS: Final = 15.0

CASES: Final[dict[str, Callable[[Session], None]]] = {
    "machines": machines.measure,
    "pull": image_cases.pull,
    "life": lives.one_layer,
    "life7": lives.seven_layers,
    "cni": lives.cni,
    "drained": lives.drained,
    "parallel": many.ten,
    "sequence": many.sequence,
    "logs": traffic.logs,
    "http": traffic.http,
    "streams": streams.measure,
    "parallel50": many.fifty,
    "growth": growth.measure,
}

_BEGUN: Final = time.monotonic()


def say(text: str) -> None:
    """Progress, on stderr: data goes to stdout."""
    print(f"{time.monotonic() - _BEGUN:6.1f} s  {text}", file=sys.stderr, flush=True)


def _nodes(stack: ExitStack, place: Place, with_peer: bool) -> tuple[Thaw, Peer | None]:
    wanted = (images.PAUSE, images.BIG, images.WEB, images.LINES)
    built = images.built(PROJECT / ".build", wanted, say)
    registry = stack.enter_context(Registry(place.folder / "registry"))
    say("pushing the images")
    for repository, image in built.items():
        registry.push(image, repository)
    del built
    other: Peer | None = None
    if with_peer:
        say("starting containerd")
        other = Peer(place, registry)
        stack.callback(_end, other)
        other.start()
    say("starting thawd; a first start bakes")
    thaw = Thaw(place, registry)
    stack.callback(_end, thaw)
    thaw.start()
    for node in (thaw, other):
        if node is not None:
            for reference in (images.ONE_LAYER, images.WEB, images.LINES):
                node.client.pull_image(reference)
    return thaw, other


def _end(node: Thaw | Peer) -> None:
    _left.extend(node.stop())


_left: list[str] = []
"""What nodes left on the host when they ended."""


def _run(session: Session, names: list[str]) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """Run cases; what each took, and those that failed. A failure does not end the others."""
    taken: dict[str, Any] = {}
    failures = []
    for name in names:
        say(name)
        begun, load = time.monotonic(), os.getloadavg()[0]
        noisy = session.gate.noisy
        try:
            CASES[name](session)
        except (ThawError, AssertionError, OSError, ValueError, LookupError) as error:
            traceback.print_exc()
            failures.append({"case": name, "error": f"{type(error).__name__}: {error}"})
            session.clear()
        taken[name] = {
            "seconds": time.monotonic() - begun,
            "load": [load, os.getloadavg()[0]],
            "noisy": session.gate.noisy - noisy,
        }
    return taken, failures


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    with_peer = not options.no_peer and peer.built()
    if not with_peer and not options.no_peer:
        say("without the peer: tools/peer.sh builds it, or make bench does")
    begun, stamp = report.machine(), time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    with ExitStack() as stack:
        folder = tempfile.mkdtemp(prefix="thaw-bench-", dir="/tmp")
        place = Place.new(Path(folder))
        stack.callback(_clean, place)
        thaw, other = _nodes(stack, place, with_peer)
        gate = Gate(QUICK_GATE_SECONDS if options.quick else GATE_SECONDS)
        session = Session(
            thaw,
            other,
            gate,
            options.quick,
            say,
            deadline=_BEGUN + (QUICK_SECONDS if options.quick else FULL_SECONDS),
            points=options.points or (),
        )
        pool = thaw.pool().size
        cases, failures = _run(session, options.only or list(CASES))
        say("removing everything")
    return {
        "format": report.FORMAT,
        "time": stamp,
        "mode": "quick" if options.quick else "full",
        "seconds": time.monotonic() - _BEGUN,
        "machine": begun,
        "versions": report.versions(),
        "configuration": {"thaw": "default", "pool": pool},
        "gate": {"waited": gate.waited, "passed": gate.passed, "noisy": gate.noisy},
        "cases": cases,
        "failures": failures + [{"case": "end", "error": f"left behind: {f}"} for f in _left],
        "figures": report.document(session.figures),
        "promises": promises.document(session.figures),
        "extra": session.extra,
        "_figures": session.figures,
    }


def _clean(place: Place) -> None:
    _left.extend(found for found in place.left() if not found.startswith(("cgroup", "link")))
    place.remove()
    _left.extend(place.left())


def _interrupt(_number: int, _frame: types.FrameType | None) -> None:
    raise KeyboardInterrupt


def _points(text: str) -> list[int]:
    found = sorted({int(part) for part in text.split(",")})
    if found[0] < 1:
        raise ValueError("a point is a number of pods")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rows and rounds, in 3 minutes")
    parser.add_argument("--no-peer", action="store_true", help="measure Thaw alone")
    parser.add_argument("--only", action="append", choices=sorted(CASES), help="this case alone")
    parser.add_argument("--points", type=_points, help="numbers of pods for growth: 1,10,50,200")
    parser.add_argument("--out", type=Path, help="the results file (bench/results/...)")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, _interrupt)
    random.seed()
    try:
        results = _measure(options)
    except KeyboardInterrupt:
        for found in _left:
            print(f"left behind: {found}", file=sys.stderr)
        return 130
    figures = results.pop("_figures")
    target = options.out or RESULTS / ("quick.json" if options.quick else "bench.json")
    report.write(target, results)
    written = [target, *plot.draw(results, target)]
    for line in report.lines(figures):
        print(line)
    for each in results["promises"]:
        met = "met   " if each["met"] else "MISSED"
        bound = f"{each['relation']} {report.number(each['bound'])}"
        print(f"{met} {each['promise']}: {report.number(each['value'])} (promised {bound})")
    gate = results["gate"]
    print(
        f"{results['seconds']:.0f} s; load {results['machine']['load'][0]:.1f} at the beginning;"
        f" {gate['noisy']} of {gate['passed']} gated samples on a busy machine"
    )
    print("written:", *(os.path.relpath(path) for path in written))
    for failure in results["failures"]:
        print(f"FAILED {failure['case']}: {failure['error']}", file=sys.stderr)
    return 1 if results["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
