"""Resources: what is refused, what an update leaves, and what bounds a pod."""

from __future__ import annotations

from typing import Any

import pytest

from cri import pod_limits, shapes
from cri.api import v1_pb2 as v1
from cri.oci.resources import check, limits, merge
from cri.pod_limits import LEAST_MIB, Bounds
from hostlib.cgroup import Above, Limits
from hostlib.errors import FailedPrecondition, InvalidArgument, ThawError

MIB = 2**20
Resources = v1.LinuxContainerResources
WORKER = 320


def pages(size: str, limit: int) -> v1.HugepageLimit:
    return v1.HugepageLimit(page_size=size, limit=limit)


@pytest.mark.parametrize(
    "fields",
    [
        {"cpu_period": 999},
        {"cpu_period": 1_000_001},
        {"cpu_quota": 999},
        {"cpu_quota": -2},
        {"cpu_shares": -1},
        {"memory_limit_in_bytes": -2},
        {"memory_swap_limit_in_bytes": 5},
        {"memory_limit_in_bytes": 9, "memory_swap_limit_in_bytes": 8},
        {"oom_score_adj": -1001},
        {"cpuset_cpus": "x"},
        {"cpuset_mems": "99"},
        {"hugepage_limits": [pages("2 MB", 1)]},
        {"hugepage_limits": [pages("1GB", 1)]},
        {"hugepage_limits": [pages("2MB", 2**63)]},
        {"unified": {"memory": "1"}},
        {"unified": {"cgroup.procs": "1"}},
        {"unified": {"memory/../cgroup.procs": "1"}},
        {"unified": {"memory.reclaim": "1"}},
        {"unified": {"memory.pressure": "some 1 1"}},
        {"unified": {"hugetlb.2MB.max": "1"}},
        {"unified": {"memory.high": ""}},
        {"unified": {"memory.high": "1\0"}},
        {"unified": {"memory.high": "1" * 5000}},
        {"unified": {f"memory.x{number}": "1" for number in range(65)}},
    ],
)
def test_what_no_container_can_have(fields: dict[str, Any]) -> None:
    with pytest.raises(ThawError) as caught:
        check(Resources(**fields))
    assert caught.value.code in ("INVALID_ARGUMENT", "UNIMPLEMENTED")
    with pytest.raises(ThawError):
        merge(Resources(), Resources(**fields))


def test_no_limit_is_a_limit_too() -> None:
    check(Resources(cpu_quota=-1, memory_limit_in_bytes=-1, memory_swap_limit_in_bytes=-1))


def test_an_update_changes_what_it_names() -> None:
    present = Resources(
        cpu_quota=50_000,
        cpu_period=100_000,
        memory_limit_in_bytes=64 * MIB,
        memory_swap_limit_in_bytes=80 * MIB,
        oom_score_adj=5,
        hugepage_limits=[pages("2MB", 4 * MIB)],
        unified={"memory.high": "1", "pids.max": "9"},
    )
    assert merge(present, Resources()) == present
    update = Resources(
        cpu_quota=-1,
        memory_limit_in_bytes=32 * MIB,
        hugepage_limits=[pages("1GB", 0)],
        unified={"pids.max": "10"},
    )
    merged = merge(present, update)
    assert (merged.cpu_quota, merged.cpu_period, merged.oom_score_adj) == (-1, 100_000, 5)
    # As much swap beside it as before: the sum goes with the limit.
    assert merged.memory_swap_limit_in_bytes == 48 * MIB
    assert dict(merged.unified) == {"memory.high": "1", "pids.max": "10"}
    assert {each.page_size: each.limit for each in merged.hugepage_limits} == {
        "2MB": 4 * MIB,
        "1GB": 0,
    }
    assert merge(present, Resources(memory_swap_limit_in_bytes=70 * MIB))
    with pytest.raises(InvalidArgument):
        merge(present, Resources(memory_swap_limit_in_bytes=60 * MIB))


