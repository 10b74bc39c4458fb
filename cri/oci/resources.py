"""A container's resources: checked, merged with an update, and as its guest's cgroups limit them.

CPU sets name the node's processors, which a guest does not see: `cri.cpusets` says what becomes of
them. All else is the guest's own to keep.
"""

from __future__ import annotations

import re
from typing import Any, Final

from cri import cpusets
from cri.api import v1_pb2 as v1
from hostlib.devices import default_rules
from hostlib.errors import InvalidArgument, Unimplemented

UNLIMITED: Final = -1

_PERIOD: Final = range(1000, 1_000_001)
_MIN_QUOTA: Final = 1000
_OOM_SCORE: Final = range(-1000, 1001)
_HUGE_PAGE: Final = "2MB"
_PAGE_SIZE: Final = re.compile(r"[1-9][0-9]{0,5}[KMGT]B")
_UNIFIED: Final = re.compile(r"[a-z]{1,16}(\.[A-Za-z0-9_]{1,32}){1,3}")
_MAX_UNIFIED: Final = 64
_MAX_VALUE: Final = 4096

_NUMBERS: Final = (
    "cpu_period",
    "cpu_quota",
    "cpu_shares",
    "memory_limit_in_bytes",
    "memory_swap_limit_in_bytes",
    "oom_score_adj",
)
_TYPED: Final = {"cpuset": "cpuset_cpus and cpuset_mems", "hugetlb": "hugepage_limits"}


def check(wanted: v1.LinuxContainerResources) -> None:
    """Refuse what no container can have. Raises `InvalidArgument`, `Unimplemented`."""
    for name in ("cpu_quota", "memory_limit_in_bytes", "memory_swap_limit_in_bytes"):
        if getattr(wanted, name) < UNLIMITED:
            raise InvalidArgument(
                f"{name} is {getattr(wanted, name)}", hint="a positive number; -1 is no limit"
            )
    if wanted.cpu_period and wanted.cpu_period not in _PERIOD:
        raise InvalidArgument(
            f"cpu_period is {wanted.cpu_period}", hint="1000 to 1000000 microseconds"
        )
    if 0 < wanted.cpu_quota < _MIN_QUOTA:
        raise InvalidArgument(
            f"cpu_quota is {wanted.cpu_quota}", hint=f"{_MIN_QUOTA} microseconds or more"
        )
    if wanted.cpu_shares < 0:
        raise InvalidArgument(f"cpu_shares is {wanted.cpu_shares}", hint="2 to 262144")
    if wanted.oom_score_adj not in _OOM_SCORE:
        raise InvalidArgument(f"oom_score_adj is {wanted.oom_score_adj}", hint="-1000 to 1000")
    _check_swap(wanted.memory_limit_in_bytes, wanted.memory_swap_limit_in_bytes)
    cpusets.check(wanted.cpuset_cpus, wanted.cpuset_mems)
    for limit in wanted.hugepage_limits:
        if _PAGE_SIZE.fullmatch(limit.page_size) is None:
            raise InvalidArgument(
                f"page size {limit.page_size[:80]!r} is none", hint='for example "2MB"'
            )
        if limit.limit and limit.page_size != _HUGE_PAGE:
            raise Unimplemented(
                f"a microVM has no huge pages of {limit.page_size}", hint=f"ask for {_HUGE_PAGE}"
            )
        if limit.limit >= 2**63:
            raise InvalidArgument(f"the limit of huge pages is {limit.limit} bytes")
    _check_unified(wanted.unified)


def _check_swap(memory: int, swap: int) -> None:
    if swap > 0 and memory <= 0:
        raise InvalidArgument(
            "memory_swap_limit_in_bytes needs memory_limit_in_bytes",
            hint="it is the sum of memory and swap; -1 is no limit",
        )
    if 0 < swap < memory:
        raise InvalidArgument(
            f"memory_swap_limit_in_bytes ({swap}) is below memory_limit_in_bytes ({memory})",
            hint="it is the sum of memory and swap",
        )


