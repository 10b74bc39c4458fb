"""An image's layers as one: overlayfs' rules applied to squashfs files, written as one tar.

The program of a merge's child process: ``python -m images.merge_stream`` with the layers lowest
first. It walks the layers' directories side by side and holds the names of the directories on its
way, and those of hard links, no others. File content goes from the layer to the pipe in the kernel.

- The topmost entry of a name wins; a character device 0/0 hides what lies below it and is dropped.
- Directories of one name are one, with the topmost one's attributes, down to the first that is
  opaque, or to a whiteout or something else than a directory.
- Names of one inode stay names of one inode. Those that upper layers hide are left out: the first
  name that is left carries the content.

What is written is the lowest layer of a container: no whiteout and no opaque mark are in it.
"""

from __future__ import annotations

import argparse
import json
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from hostlib import failpoint
from hostlib.errors import ResourceExhausted, ThawError
from images import tar_format
from images.layers import OPAQUE
from images.squashfs_reader import CHARACTER, DIRECTORY, FILE, Entry, Extent, Inode, Squashfs

BROKEN_PIPE: Final = 3
"""The exit code when nobody reads: what the reader says is the reason."""

_BUFFER: Final = 256 * 1024
_SPLICED: Final = 128 * 1024
"""Longer runs do not pass through this process's memory."""
_PIPE: Final = 1024 * 1024
_OVERLAY: Final = "trusted.overlay."
_TYPES: Final = {
    stat.S_IFREG: b"0", stat.S_IFLNK: b"2", stat.S_IFCHR: b"3", stat.S_IFBLK: b"4",
    stat.S_IFIFO: b"6",
}  # fmt: skip


class Source(NamedTuple):
    """An inode and the index of its layer."""

    layer: int
    inode: Inode


@dataclass(frozen=True)
class Found:
    """A name of the merged image. `sources` has one item, or for a directory one for each layer
    that adds to it, topmost first."""

    path: bytes
    sources: tuple[Source, ...]

    @property
    def top(self) -> Source:
        return self.sources[0]


class Merge:
    """The merged tree of `layers`, lowest first; at most `entries` names are taken."""

    def __init__(self, layers: Sequence[Squashfs], entries: int) -> None:
        self.layers = layers
        self._limit = entries
        self._entries = 0

    def walk(self) -> Iterator[Found]:
        """Every name but the root's, each directory before what is in it."""
        roots = tuple(Source(n, layer.root) for n, layer in enumerate(self.layers))[::-1]
        pending = [self._folder(Found(b"", roots))]
        while pending:
            found = next(pending[-1], None)
            if found is None:
                pending.pop()
                continue
            yield found
            if found.top.inode.kind == DIRECTORY:
                pending.append(self._folder(found))

    def _folder(self, folder: Found) -> Iterator[Found]:
        # The places of a name's inodes: whole inodes of large directories would fill the memory.
        names: dict[bytes, tuple[tuple[int, int, int], ...]] = {}
        # Names below which nothing of lower layers is seen.
        closed: set[bytes] = set()
        for number, inode in folder.sources:
            layer = self.layers[number]
            for entry in layer.entries(inode):
                if entry.name in closed:
                    continue
                place = (number, entry.place, entry.kind)
                if entry.kind == DIRECTORY:
                    names[entry.name] = (*names.get(entry.name, ()), place)
                    if OPAQUE in layer.xattrs(layer.inode(entry.place)):
                        closed.add(entry.name)
                else:
                    closed.add(entry.name)
                    if entry.name not in names and not _is_whiteout(layer, entry):
                        names[entry.name] = (place,)
                if len(names) + len(closed) > 2 * self._limit:
                    raise self._bomb()
        self._entries += len(names)
        if self._entries > self._limit:
            raise self._bomb()
        for name in sorted(names):
            path = folder.path + b"/" + name if folder.path else name
            places = names.pop(name)
            yield Found(path, tuple(Source(n, self.layers[n].inode(at, kind))
                                    for n, at, kind in places))  # fmt: skip

    def _bomb(self) -> ResourceExhausted:
        return ResourceExhausted(
            f"the image's layers together hold more than {self._limit} files",
            hint="raise images.max_layer_entries if the image is trusted",
        )


def _is_whiteout(layer: Squashfs, entry: Entry) -> bool:
    return entry.kind == CHARACTER and layer.inode(entry.place, entry.kind).device == (0, 0)


class Writer:
    """Writes a `Merge` as a tar to a pipe."""

    def __init__(self, merge: Merge, sink: int) -> None:
        self._merge = merge
        self._sink = sink
        self._buffer = bytearray()
        self._links: dict[tuple[int, int], bytes] = {}

    def run(self) -> None:
        """Write everything. Raises `DataLoss`, `ResourceExhausted`, BrokenPipeError."""
        for found in self._merge.walk():
            self._entry(found.path, found.top)
            if len(self._buffer) > _BUFFER:
                failpoint.hit_sync("merge.stream")
                self._flush()
        self._buffer += bytes(2 * tar_format.BLOCK)
        self._flush()

    def _entry(self, path: bytes, source: Source) -> None:
        layer, inode = self._merge.layers[source.layer], source.inode
        kind = b"5" if inode.kind == DIRECTORY else _TYPES[stat.S_IFMT(inode.mode)]
        if inode.kind != DIRECTORY and inode.links > 1:
            first = self._links.setdefault((source.layer, inode.number), path)
            if first is not path:
                self._buffer += tar_format.encode(path, b"1", link=first)
                return
        xattrs = layer.xattrs(inode)
        size = inode.size if inode.kind == FILE else 0
        self._buffer += tar_format.encode(
            path, kind, mode=inode.mode, uid=inode.uid, gid=inode.gid, size=size,
            mtime=inode.mtime, link=inode.target, device=inode.device,
            xattrs={key: value for key, value in xattrs.items() if not key.startswith(_OVERLAY)},
        )  # fmt: skip
        if size:
            for extent in layer.extents(inode):
                self._content(layer, extent)
            self._buffer += tar_format.padding(size)

    def _content(self, layer: Squashfs, extent: Extent) -> None:
        if extent.length <= _SPLICED:
            self._buffer += layer.content(extent)
            return
        self._flush()
        offset, left = extent.offset, extent.length
        while left:
            if offset is None:
                sent = os.write(self._sink, memoryview(_ZEROS)[:left])
            else:
                sent = os.splice(layer.descriptor, self._sink, left, offset_src=offset)
                offset += sent
            left -= sent

    def _flush(self) -> None:
        view = memoryview(self._buffer)
        while view:
            view = view[os.write(self._sink, view) :]
        view.release()
        self._buffer = bytearray()


_ZEROS: Final = bytes(_BUFFER)


def write(layers: Sequence[Path], sink: int, entries: int) -> None:
    """Merge `layers`, lowest first, into the pipe `sink`."""
    with ExitStack() as stack:
        opened = [stack.enter_context(Squashfs(path)) for path in layers]
        Writer(Merge(opened, entries), sink).run()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="the pipe to write to")
    parser.add_argument("--entries", type=int, required=True, help="the most names to take")
    parser.add_argument("layers", nargs="+", type=Path, help="squashfs files, lowest first")
    options = parser.parse_args()
    failpoint.load_environment()
    try:
        failpoint.hit_sync("merge.stream")
        write(options.layers, options.fd, options.entries)
    except BrokenPipeError:
        return BROKEN_PIPE
    except ThawError as error:
        json.dump(error.to_dict(), sys.stdout)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
