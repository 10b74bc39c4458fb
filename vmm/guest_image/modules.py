"""Which kernel modules the guest loads, and in which order."""

from __future__ import annotations

import lzma
from pathlib import Path
from typing import Final

import zstandard

from hostlib.errors import DataLoss, FailedPrecondition

EARLY: Final = ("crc32c_generic", "crc32c_intel", "quota_v2")
"""What other modules ask the kernel for by the name of an algorithm or a format, which modules.dep
does not tell: ext4 with quotas fails to mount (ESRCH) without quota_v2."""

REQUIRED: Final = (
    "virtio_pci",
    "virtio_console",
    "virtio_scsi",
    "sd_mod",
    "squashfs",
    "overlay",
    "ext4",
    "virtio_net",
    "tcp_diag",
    "9p",
    "9pnet_virtio",
)
"""What a pod cannot start without; built in counts as present."""

OPTIONAL: Final = (
    "virtio_mem",
    "vmw_vsock_virtio_transport",
    "bridge",
    "veth",
    "tun",
    "dummy",
    "loop",
    "fuse",
    "nf_tables",
    "nft_chain_nat",
    "nft_masq",
    "nft_ct",
    "nft_compat",
    "xt_MASQUERADE",
    "xt_conntrack",
    "xt_comment",
    "xt_addrtype",
    "iptable_nat",
    "iptable_filter",
    "br_netfilter",
)
"""What containers may want. All are loaded before the bake: a restored guest loads nothing."""

_SUFFIXES: Final = (".ko", ".ko.xz", ".ko.zst")


def name_of(path: str) -> str:
    """The module's name as `modprobe` takes it, from its file's path."""
    base = path.rpartition("/")[2]
    return base.partition(".ko")[0].replace("-", "_")


def parse_dep(text: str) -> dict[str, tuple[str, ...]]:
    """modules.dep as depmod writes it: path -> the paths that it needs, directly or not.

    depmod lists them so that loading from the last to the first satisfies each.
    """
    found: dict[str, tuple[str, ...]] = {}
    for line in text.splitlines():
        path, colon, needs = line.partition(":")
        if not colon:
            raise DataLoss(f"malformed line in modules.dep: {line[:80]!r}")
        found[path.strip()] = tuple(needs.split())
    return found


def load_order(dep: dict[str, tuple[str, ...]], builtin: set[str]) -> list[str]:
    """The module files to load, dependencies first, none twice.

    Raises `FailedPrecondition` when a required module is neither there nor built in.
    """
    by_name = {name_of(path): path for path in dep}
    order: dict[str, None] = {}
    for wanted in (*EARLY, *REQUIRED, *OPTIONAL):
        name = wanted.replace("-", "_")
        if name in builtin:
            continue
        path = by_name.get(name)
        if path is None:
            if wanted in REQUIRED:
                raise FailedPrecondition(
                    f"the guest kernel has no module {wanted}",
                    hint="use Debian's linux-image-amd64, not the cloud flavour",
                )
            continue
        for needed in (*reversed(dep[path]), path):
            order.setdefault(needed)
    return list(order)


def unpack(path: Path) -> bytes:
    """A module's ELF image, decompressed where it is packed."""
    data = path.read_bytes()
    if path.name.endswith(".xz"):
        return lzma.decompress(data)
    if path.name.endswith(".zst"):
        return zstandard.ZstdDecompressor().stream_reader(data).read()
    return data


def read_folder(folder: Path) -> tuple[list[str], set[str]]:
    """Load order of the modules under `folder` (/lib/modules/VERSION), and the built-in names."""
    builtin = {
        name_of(line) for line in (folder / "modules.builtin").read_text().splitlines() if line
    }
    return load_order(parse_dep((folder / "modules.dep").read_text()), builtin), builtin