def _check_unified(unified: Any) -> None:
    if len(unified) > _MAX_UNIFIED:
        raise InvalidArgument(f"unified has more than {_MAX_UNIFIED} keys")
    for name, value in unified.items():
        if _UNIFIED.fullmatch(name) is None or name.startswith("cgroup."):
            raise InvalidArgument(
                f"unified: {name[:80]!r} is no setting of a controller",
                hint='for example "memory.high"',
            )
        if (typed := _TYPED.get(name.split(".")[0])) is not None:
            raise InvalidArgument(f"unified: {name} is set by {typed}")
        if name in ("memory.reclaim", "memory.peak") or name.endswith(".pressure"):
            raise InvalidArgument(f"unified: {name} is no setting but an action")
        if len(value) > _MAX_VALUE or "\0" in value or not value:
            raise InvalidArgument(
                f"unified: the value of {name} is empty, holds a NUL or is longer than {_MAX_VALUE}"
            )


def merge(
    present: v1.LinuxContainerResources, update: v1.LinuxContainerResources
) -> v1.LinuxContainerResources:
    """What is in force after an update: what it leaves out, or sets to 0, stays as it is.

    Checked as a whole. Raises as `check`.
    """
    check_alone = v1.LinuxContainerResources()
    check_alone.CopyFrom(update)
    if update.memory_swap_limit_in_bytes > 0 and not update.memory_limit_in_bytes:
        check_alone.memory_limit_in_bytes = present.memory_limit_in_bytes
    check(check_alone)
    merged = v1.LinuxContainerResources()
    merged.CopyFrom(present)
    for name in _NUMBERS:
        if value := getattr(update, name):
            setattr(merged, name, value)
    memory, swap = merged.memory_limit_in_bytes, merged.memory_swap_limit_in_bytes
    if update.memory_limit_in_bytes and not update.memory_swap_limit_in_bytes and swap > 0:
        # As much swap beside it as before.
        before = present.memory_limit_in_bytes
        merged.memory_swap_limit_in_bytes = UNLIMITED if memory < 0 else memory + swap - before
    for name in ("cpuset_cpus", "cpuset_mems"):
        if value := getattr(update, name):
            setattr(merged, name, value)
    if update.hugepage_limits:
        limits = {each.page_size: each.limit for each in present.hugepage_limits}
        limits.update({each.page_size: each.limit for each in update.hugepage_limits})
        del merged.hugepage_limits[:]
        for size, limit in limits.items():
            merged.hugepage_limits.add(page_size=size, limit=limit)
    merged.unified.update(update.unified)
    check(merged)
    return merged


def limits(wanted: v1.LinuxContainerResources, cpus: str) -> dict[str, Any]:
    """The spec's `linux.resources` but for devices; `cpus` are the guest's own (`cri.cpusets`)."""
    memory = {
        "limit": wanted.memory_limit_in_bytes,
        "swap": wanted.memory_swap_limit_in_bytes,
    }
    cpu = {
        "shares": wanted.cpu_shares,
        "quota": wanted.cpu_quota,
        "period": wanted.cpu_period,
        "cpus": cpus,
    }
    found: dict[str, Any] = {
        "memory": {key: value for key, value in memory.items() if value},
        "cpu": {key: value for key, value in cpu.items() if value},
        "hugepageLimits": [
            {"pageSize": each.page_size, "limit": each.limit} for each in wanted.hugepage_limits
        ],
        "unified": dict(wanted.unified),
    }
    return {key: value for key, value in found.items() if value}


def resources(
    wanted: v1.LinuxContainerResources, *, privileged: bool, cpus: str = ""
) -> dict[str, Any]:
    """The spec's `linux.resources`. Raises as `check`."""
    check(wanted)
    found = limits(wanted, cpus)
    # No rules are no filter: a privileged container may use every device of its VM.
    if not privileged:
        found["devices"] = default_rules()
    return found
