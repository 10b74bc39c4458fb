from __future__ import annotations

import os

from hypothesis import given
from hypothesis import strategies as st

from bench import memory

SMAPS = """\
55d0c0a00000-55d0c0b00000 r-xp 00000000 fe:00 1234       /usr/bin/qemu-system-x86_64
Size:               1024 kB
Rss:                1024 kB
Pss:                 512 kB
Private_Clean:         0 kB
Private_Dirty:         0 kB
7f0000000000-7f0004000000 rwxp 00000000 00:00 0
Pss:                2048 kB
Private_Clean:         0 kB
Private_Dirty:      2048 kB
VmFlags: rd wr ex mr
7f1000000000-7f1004000000 rw-p 00000000 00:00 0          [heap]
Pss:                1024 kB
Private_Clean:       256 kB
Private_Dirty:       768 kB
7f2000000000-7f2004000000 rwxp 00000000 fe:00 77         /usr/lib/with-code.so
Pss:                1024 kB
Private_Dirty:      1024 kB
"""


def test_translated_code_is_anonymous_and_executable() -> None:
    found = memory.parse(SMAPS.splitlines())
    assert found == memory.Memory(private=4.0, code=2.0, share=4.5)


def test_sums() -> None:
    one = memory.parse(SMAPS.splitlines())
    assert one + one == memory.Memory(private=8.0, code=4.0, share=9.0)


@given(st.lists(st.text(alphabet=st.characters(blacklist_categories=["Cs"]), max_size=60)))
def test_other_lines_are_left_out(lines: list[str]) -> None:
    harmless = [line for line in lines if not line.startswith(("Private_", "Pss:"))]
    assert memory.parse(harmless) == memory.Memory()


def test_this_process() -> None:
    assert 1 < memory.of(os.getpid()).private < 10_000
    assert memory.resident_mib(os.getpid()) > 1
    assert memory.of(2**22 + 1) == memory.Memory()
    assert memory.available_mib() > 0
