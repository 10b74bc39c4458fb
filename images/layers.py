"""An OCI layer rewritten for overlayfs, tar to tar, in one pass and without a file on the host.

- ``.wh.NAME`` becomes NAME, a character device 0/0 (a whiteout of overlayfs).
- ``.wh..wh..opq`` becomes the xattr ``trusted.overlay.opaque=y`` of its folder.
- Folders come last, each once, with the last attributes given: sqfstar makes missing parents
  itself and takes their attributes when it meets them, but ignores a name that comes twice.
- A file named twice would need its later content before it came. Then `Replay` is raised, with the
  plan that a second pass over the same layer follows.

Names are taken relative to the root (``/x`` is ``x``); ``..`` is refused. Symbolic links may point
anywhere: they are resolved in the guest.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from hostlib.errors import DataLoss, InvalidArgument, ResourceExhausted
from images import tar_format
from images.model import Limits

OPAQUE: Final = "trusted.overlay.opaque"
_WHITEOUT: Final = ".wh."
_OPAQUE_MARK: Final = ".wh..wh..opq"
_AUFS_PRIVATE: Final = ".wh..wh."
"""aufs kept its own folders under such names; the image specification gives them no meaning."""

_COPY: Final = 1024 * 1024
_MAX_REPLACED: Final = 1000
"""Folders that become files within one layer: each costs a look at every name."""
_MAX_NAME: Final = 255
_MAX_XATTR: Final = 65536
_XATTR_PREFIXES: Final = ("user.", "trusted.", "security.")
"""What squashfs can hold."""

Sink = Callable[[bytes], object]

Plan = dict[int, tuple[str, ...]]
"""For the index of each member that brings an inode: the names that it has in the end."""


class Replay(Exception):
    """The layer names a file twice: read it again with this plan."""

    def __init__(self, plan: Plan) -> None:
        super().__init__("the layer names a file twice")
        self.plan = plan


@dataclass
class Folder:
    """A directory's attributes, the last ones given."""

    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    mtime: float = 0
    xattrs: dict[str, bytes] = field(default_factory=dict)
    opaque: bool = False


