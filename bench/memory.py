"""Private memory of a process, the code that TCG translated apart."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

_MAPPING: Final = re.compile(r"^[0-9a-f]+-[0-9a-f]+ (\S{4}) \S+ \S+ (\d+)")
_MIB: Final = 1024


def private_mib(pid: int) -> tuple[float, float]:
    """Private memory in MiB: all of it, and of that the anonymous memory that holds code.

    QEMU's translation buffer is its only anonymous mapping that is writable and executable.
    """
    total = translated = 0
    is_code = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if (mapping := _MAPPING.match(line)) is not None:
            is_code = mapping[1].startswith("rwx") and mapping[2] == "0"
        elif line.startswith(("Private_Clean:", "Private_Dirty:")):
            size = int(line.split()[1])
            total += size
            translated += size if is_code else 0
    return total / _MIB, translated / _MIB
