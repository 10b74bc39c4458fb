"""The rows of the benchmark: what each figure is, which way is better, and the goal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from bench.samples import Figures, Series

THAW: Final = "thaw"
PEER: Final = "containerd"

Better = Literal["less", "more"]


@dataclass(frozen=True)
class Row:
    """One figure. `ratio` is a goal for Thaw / peer, `limit` one for Thaw's own value, in `unit`.

    With `better` "more" both are lower bounds, else upper ones. `statistic` says what stands for
    the samples.
    """

    key: str
    title: str
    unit: str
    better: Better = "less"
    ratio: float | None = None
    limit: float | None = None
    statistic: Literal["median", "p99"] = "median"

    def value(self, series: Series) -> float:
        return series.median if self.statistic == "median" else series.percentile(99)


@dataclass(frozen=True)
class Verdict:
    """What came out for a row; None where it was not measured, or where there is no goal."""

    row: Row
    thaw: float | None
    peer: float | None
    met: bool | None

    @property
    def ratio(self) -> float | None:
        """Thaw / peer."""
        if self.thaw is None or not self.peer:
            return None
        return self.thaw / self.peer


ROWS: Final = (
    Row("run_cni", "RunPodSandbox, CNI bridge", "ms", ratio=0.8),
    Row("run", "RunPodSandbox, built-in network", "ms", ratio=0.35),
    Row("up1", "Pod and container up, 1 layer", "ms", ratio=0.7),
    Row("up7", "Pod and container up, 7 layers", "ms", ratio=0.8),
    Row("first_exec", "First ExecSync true", "ms", ratio=3.0),
    Row("exec", "ExecSync true", "ms", ratio=1.0),
    Row("remove", "Stop and remove, grace 0", "ms", ratio=0.5),
    Row("parallel10", "10 pods in parallel, all up", "ms", ratio=1.0),
    Row("parallel50", "50 pods in parallel, all up", "ms", ratio=4.0),
    Row("lives_rate", "Pod lives, refilling counted", "1/s", "more", ratio=0.6),
    Row("lives_drift", "Pod up, last quarter of lives / first", "x", limit=1.1),
    Row("lives_growth", "Daemon's memory, growth over the lives", "MiB", limit=5.0),
    Row("drained", "Pod up, pool drained", "ms", ratio=4.0),
    Row("pull_cold", "Cold pull, 7 layers", "ms", ratio=0.8),
    Row("pull_present", "Pull again, present", "ms", ratio=1.0),
    Row("log_rate", "Log throughput to the CRI file", "MB/s", "more", ratio=1.0),
    Row("log_lost", "Log lines lost or wrong", "lines", limit=0.0),
    Row("stream_exec_rate", "exec's output, SPDY", "MB/s", "more", limit=60.0),
    Row("stream_forward_rate", "Port-forward, 1 connection", "MB/s", "more", limit=40.0),
    Row("stream_forward50_rate", "Port-forward, 50 connections", "MB/s", "more", limit=40.0),
    Row("stream_echo", "A key's echo by a terminal", "ms", limit=5.0),
    Row("stream_true", "exec true by SPDY, connect to exit", "ms", ratio=1.3),
    Row("http_host_rate", "HTTP, host to pod", "requests/s", "more"),
    Row("http_host_p50", "HTTP latency, host to pod", "ms"),
    Row("http_pod_rate", "HTTP, pod to pod", "requests/s", "more"),
    Row("http_pod_p50", "HTTP latency, pod to pod", "ms"),
    Row("list_p99", "List pods + containers, 200, p99", "ms", limit=5.0, statistic="p99"),
    Row("list_p99_beside", "The same, beside the other's 100 pods", "ms", statistic="p99"),
    Row("idle_cpu", "20 idle pods, of one core", "%", limit=2.0),
    Row("idle_memory", "Idle pod, private memory", "MiB", limit=56.0),
    Row("idle_memory_code", "Idle pod, besides translated code", "MiB", limit=32.0),
    Row("idle_shim", "Idle pod, of it the shim", "MiB", limit=5.0),
    Row("daemon_memory_0", "Daemon's memory, no pod", "MiB", limit=80.0),
    Row("daemon_memory_50", "Daemon's memory, 50 pods", "MiB", limit=80.0),
    Row("daemon_start", "Daemon's start, to ready", "ms", limit=1000.0),
    Row("adoption50", "Daemon's start with 50 pods, all known", "ms", limit=2000.0),
    Row("cold_boot", "Cold boot, to the agent's answer", "ms"),
    Row("restore", "Cold restore, to the agent's answer", "ms"),
    Row("restore_speedup", "Cold boot / cold restore", "x", "more", limit=35.0),
)

BY_KEY: Final = {row.key: row for row in ROWS}


def judge(row: Row, figures: Figures) -> Verdict:
    """Compare what was measured with the row's goal."""
    ours, theirs = figures.get((row.key, THAW)), figures.get((row.key, PEER))
    thaw = row.value(ours) if ours is not None else None
    peer = row.value(theirs) if theirs is not None else None
    verdict = Verdict(row, thaw, peer, None)
    goal, value = (row.ratio, verdict.ratio) if row.ratio is not None else (row.limit, thaw)
    if goal is None or value is None:
        return verdict
    return Verdict(row, thaw, peer, value <= goal if row.better == "less" else value >= goal)
