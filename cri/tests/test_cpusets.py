"""Lists of processors, and which of its VM's a container gets."""

from __future__ import annotations

import os
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri import cpusets
from hostlib.errors import InvalidArgument


@given(st.frozensets(st.integers(0, 65535), min_size=1, max_size=40))
def test_lists_are_read_as_they_are_written(numbers: frozenset[int]) -> None:
    assert cpusets.parse(cpusets.text(numbers)) == numbers


@given(st.text(alphabet="0123456789-, \n", max_size=30))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        assert cpusets.parse(text)
    except InvalidArgument as error:
        assert error.hint


@pytest.mark.parametrize("bad", ["", "1-", "3-1", "-1", "1,,2", "a", "70000", "1" * 5000])
def test_what_is_no_list(bad: str) -> None:
    with pytest.raises(InvalidArgument):
        cpusets.parse(bad)


def test_what_the_kernel_writes() -> None:
    assert cpusets.parse("0-2,5\n") == {0, 1, 2, 5}


def test_a_container_gets_the_processors_that_others_use_least() -> None:
    assert cpusets.guest_cpus("", 4, ["0"]) == ""
    assert cpusets.guest_cpus("8", 4, []) == "0"
    assert cpusets.guest_cpus("8-9", 4, ["0", "", "1"]) == "2,3"
    assert cpusets.guest_cpus("8", 2, ["0", "1", "0"]) == "1"
    assert cpusets.guest_cpus("4-9", 4, ["0"]) == "0,1,2,3"


def test_a_pod_runs_where_any_of_its_containers_may() -> None:
    assert cpusets.union(["0-1", "4"]) == {0, 1, 4}
    assert cpusets.union(["0-1", ""]) == frozenset()
    assert cpusets.union([]) == frozenset()


def test_a_process_is_kept_to_processors_and_let_go() -> None:
    with subprocess.Popen(["/bin/sleep", "60"]) as process:
        one = frozenset({min(cpusets.own())})
        assert cpusets.pinned(process.pid) == frozenset()
        cpusets.pin(process.pid, one)
        assert os.sched_getaffinity(process.pid) == one
        cpusets.pin(process.pid, frozenset())
        assert os.sched_getaffinity(process.pid) == cpusets.own()
        process.kill()
    cpusets.pin(process.pid, one)
    assert cpusets.pinned(process.pid) == frozenset()
