import os
import re
import threading
from pathlib import Path

import pytest

from hostlib import ids, linux


def test_a_sealed_memfd_cannot_be_changed() -> None:
    descriptor = os.memfd_create("ram", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.write(descriptor, b"base")
        assert not linux.is_sealed(descriptor)
        linux.seal(descriptor)
        assert linux.is_sealed(descriptor)
        with pytest.raises(PermissionError):
            os.pwrite(descriptor, b"evil", 0)
        with pytest.raises(PermissionError):
            os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def test_a_process_is_known_by_its_start() -> None:
    assert linux.start_time(os.getpid()) == linux.start_time(os.getpid())
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert linux.start_time(child) is None, "a zombie is dead"
    os.waitpid(child, 0)


def test_errors_carry_errno_and_path(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent"):
        linux.open_tree(str(tmp_path / "absent"))


def test_a_tree_can_be_attached_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "from").mkdir()
    (tmp_path / "from/file").write_text("here")
    (tmp_path / "to").mkdir()
    descriptor = linux.open_tree(str(tmp_path / "from"))
    try:
        linux.move_mount(descriptor, str(tmp_path / "to"))
    finally:
        os.close(descriptor)
    try:
        assert (tmp_path / "to/file").read_text() == "here"
    finally:
        linux.umount(str(tmp_path / "to"))


def test_ids_are_what_they_say(tmp_path: Path) -> None:
    assert ids.is_object_id(ids.new_object_id())
    assert ids.is_vm_id(ids.new_vm_id())
    assert not ids.is_object_id("../" + "a" * 61)
    assert ids.instance_id(tmp_path) != ids.instance_id("/")


def test_a_file_opened_read_only_stays_so_for_whoever_has_the_descriptor(tmp_path: Path) -> None:
    path = tmp_path / "layer"
    path.write_text("as it was")
    descriptor = linux.open_read_only(str(path))
    try:
        assert os.read(descriptor, 100) == b"as it was"
        for change in (
            lambda: os.fchmod(descriptor, 0o777),
            lambda: os.fchown(descriptor, 1, 1),
            lambda: os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR),
        ):
            with pytest.raises(OSError, match="Read-only file system"):
                change()
    finally:
        os.close(descriptor)
    with path.open("a") as file:
        file.write(", and the host can change it")


def test_no_two_workers_have_one_id() -> None:
    base = ids.WORKER_UID_BASE
    assert ids.worker_uid(base, 17) != ids.worker_uid(base, 18)
    assert ids.worker_uid(base, ids.WORKER_UIDS) < 1 << 31
    assert ids.worker_uid(0, 17) == 0


def test_what_threads_do_is_told_in_a_line() -> None:
    stop = threading.Event()
    other = threading.Thread(target=stop.wait)
    other.start()
    try:
        told = linux.threads(os.getpid()).split(", ")
    finally:
        stop.set()
        other.join()
    assert len(told) >= 2
    assert all(re.fullmatch(r".+ [A-Z] [0-9.]+ s", each) for each in told)
    assert linux.threads(2**30) == ""
