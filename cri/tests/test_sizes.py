"""How large a pod's VM must be and may become: decisions alone."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri import cgroups, sizes
from cri.api import v1_pb2 as v1
from cri.config import Config, Vm
from cri.shapes import Size
from hostlib.errors import ResourceExhausted

MIB = 2**20
Resources = v1.LinuxContainerResources
BASE = Size(1, 2048)
MOST = Size(8, 2048 + 262144)
NODE = Size(4, 32000)


def sandbox(**fields: Any) -> v1.PodSandboxConfig:
    linux = v1.LinuxPodSandboxConfig(resources=Resources(**fields))
    return v1.PodSandboxConfig(linux=linux)


def memory(mib: int, **fields: Any) -> Resources:
    return Resources(memory_limit_in_bytes=mib * MIB, **fields)


def test_each_container_must_fit_and_all_of_them_in_a_pod_with_a_limit() -> None:
    both = [memory(1000, cpu_quota=150_000), memory(3000, cpu_quota=100_000)]
    assert sizes.needed(v1.PodSandboxConfig(), both) == (1.5, 3000)
    limited = sandbox(memory_limit_in_bytes=2000 * MIB, cpu_quota=100_000)
    assert sizes.needed(limited, both) == (2.5, 4000)
    assert sizes.needed(limited, [*both, Resources()]) == (1.5, 3000)
    assert sizes.needed(limited, []) == (1, 2000)
    overhead = sandbox(memory_limit_in_bytes=2000 * MIB)
    overhead.linux.overhead.memory_limit_in_bytes = 100 * MIB
    assert sizes.needed(overhead, both) == (1.5, 4100)
    pages = memory(10)
    pages.hugepage_limits.add(page_size="2MB", limit=20 * MIB)
    assert sizes.needed(v1.PodSandboxConfig(), [pages]) == (0, 30)
    none = Resources(memory_limit_in_bytes=-1, cpu_quota=-1)
    assert sizes.needed(v1.PodSandboxConfig(), [none]) == (0, 0)


def test_what_a_vm_may_become() -> None:
    config = Config()
    assert sizes.ceiling(BASE, MOST, NODE, config) == Size(4, 2048 + 234 * 128)
    # What its machine cannot, what its shape exceeds.
    assert sizes.ceiling(BASE, BASE, NODE, config) == BASE
    assert sizes.ceiling(Size(8, 65536), Size(8, 327680), NODE, config) == Size(8, 65536)
    vm = dataclasses.replace(Vm(), max_memory_mib=4096, max_cpus=2)
    config = dataclasses.replace(config, vm=vm)
    assert sizes.ceiling(BASE, MOST, NODE, config) == Size(2, 4096)


def test_a_vm_stays_as_it_is_while_it_holds_its_pod() -> None:
    assert sizes.plan(BASE, NODE, 1, BASE.room) == BASE
    assert sizes.plan(BASE, NODE, 0.5, 0) == BASE
    assert sizes.plan(BASE, NODE, 1.1, BASE.room + 1) == Size(2, 2048 + 128)


def test_what_no_vm_can_be_is_refused_with_what_bounds_it() -> None:
    top = Size(4, 4096)
    assert sizes.plan(BASE, top, 4, top.room) == top
    for cpus, mib in ((4.1, 0), (0, top.room + 1)):
        with pytest.raises(ResourceExhausted) as caught:
            sizes.plan(BASE, top, cpus, mib)
        assert "vm.max_memory_mib" in str(caught.value)
        assert "1x2048" in str(caught.value)


@given(
    st.integers(128, 70_000),
    st.integers(0, 2000),
    st.integers(0, 400_000),
    st.floats(0, 64, allow_nan=False),
)
def test_a_plan_holds_what_is_asked_and_no_block_more(
    base_mib: int, blocks: int, mib: int, cpus: float
) -> None:
    base = Size(2, base_mib)
    top = Size(32, base_mib + blocks * sizes.BLOCK_MIB)
    try:
        found = sizes.plan(base, top, cpus, mib)
    except ResourceExhausted:
        assert cpus > top.vcpus or mib > top.room
        return
    assert base.within(found)
    assert found.within(top)
    assert found.vcpus >= cpus
    assert found.room >= mib or found == base
    assert (found.memory_mib - base_mib) % sizes.BLOCK_MIB == 0
    if found.memory_mib > base_mib:
        assert Size(1, found.memory_mib - sizes.BLOCK_MIB).room < mib


def test_what_growth_costs_is_in_the_pods_group() -> None:
    assert cgroups.growth_mib(0, 30_000) == 0
    assert cgroups.growth_mib(4800, 8192) == 1 + 100 + 1
