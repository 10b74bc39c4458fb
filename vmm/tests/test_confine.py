import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from hostlib import ids
from hostlib.errors import FailedPrecondition
from vmm.accel import Accelerator
from vmm.microvm import MicroVM
from vmm.qemu.confine import STAND_INS, Confinement
from vmm.snapshot import Snapshot

QEMU = Path("/usr/bin/qemu-system-x86_64")
UID = ids.WORKER_UID_BASE + 1


def confined(confinement: Confinement, *argv: str) -> tuple[int, str]:
    """The exit code and the output of a program that runs as the worker would."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.dup2(writer, 1)
            os.dup2(writer, 2)
            confinement.enter()
            os.execv(argv[0], argv)
        finally:
            os._exit(99)
    os.close(writer)
    with open(reader) as source:
        output = source.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), output


def functions(library: Path) -> set[str]:
    """The names of Capstone's and libpmem's functions among a library's strings."""
    found = re.findall(rb"\0((?:cs|pmem)_[a-z_]+)(?=\0)", library.read_bytes())
    return {name.decode() for name in found}


def test_what_a_worker_sees(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, output = confined(
        Confinement(UID, tmp_path, QEMU), "/usr/bin/find", "/", "-maxdepth", "1"
    )
    seen = {line for line in output.split() if line.startswith("/")}
    links = {f"/{name}" for name in ("bin", "lib", "lib32", "lib64") if Path(f"/{name}").exists()}
    assert code == 0
    assert seen == {"/", "/etc", "/proc", "/share", "/usr"} | links
    assert confined(Confinement(UID, tmp_path, QEMU), "/usr/bin/ls", "/share") == (0, "file\n")
    assert (tmp_path / "file").exists(), "the host's folder is not covered"


def test_what_a_worker_is(tmp_path: Path) -> None:
    code, output = confined(Confinement(UID, tmp_path, QEMU), "/usr/bin/id", "-u")
    assert (code, output) == (0, f"{UID}\n")
    code, output = confined(Confinement(UID, tmp_path, QEMU), "/usr/bin/id", "-G")
    assert (code, output) == (0, f"{UID}\n")
    touch = ("/usr/bin/touch", "/share/made")
    assert confined(Confinement(UID, tmp_path, QEMU), *touch) == (0, "")
    assert (tmp_path / "made").stat().st_uid == UID


def test_a_device_that_it_needs_opens(tmp_path: Path) -> None:
    read = ("/usr/bin/head", "-c", "2", "/dev/zero")
    assert confined(Confinement(UID, tmp_path, QEMU, ("/dev/zero",)), *read) == (0, "\0\0")
    code, output = confined(Confinement(UID, tmp_path, QEMU), *read)
    assert code != 0
    assert "No such file" in output


def test_an_installation_outside_of_usr_is_seen_with_what_is_beside_it(tmp_path: Path) -> None:
    share, prefix = tmp_path / "share", tmp_path / "own"
    share.mkdir()
    for name in ("bin", "libexec"):
        (prefix / name).mkdir(parents=True)
    program = prefix / "bin" / "qemu"
    shutil.copy("/usr/bin/env", program)
    (prefix / "libexec" / "data").write_text("firmware")
    (tmp_path / "secret").touch()
    listing = (str(program), "/usr/bin/ls", str(tmp_path), str(prefix / "libexec"))
    code, output = confined(Confinement(UID, share, program), *listing)
    assert code == 0
    assert "data" in output
    assert "secret" not in output


@pytest.mark.parametrize(("covered", "built"), STAND_INS)
def test_a_library_that_only_costs_memory_has_a_stand_in(
    covered: str, built: str, tmp_path: Path
) -> None:
    compare = ("/usr/bin/cmp", covered, "/share/built")
    shutil.copy(built, tmp_path / "built")
    assert confined(Confinement(UID, tmp_path, QEMU), *compare) == (0, "")
    code, _ = confined(Confinement(UID, tmp_path, QEMU, stand_ins=()), *compare)
    assert code == 1, "they are the same"


@pytest.mark.parametrize(("covered", "built"), STAND_INS)
def test_the_stand_in_has_every_function_that_the_library_has(covered: str, built: str) -> None:
    has = {path: functions(Path(path)) for path in (covered, built)}
    assert has[covered]
    assert has[built] >= has[covered]


def test_each_library_without_a_use_has_a_stand_in() -> None:
    assert {Path(covered).name.partition(".so")[0] for covered, _ in STAND_INS} == {
        "libcapstone",
        "libpmem",
    }


def test_a_worker_is_told_of_short_cache_lines_and_else_the_truth() -> None:
    _, built = STAND_INS[0]

    def conf(name: str, **environment: str) -> int:
        argv = ("/usr/bin/getconf", name)
        return int(subprocess.run(argv, env=environment, capture_output=True, check=True).stdout)

    assert conf("LEVEL1_ICACHE_LINESIZE", LD_PRELOAD=built) == 16
    for name in ("LEVEL1_DCACHE_LINESIZE", "PAGESIZE", "_NPROCESSORS_CONF"):
        assert conf(name, LD_PRELOAD=built) == conf(name)


def test_why_a_worker_cannot_be_confined_is_said(tmp_path: Path) -> None:
    assert Confinement(UID, tmp_path, QEMU).probe() == ""
    assert "No such file" in Confinement(UID, tmp_path / "absent", QEMU).probe()


async def test_a_vm_whose_worker_cannot_be_confined_does_not_start(
    snapshot: Snapshot, ram_fd: int, accelerator: Accelerator, qemu: str, tmp_path: Path
) -> None:
    before = os.listdir("/proc/self/fd")
    with pytest.raises(FailedPrecondition, match=r"cannot be confined: .*No such file") as caught:
        await MicroVM.restore(
            snapshot,
            ram_fd=ram_fd,
            tap_fd=None,
            share=tmp_path / "absent",
            accel=accelerator,
            qemu=qemu,
        )
    assert caught.value.hint
    assert len(os.listdir("/proc/self/fd")) == len(before)