def test_what_the_guest_is_told() -> None:
    wanted = Resources(cpu_shares=2, cpuset_cpus="7", hugepage_limits=[pages("2MB", 0)])
    assert limits(wanted, "0") == {
        "cpu": {"shares": 2, "cpus": "0"},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 0}],
    }


def sandbox(resources: Resources, overhead: Resources | None = None) -> v1.PodSandboxConfig:
    linux = v1.LinuxPodSandboxConfig(resources=resources, overhead=overhead)
    return v1.PodSandboxConfig(linux=linux)


def test_a_vm_has_the_processors_that_a_pod_claims() -> None:
    assert shapes.wanted(sandbox(Resources(cpu_shares=1536))) == (1.5, 0)
    both = sandbox(
        Resources(cpu_quota=200_000, cpu_shares=102),
        Resources(cpu_quota=5000, memory_limit_in_bytes=MIB + 1),
    )
    assert shapes.wanted(both) == (2, 2)
    assert shapes.quota(Resources(cpu_quota=-1, cpu_period=5000)) == 0


def bounds(
    config: v1.PodSandboxConfig, *containers: Resources, above: Above | None = None
) -> Bounds:
    return pod_limits.of(config, containers, above=above or Above(), worker_mib=WORKER)


def test_a_group_is_limited_while_each_container_is() -> None:
    config = sandbox(Resources(memory_limit_in_bytes=100 * MIB, cpu_quota=100_000))
    one = Resources(memory_limit_in_bytes=64 * MIB, cpu_quota=50_000)
    assert bounds(config, one) == Bounds(Limits((100 + WORKER) * MIB, 1.5), 100 * MIB)
    # More than the pod's sum: a container was changed, and the pod was not yet.
    more = Resources(memory_limit_in_bytes=80 * MIB, cpu_quota=100_000)
    assert bounds(config, one, more) == Bounds(Limits((144 + WORKER) * MIB, 2.0), 144 * MIB)
    # The sum of some says nothing of all.
    assert bounds(config, one, Resources()) == Bounds()
    assert bounds(sandbox(Resources()), one) == Bounds()
    huge = Resources(memory_limit_in_bytes=90 * MIB, hugepage_limits=[pages("2MB", 20 * MIB)])
    assert bounds(config, huge).group.memory == (110 + WORKER) * MIB


def test_a_guest_stays_within_the_groups_above() -> None:
    config = sandbox(Resources(memory_limit_in_bytes=100 * MIB, cpu_quota=100_000))
    above = Above((90 + WORKER) * MIB, cpu=True)
    assert bounds(config, above=above) == Bounds(Limits((100 + WORKER) * MIB), 90 * MIB)
    assert bounds(config, Resources(), above=above) == Bounds(Limits(), 90 * MIB)
    assert bounds(config, above=Above(WORKER * MIB)).guest == LEAST_MIB * MIB


def test_a_vm_that_has_grown_is_bounded_by_what_it_has() -> None:
    free = sandbox(Resources())
    found = pod_limits.of(free, [], above=Above(), worker_mib=WORKER, grown_mib=1024)
    assert found == Bounds(Limits((1024 + WORKER) * MIB))
    config = sandbox(Resources(memory_limit_in_bytes=100 * MIB))
    found = pod_limits.of(config, [], above=Above(), worker_mib=WORKER, grown_mib=1024)
    assert found == Bounds(Limits((100 + WORKER) * MIB), 100 * MIB)


def test_memory_that_a_vm_holds_is_not_taken_from_it() -> None:
    pod_limits.check_shrink(200 * MIB, 100 * MIB, (100 + WORKER) * MIB, WORKER)
    pod_limits.check_shrink(100 * MIB, 200 * MIB, 4096 * MIB, WORKER)
    with pytest.raises(FailedPrecondition):
        pod_limits.check_shrink(200 * MIB, 100 * MIB, (101 + WORKER) * MIB, WORKER)
