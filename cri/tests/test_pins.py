"""Pins of network namespaces: what a shim's mount namespace keeps of them. Needs root."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from cri import pins
from hostlib import linux
from shim import sandbox


def in_mount_namespace(work: Callable[[], None]) -> None:
    """Run `work` in a mount namespace of its own whose mounts are shared, as systemd's are."""
    failed: list[BaseException] = []

    def body() -> None:
        try:
            linux.unshare(linux.CLONE_NEWNS)
            linux.mount("none", "/", flags=linux.MS_REC | linux.MS_SLAVE)
            linux.mount("none", "/", flags=linux.MS_REC | linux.MS_SHARED)
            work()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


def mounted(folder: Path) -> list[str]:
    """The mounts at and below `folder` in this thread's mount namespace."""
    lines = Path("/proc/thread-self/mountinfo").read_text().splitlines()
    found = [line.split(" ")[4].replace("\\040", " ") for line in lines]
    return [each for each in found if each == str(folder) or each.startswith(f"{folder}/")]


def a_shim_is_born(folder: Path, number: int) -> list[str]:
    """What a shim's namespace holds of `folder` once it is made."""
    found: list[str] = []

    def body() -> None:
        sandbox.make_network_namespace(folder / f"vm{number:06}")
        sandbox.make_mount_namespace(folder.parent / f"share{number}", folder)
        found.extend(mounted(folder))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    return found


def test_no_shim_holds_the_pins_of_others(tmp_path: Path) -> None:
    folder = tmp_path / "net ns"
    folder.mkdir()

    def work() -> None:
        pins.open_folder(folder)
        pins.open_folder(folder)
        assert mounted(folder) == [str(folder)]
        held = [a_shim_is_born(folder, number) for number in range(5)]
        assert held == [[]] * 5
        assert len(mounted(folder)) == 6
        # With pins in it, it stays for the next daemon.
        pins.close_folder(folder)
        assert len(mounted(folder)) == 6
        for pin in list(folder.iterdir()):
            linux.umount(str(pin))
            pin.unlink()
        pins.close_folder(folder)
        pins.close_folder(folder)
        assert mounted(folder) == []

    in_mount_namespace(work)


def test_pins_of_a_former_daemon_are_not_hidden(tmp_path: Path) -> None:
    def work() -> None:
        a_shim_is_born(tmp_path, 1)
        pins.open_folder(tmp_path)
        assert mounted(tmp_path) == [str(tmp_path / "vm000001")]

    in_mount_namespace(work)