@dataclass(frozen=True)
class Rewritten:
    """What a layer held: members, and bytes of file content."""

    entries: int
    bytes: int


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def normalise(name: str, limits: Limits) -> str:
    """The member's path below the root, "" for the root. Raises `InvalidArgument`."""
    shown = ascii(name[:200])
    if "\0" in name:
        raise InvalidArgument(f"layer names {shown}, which holds a zero byte")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise InvalidArgument(
            f"layer names {shown}, which leaves the image's root",
            hint="the image is broken or hostile: do not use it",
        )
    path = "/".join(parts)
    if len(_bytes(path)) >= limits.path_bytes:
        raise ResourceExhausted(f"layer names {shown}, a path over {limits.path_bytes - 1} bytes")
    if any(len(_bytes(part)) > _MAX_NAME for part in parts if len(part) > _MAX_NAME // 4):
        raise InvalidArgument(f"layer names {shown}, with a part over {_MAX_NAME} bytes")
    return path


class Rewriter:
    """Rewrites one layer; use it once. Blocking: runs in a thread."""

    def __init__(self, source: tar_format.Readable, sink: Sink, limits: Limits) -> None:
        self._source = source
        self._sink = sink
        self._limits = limits
        self._folders: dict[str, Folder] = {"": Folder()}
        # The inode (index of the member that brought it) behind each name that is no folder.
        self._names: dict[str, int] = {}
        self._replay = False
        self._replaced = 0
        self._entries = 0
        self._bytes = 0

    def run(self, plan: Plan | None = None) -> Rewritten:
        """Rewrite the whole layer.

        Raises `InvalidArgument`, `DataLoss`, `ResourceExhausted` for a layer that is broken or over
        the limits, and `Replay` (without a plan only).
        """
        try:
            with tar_format.open_tar(self._source) as tar:
                while (member := tar.next()) is not None:
                    # tarfile keeps every member it has read.
                    tar.members = []  # type: ignore[attr-defined]
                    self._member(tar, member, plan)
        except (tarfile.TarError, ValueError, OverflowError, IndexError) as error:
            raise DataLoss(f"the layer's tar archive is damaged: {error}") from error
        while self._source.read(_COPY):
            pass
        if self._replay and plan is None:
            raise Replay(self._make_plan())
        self._write_folders()
        # Two zero blocks end an archive.
        self._sink(b"\0" * (2 * tar_format.BLOCK))
        return Rewritten(self._entries, self._bytes)

    def _member(self, tar: tarfile.TarFile, member: tarfile.TarInfo, plan: Plan | None) -> None:
        index = self._entries
        self._entries += 1
        if self._entries > self._limits.layer_entries:
            raise ResourceExhausted(
                f"the layer is a bomb: more than {self._limits.layer_entries} entries",
                hint="raise the limit in the configuration if the image is trusted",
            )
        path = normalise(member.name, self._limits)
        parent, _, base = path.rpartition("/")
        marks = [part for part in parent.split("/") if part.startswith(_WHITEOUT)]
        if marks and marks[0].startswith(_AUFS_PRIVATE):
            return
        if marks:
            raise InvalidArgument(f"layer names {path[:200]!a}, which lies below a whiteout")
        if base.startswith(_WHITEOUT):
            self._whiteout(index, parent, base, plan)
        elif member.isdir():
            self._folder(path, member)
        elif not path:
            raise InvalidArgument("layer names its root as something other than a folder")
        elif member.islnk():
            self._hard_link(path, normalise(member.linkname, self._limits), plan)
        else:
            self._inode(index, path, plan, lambda name: self._write(tar, member, name))

    def _whiteout(self, index: int, parent: str, base: str, plan: Plan | None) -> None:
        if base == _OPAQUE_MARK:
            self._make_parents(f"{parent}/x" if parent else "x")
            self._folders[parent].opaque = True
            return
        if base.startswith(_AUFS_PRIVATE):
            return
        name = base[len(_WHITEOUT) :]
        if name in ("", ".", ".."):
            raise InvalidArgument(f"layer holds a whiteout of nothing: {base!a}")
        path = f"{parent}/{name}" if parent else name
        if path in self._folders or path in self._names:
            # A whiteout hides lower layers alone. What this layer itself brings shows; a folder of
            # the same name hides what lay below.
            if path in self._folders:
                self._folders[path].opaque = True
            return
        self._inode(
            index, path, plan, lambda name: self._sink(tar_format.encode(_bytes(name), b"3"))
        )

    def _folder(self, path: str, member: tarfile.TarInfo) -> None:
        if path:
            self._make_parents(path)
        opaque = False
        if path in self._names:
            self._drop(path)
            # Whatever was there in this layer, a whiteout among it, hides the layers below.
            opaque = True
        found = self._folders.get(path)
        xattrs = self._xattrs(member)
        opaque = opaque or (found is not None and found.opaque) or OPAQUE in xattrs
        xattrs.pop(OPAQUE, None)
        self._folders[path] = Folder(
            member.mode, member.uid, member.gid, member.mtime, xattrs, opaque
        )

    def _make_parents(self, path: str) -> None:
        parent = path.rpartition("/")[0]
        while parent not in self._folders:
            if parent in self._names:
                self._drop(parent)
                self._folders[parent] = Folder(opaque=True)
            else:
                self._folders[parent] = Folder()
            parent = parent.rpartition("/")[0]
        if len(self._folders) > self._limits.layer_entries:
            raise ResourceExhausted("the layer is a bomb: too many folders")

    def _drop(self, path: str) -> None:
        del self._names[path]
        self._replay = True

    def _take_name(self, path: str, inode: int) -> None:
        """Give `path` to `inode`, which is in the sink, or comes there now."""
        self._make_parents(path)
        if path in self._folders:
            self._replaced += 1
            if self._replaced > _MAX_REPLACED:
                raise ResourceExhausted("the layer is a bomb: it replaces folders again and again")
            below = f"{path}/"
            for names in (self._folders, self._names):
                for name in [name for name in names if name.startswith(below)]:
                    del names[name]
            del self._folders[path]
            self._replay = True
        if path in self._names:
            self._replay = True
        self._names[path] = inode

    def _inode(
        self, index: int, path: str, plan: Plan | None, write: Callable[[str], object]
    ) -> None:
        self._take_name(path, index)
        if plan is None:
            if not self._replay:
                write(path)
            return
        names = plan.get(index, ())
        if names:
            write(names[0])
        for name in names[1:]:
            self._sink(tar_format.encode(_bytes(name), b"1", link=_bytes(names[0])))

    def _hard_link(self, path: str, target: str, plan: Plan | None) -> None:
        inode = self._names.get(target)
        if inode is None:
            what = "a folder" if target in self._folders else "nothing in this layer"
            raise InvalidArgument(
                f"layer links {path[:200]!a} to {target[:200]!a}, {what}",
                hint="a hard link must name a file that came before it in the same layer",
            )
        if path == target:
            return
        self._take_name(path, inode)
        if plan is None and not self._replay:
            self._sink(tar_format.encode(_bytes(path), b"1", link=_bytes(target)))

    def _xattrs(self, member: tarfile.TarInfo) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        for key, value in member.pax_headers.items():
            prefix, _, name = key.partition("SCHILY.xattr.")
            if prefix or not name.startswith(_XATTR_PREFIXES) or "\0" in name:
                continue
            content = _bytes(value)
            if len(content) > _MAX_XATTR or len(_bytes(name)) > _MAX_NAME:
                raise InvalidArgument(f"layer holds an extended attribute {name[:100]!a} "
                                      f"over {_MAX_XATTR} bytes")  # fmt: skip
            # overlayfs obeys its own attributes; an image must not speak to it but by whiteouts.
            if not name.startswith("trusted.overlay.") or name == OPAQUE:
                found[name] = content
        return found

    def _write(self, tar: tarfile.TarFile, member: tarfile.TarInfo, path: str) -> None:
        kinds = {tarfile.SYMTYPE: b"2", tarfile.CHRTYPE: b"3", tarfile.BLKTYPE: b"4",
                 tarfile.FIFOTYPE: b"6"}  # fmt: skip
        if not member.isreg() and member.type not in kinds:
            raise InvalidArgument(f"layer holds {path[:200]!a} of type {member.type!r}")
        size = member.size if member.isreg() else 0
        if size < 0:
            raise DataLoss(f"layer holds {path[:200]!a} of {size} bytes")
        if size > self._limits.layer_bytes - self._bytes:
            raise ResourceExhausted(
                f"the layer is a bomb: over {self._limits.layer_bytes} bytes of files",
                hint="raise the limit in the configuration if the image is trusted",
            )
        self._bytes += size
        link = _bytes(member.linkname) if member.issym() else b""
        if member.issym() and (not link or b"\0" in link or len(link) >= self._limits.path_bytes):
            raise InvalidArgument(f"layer holds the link {path[:200]!a} to a bad target")
        device = (member.devmajor, member.devminor) if member.isdev() else (0, 0)
        self._sink(
            tar_format.encode(
                _bytes(path), kinds.get(member.type, b"0"), mode=member.mode, uid=member.uid,
                gid=member.gid, size=size, mtime=member.mtime, link=link, device=device,
                xattrs=self._xattrs(member),
            )
        )  # fmt: skip
        if size:
            content = tar.extractfile(member)
            assert content is not None
            left = size
            while left:
                data = content.read(min(_COPY, left))
                if not data:
                    raise DataLoss(f"the layer ends within {path[:200]!a}")
                self._sink(data)
                left -= len(data)
            self._sink(tar_format.padding(size))

    def _write_folders(self) -> None:
        root = self._folders.pop("")
        if root.opaque:
            raise InvalidArgument(
                "layer hides everything below its root (an opaque root)",
                hint="build the image from scratch, without the layers below",
            )
        for path in sorted(self._folders):
            folder = self._folders[path]
            xattrs = {**folder.xattrs, **({OPAQUE: b"y"} if folder.opaque else {})}
            self._sink(
                tar_format.encode(
                    _bytes(path), b"5", mode=folder.mode, uid=folder.uid, gid=folder.gid,
                    mtime=folder.mtime, xattrs=xattrs,
                )
            )  # fmt: skip

    def _make_plan(self) -> Plan:
        names: dict[int, list[str]] = {}
        for path, inode in self._names.items():
            names.setdefault(inode, []).append(path)
        return {inode: tuple(sorted(paths)) for inode, paths in names.items()}
