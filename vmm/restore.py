"""The steps of a restore: what makes a clone of a snapshot one of a kind, in order.

`docs/protocol.md` has the guest's part; the reasons are in `docs/architecture.md`.
"""

from __future__ import annotations

import base64
import contextlib
import os
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from hostlib import failpoint
from hostlib.errors import Internal, ThawError, from_dict

if TYPE_CHECKING:
    from vmm.microvm import MicroVM

STEPS: Final = (
    "verify",
    "vmgenid",
    "reseed",
    "clock",
    "network",
    "identity",
    "generation",
    "ready",
)
"""The steps of a restore, in order; each has the failpoint ``restore.<step>``."""

IN_GUEST: Final = ("reseed", "clock", "network", "identity", "generation")
"""Those that the agent carries out and confirms."""

ENTROPY: Final = 64
"""Bytes given to the guest: twice what its generator holds."""

CLOCK_TOLERANCE_NS: Final = 200_000
"""How far off a guest's clock is left."""

CLOCK_READINGS: Final = 4

Wire = dict[str, Any]


@contextlib.contextmanager
def naming(name: str) -> Iterator[None]:
    """An error of the host's part of a step says which step it was; the guest names its own."""
    try:
        yield
    except ThawError as error:
        raise from_dict(
            {**error.to_dict(), "message": f"restore step {name}: {error.message}"}
        ) from error


async def restore_guest(
    vm: MicroVM,
    network: Wire | None = None,
    identity: Wire | None = None,
    user_namespace: Wire | None = None,
) -> dict[str, int]:
    """Give the running guest fresh entropy, time and, where given, network, identity and the
    mappings of the pod's user namespace.

    Returns nanoseconds for each step. Raises `Internal` when the agent does not confirm every step
    in order, and what it answers.
    """
    params: Wire = {
        "entropy": base64.b64encode(os.urandom(ENTROPY)).decode(),
        "generation": str(uuid.uuid4()),
        "realtime_ns": time.time_ns(),
    }
    if user_namespace is not None:
        params["user_namespace"] = user_namespace
    skipped = set()
    for name, value in (("network", network), ("identity", identity)):
        if value is None:
            skipped.add(name)
        else:
            params[name] = value
    answer = await vm.agent.request("restore", params)
    steps = answer.get("steps")
    confirmed = [one for one in steps if isinstance(one, dict)] if isinstance(steps, list) else []
    wanted = [step for step in IN_GUEST if step not in skipped]
    for index, step in enumerate(wanted):
        with naming(step):
            await failpoint.hit(f"restore.{step}")
        found = confirmed[index].get("step") if index < len(confirmed) else None
        if found != step:
            raise Internal(
                f"the guest did not confirm the restore step {step}",
                hint="the pod was not started; its VM was killed",
            )
    return {str(one["step"]): int(one.get("ns") or 0) for one in confirmed[: len(wanted)]}


@dataclass(frozen=True)
class ClockReading:
    """How far a guest's clock was behind the host's, give or take `doubt`, at a time of the host's
    monotonic clock; all in nanoseconds."""

    at: int
    behind: int
    doubt: int


async def read_clock(vm: MicroVM) -> ClockReading:
    """Compare the guest's clock with the host's.

    The guest reads its clock halfway between question and answer, give or take half of the time
    between them: so the fastest of a few answers counts. Raises `Internal` when the guest does not
    say its time.
    """
    best: ClockReading | None = None
    for _ in range(CLOCK_READINGS):
        before, at = time.time_ns(), time.monotonic_ns()
        answer = await vm.agent.request("ping")
        took = time.monotonic_ns() - at
        told = answer.get("realtime_ns")
        if not isinstance(told, int):
            raise Internal("the guest does not say its time", hint="its VM was killed")
        if best is None or took < 2 * best.doubt:
            best = ClockReading(at, before + took // 2 - told, took // 2)
        if took < 2 * CLOCK_TOLERANCE_NS:
            break
    assert best is not None
    return best


async def trim_clock(vm: MicroVM) -> None:
    """The handshake that ends a restore; it also shows what the restore's way cost the clock.

    Raises `Internal` when the guest does not say its time.
    """
    behind = (await read_clock(vm)).behind
    if abs(behind) > CLOCK_TOLERANCE_NS:
        await vm.agent.request("clock.adjust", {"delta_ns": behind})
