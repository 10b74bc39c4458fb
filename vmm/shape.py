"""Machine shapes: the ladder of vCPUs and memory for which base snapshots are baked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from hostlib.errors import InvalidArgument, ResourceExhausted

MIN_MEMORY_MIB: Final = 128
MAX_MEMORY_MIB: Final = 1024 * 1024
MAX_VCPUS: Final = 64

GROWTH_MIB: Final = 256 * 1024
"""How much memory a running machine can get beyond its shape's: addresses that nothing is behind,
few enough for processors with 39 bits of them."""

GROWN_VCPUS: Final = 8
"""How many vCPUs a running machine can have, where its shape has fewer. The guest's kernel keeps a
page or more for each, which is in the snapshot."""


@dataclass(frozen=True, order=True)
class MachineShape:
    """Number of vCPUs, and memory in MiB: what a snapshot is baked with."""

    vcpus: int
    memory_mib: int

    def __post_init__(self) -> None:
        if not 1 <= self.vcpus <= MAX_VCPUS:
            raise InvalidArgument(f"a machine has 1 to {MAX_VCPUS} vCPUs, not {self.vcpus}")
        if not MIN_MEMORY_MIB <= self.memory_mib <= MAX_MEMORY_MIB:
            raise InvalidArgument(
                f"a machine has {MIN_MEMORY_MIB} to {MAX_MEMORY_MIB} MiB, not {self.memory_mib}"
            )

    @property
    def memory_bytes(self) -> int:
        return self.memory_mib * 1024 * 1024

    def most(self, accel: str) -> MachineShape:
        """What a machine of this shape can grow to.

        Under TCG it keeps its vCPUs: Linux (6.12.95, for one) takes processors that may come
        for a firmware's mistake unless it knows the hypervisor, and TCG is none that it knows.
        Those that were there from the start, asleep, would cost each idle VM 0.9 MiB.
        """
        memory = min(self.memory_mib + GROWTH_MIB, MAX_MEMORY_MIB)
        vcpus = self.vcpus if accel == "tcg" else max(self.vcpus, GROWN_VCPUS)
        return MachineShape(vcpus, memory)

    def __str__(self) -> str:
        return f"{self.vcpus}x{self.memory_mib}"


LADDER: Final = tuple(
    MachineShape(vcpus, memory)
    for vcpus, memory in (
        (1, 256),
        (1, 512),
        (1, 1024),
        (2, 2048),
        (2, 4096),
        (4, 8192),
        (8, 16384),
        (16, 32768),
    )
)
"""Each step is one snapshot, baked when it is first wanted. Untouched memory costs nothing."""


def pick(vcpus: float, memory_bytes: int, ladder: Sequence[MachineShape] = LADDER) -> MachineShape:
    """The smallest shape of `ladder` that holds `vcpus` and `memory_bytes`.

    Raises `ResourceExhausted` when none does.
    """
    for shape in sorted(ladder, key=lambda shape: (shape.memory_mib, shape.vcpus)):
        if shape.vcpus >= vcpus and shape.memory_bytes >= memory_bytes:
            return shape
    raise ResourceExhausted(
        f"no machine shape holds {vcpus:g} vCPUs and {memory_bytes // 2**20} MiB",
        hint="add a larger shape to the configuration, or ask for less",
    )
