import stat

import pytest

from hostlib.errors import DataLoss, FailedPrecondition
from vmm.guest_image import cpio, kernel, modules
from vmm.guest_image.build import initramfs

DEP = """kernel/a.ko.xz:
kernel/squashfs.ko.xz: kernel/zlib.ko.xz
kernel/zlib.ko.xz:
kernel/9pnet_virtio.ko.xz: kernel/9pnet.ko.xz
kernel/9pnet.ko.xz:
kernel/ext4.ko.xz: kernel/jbd2.ko.xz kernel/mbcache.ko.xz kernel/crc16.ko.xz
"""
BUILTIN = {
    *("virtio_pci", "virtio_console", "virtio_scsi", "virtio_net"),
    *("sd_mod", "overlay", "9p", "tcp_diag"),
}


def test_modules_load_after_what_they_need() -> None:
    order = modules.load_order(modules.parse_dep(DEP), BUILTIN)
    names = [modules.name_of(path) for path in order]
    assert names == [
        "zlib",
        "squashfs",
        "crc16",
        "mbcache",
        "jbd2",
        "ext4",
        "9pnet",
        "9pnet_virtio",
    ]


def test_a_missing_required_module_is_refused() -> None:
    with pytest.raises(FailedPrecondition, match="squashfs"):
        modules.load_order({}, BUILTIN)


def test_malformed_modules_dep() -> None:
    with pytest.raises(DataLoss):
        modules.parse_dep("kernel/a.ko")


def test_module_names() -> None:
    assert modules.name_of("kernel/net/nft-nat.ko.xz") == "nft_nat"


def test_cpio_is_readable_and_reproducible() -> None:
    entries = [
        cpio.folder("dev"),
        cpio.char_device("dev/null", 1, 3, 0o666),
        cpio.file("init", b"#!/bin/sh\n", 0o755),
        cpio.symlink("link", "init"),
    ]
    data = cpio.archive(entries)
    assert data == cpio.archive(entries)
    assert len(data) % 512 == 0
    assert data[:6] == b"070701"
    assert parse(data)["link"] == (stat.S_IFLNK | 0o777, b"init")


def parse(data: bytes) -> dict[str, tuple[int, bytes]]:
    """An independent reader of the format."""
    found: dict[str, tuple[int, bytes]] = {}
    at = 0
    while True:
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        mode, size, length = fields[1], fields[6], fields[11]
        name = data[at + 110 : at + 110 + length - 1].decode()
        body = (at + 110 + length + 3) // 4 * 4
        if name == "TRAILER!!!":
            return found
        found[name] = (mode, data[body : body + size])
        at = (body + size + 3) // 4 * 4


def test_initramfs() -> None:
    found = parse(initramfs(b"AGENT", [("zlib", b"one"), ("squashfs", b"second")]))
    assert found["init"] == (stat.S_IFREG | 0o755, b"AGENT")
    assert found["modules/order"][1] == b"/modules/zlib.ko\n/modules/squashfs.ko\n"
    assert found["modules/squashfs.ko"][1] == b"second"
    assert stat.S_ISCHR(found["dev/console"][0])


@pytest.mark.parametrize("path", ["/init", "", "init"])
def test_cpio_refuses_bad_paths(path: str) -> None:
    with pytest.raises(ValueError, match="path"):
        cpio.archive([cpio.file("init", b""), cpio.file(path, b"")])


@pytest.mark.parametrize(
    ("text", "uri"),
    [
        ("Types: deb\nURIs: http://mirror/debian\nSuites: x\n", "http://mirror/debian"),
        ("deb [signed-by=/k] http://m/debian bookworm main\n", "http://m/debian"),
        ("URIs: http://m/debian-security\n\nURIs: http://m/debian\n", "http://m/debian"),
        ("", None),
    ],
)
def test_mirror(text: str, uri: str | None) -> None:
    assert kernel.mirror(text) == uri
