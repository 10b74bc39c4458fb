from __future__ import annotations

import itertools

import pytest

from bench import images
from bench.cases import lives, many, traffic
from bench.cpu import Gate
from bench.session import FEWEST, Session
from cri.api import thaw_pb2
from demo import oci
from hostlib.errors import Internal

WRK = """\
Running 2s test @ http://10.1.2.3:80/index.html
  1 threads and 8 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     6.32ms    1.04ms  15.31ms   83.17%
    Req/Sec     1.27k    84.03     1.39k    80.00%
  Latency Distribution
     50%  {p50}
     75%    6.73ms
     90%    7.31ms
     99%   10.81ms
  2531 requests in 2.00s, 662.41KB read
Requests/sec:   1263.52
Transfer/sec:    330.68KB
"""


@pytest.mark.parametrize(("p50", "ms"), [("6.11ms", 6.11), ("250.00us", 0.25), ("1.20s", 1200.0)])
def test_wrk(p50: str, ms: float) -> None:
    rate, latency = traffic.parse_wrk(WRK.format(p50=p50))
    assert rate == 1263.52
    assert latency == pytest.approx(ms)


def test_failed_requests_are_no_figure() -> None:
    text = WRK.format(p50="1.00ms") + "  Socket errors: connect 8, read 0, write 0, timeout 0\n"
    with pytest.raises(Internal, match="connect 8"):
        traffic.parse_wrk(text)
    with pytest.raises(Internal, match="something else"):
        traffic.parse_wrk("usage: wrk")


def _entry(number: int, tag: bytes = b"F", stream: bytes = b"stdout") -> bytes:
    return b" ".join([b"2026-01-01T00:00:00.1Z", stream, tag, images.line(number)]) + b"\n"


def test_lines_that_are_lost_or_wrong() -> None:
    whole = [_entry(number) for number in range(5)]
    assert traffic.lost(whole, 5) == 0
    assert traffic.lost(whole[:4], 5) == 1
    assert traffic.lost([], 5) == 5
    assert traffic.lost([*whole[:4], _entry(4, tag=b"P")], 5) == 1
    assert traffic.lost([*whole[:4], _entry(4, stream=b"stderr")], 5) == 1
    assert traffic.lost([*whole[:4], whole[4][:-30] + b"\n"], 5) == 1
    assert traffic.lost([whole[1], whole[0], *whole[2:]], 5) == 2


def test_a_line_has_its_size() -> None:
    assert len(images.line(7)) == images.LINE_BYTES - 1
    assert images.line(7).startswith(b"00000007 ")


def test_drift_compares_whole_blocks() -> None:
    # Each block begins with what the pool had ready.
    block = [1.0, 10.0, 10.0]
    assert many.drift_of([block] * 8) == 1.0
    assert many.drift_of([block] * 6 + [[2 * value for value in block]] * 2) == 2.0
    assert many.drift_of([block]) == 1.0


def test_the_timeline_has_one_axis() -> None:
    calls = lives.Calls("pod", [("RunPodSandbox", 1_000_000, 50_000_000)])
    trace = thaw_pb2.Trace(
        started_at=3_000_000,
        steps=[
            thaw_pb2.Step(name="vm", offset_ns=0, duration_ns=1_000_000),
            thaw_pb2.Step(name="total", offset_ns=0, duration_ns=40_000_000),
        ],
    )
    assert lives.timeline(calls, trace) == [
        {"who": "client", "step": "RunPodSandbox", "begin_ms": 0.0, "ms": 50.0},
        {"who": "thaw", "step": "total", "begin_ms": 2.0, "ms": 40.0},
        {"who": "thaw", "step": "vm", "begin_ms": 2.0, "ms": 1.0},
    ]


def _session(*, quick: bool = False, deadline: float = 1e9) -> Session:
    # Only the nodes need a machine, and they are not asked.
    nothing: list[str] = []
    return Session(None, None, Gate(0), quick, nothing.append, deadline)  # type: ignore[arg-type]


def test_rounds() -> None:
    clock = map(float, itertools.count())
    assert list(_session().rounds(20, 4, 1000, lambda: next(clock))) == list(range(20))
    assert list(_session(quick=True).rounds(20, 4, 1000, lambda: next(clock))) == list(range(4))


def test_a_case_that_is_slow_takes_the_fewest_rounds() -> None:
    clock = map(float, itertools.count(step=100))
    assert len(list(_session().rounds(20, 4, 10, lambda: next(clock)))) == FEWEST


def test_a_run_that_is_late_takes_one_round_of_each() -> None:
    assert list(_session(deadline=5.0).rounds(20, 4, 1000, lambda: 6.0)) == [0]
    assert list(_session(deadline=5.0).rounds(20, 0, 1000, lambda: 6.0)) == [0]


def test_an_extended_image_has_the_layers_below() -> None:
    below = oci.image([oci.Layer().file("a", "1")], {"Cmd": ["sh"]})
    above = images.extended(below, oci.Layer().file("b", "2"), oci.Layer().file("c", "3"))
    whole = oci.image(
        [oci.Layer().file(name, text) for name, text in (("a", "1"), ("b", "2"), ("c", "3"))],
        {"Cmd": ["sh"]},
    )
    assert above == whole
    assert images.repository(images.BIG) == "bench/toolchains"
