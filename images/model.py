"""What an image is to the rest of Thaw: plain, immutable values."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

GIB = 1024**3
MIB = 1024**2

T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """What an image may cost. Sizes are bytes, times are seconds."""

    layer_bytes: int = 64 * GIB
    """The uncompressed tar of one layer."""
    layer_entries: int = 4_000_000
    path_bytes: int = 4096
    """PATH_MAX of Linux: a longer name could not be opened in the guest."""
    layers: int = 127
    config_bytes: int = 8 * MIB
    manifest_bytes: int = 4 * MIB
    """The least that the OCI distribution specification asks registries to accept."""
    parallel_layers: int = 3
    stall_timeout: float = 60.0
    """How long a transfer may go without one byte."""
    min_free_bytes: int = 0
    """Space on the disk that a pull leaves free."""


@dataclass(frozen=True)
class Auth:
    """Credentials as CRI's AuthConfig carries them; ``auth`` is base64 of ``user:password``.

    Its text shows none of them: it may come into the name of a task, a log, or a traceback.
    """

    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    auth: str = field(default="", repr=False)
    server_address: str = ""
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)


@dataclass(frozen=True)
class ImageConfig:
    """The part of the OCI image configuration that starts a container."""

    user: str = ""
    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    working_dir: str = ""
    stop_signal: str = ""
    exposed_ports: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()
    architecture: str = ""
    os: str = ""


@dataclass(frozen=True)
class Layer:
    """One squashfs file; ``diff_id`` is the digest of the layer's uncompressed tar, or, for the
    file that all layers of an image were merged into, their chain id."""

    diff_id: str
    path: Path
    size: int


@dataclass(frozen=True)
class Image:
    """An image whose every layer is on this disk."""

    id: str
    """``sha256:`` and the digest of the configuration."""
    repo_tags: tuple[str, ...]
    repo_digests: tuple[str, ...]
    size: int
    """Bytes of layers, merged file and configuration on this disk; above 0."""
    config: ImageConfig
    layers: tuple[Layer, ...]
    """Lowest first."""
    pinned: bool = False
    merged: Layer | None = None
    """All layers as one, once they are merged."""

    @property
    def mounts(self) -> tuple[Layer, ...]:
        """What a container's root is made of, lowest first, each once."""
        return (self.merged,) if self.merged is not None else unique(self.layers)


def unique(layers: tuple[T, ...]) -> tuple[T, ...]:
    """Layers without those that come again further up: a layer covers itself, and overlayfs
    refuses to take one twice."""
    return tuple(reversed(dict.fromkeys(reversed(layers))))


MergeMode = Literal["auto", "needed"]
"""Whether every image's layers are merged, or only those of images that need it to run."""

LayerState = Literal["waiting", "downloading", "done", "present"]


@dataclass(frozen=True)
class LayerProgress:
    """How far one layer of a pull is; sizes are compressed bytes."""

    digest: str
    done: int
    total: int
    state: LayerState


@dataclass(frozen=True)
class Progress:
    """How far a pull is; the layers are unknown until the manifest has come."""

    ref: str
    layers: tuple[LayerProgress, ...] = ()
    merging: tuple[int, int] | None = None
    """While the layers are merged, the last phase: bytes written, and the most that they can be."""


@dataclass(frozen=True)
class PullState:
    """A pull under way; ``started`` is in seconds since the epoch."""

    ref: str
    started: float
    progress: Progress


@dataclass(frozen=True)
class Usage:
    """What the image store takes up on the disk at ``timestamp`` (nanoseconds since the epoch)."""

    bytes: int
    inodes: int
    mountpoint: str
    timestamp: int
