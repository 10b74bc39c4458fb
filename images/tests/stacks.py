"""Random stacks of layers, and what overlayfs makes of them: a model of its own for the tests."""

from __future__ import annotations

import tarfile
from dataclasses import dataclass, field

from hypothesis import strategies as st

from images.tests.build import Entry, hard_link, tar

NAMES = ("a", "b", "c\udce9")
KINDS = ("file", "file", "dir", "dir", "link", "symlink", "null", "fifo", "whiteout", "opaque")


@dataclass(frozen=True)
class Op:
    """One thing that a layer does to a path; `number` varies its attributes."""

    path: tuple[str, ...]
    kind: str
    number: int


@dataclass(frozen=True)
class Node:
    """What a path is, with all that must survive. Equal `inode`: the same file."""

    kind: str
    mode: int = 0o755
    owner: int = 0
    mtime: int = 0
    data: bytes = b""
    link: str = ""
    device: tuple[int, int] = (0, 0)
    xattrs: tuple[tuple[str, str], ...] = ()
    inode: tuple[int, int] = (-1, 0)


@dataclass
class Layer:
    """A layer as a tar makes it, and as the model sees it."""

    number: int
    entries: list[Entry] = field(default_factory=list)
    nodes: dict[str, Node] = field(default_factory=dict)
    opaque: set[str] = field(default_factory=set)

    def tar(self) -> bytes:
        return tar(*self.entries)

    def add(self, op: Op) -> None:
        """Carry out `op`, where the layer as it is allows it."""
        path = "/".join(op.path)
        parents = ["/".join(op.path[:n]) for n in range(1, len(op.path))]
        if any(self.nodes.get(one, Node("dir")).kind != "dir" for one in parents):
            return
        if path in self.nodes and (op.kind != "opaque" or self.nodes[path].kind != "dir"):
            return
        if not self._make(op, path):
            return
        for parent in parents:
            self.nodes.setdefault(parent, Node("dir"))

    def _make(self, op: Op, path: str) -> bool:
        parent, _, base = path.rpartition("/")
        inode = (self.number, len(self.entries))
        mode, owner, mtime = op.number * 7 % 0o7777, op.number * 10_007, op.number * 1_000_003
        xattrs = {"user.x": str(op.number)} if op.number % 3 else {}
        if op.kind == "opaque":
            self.entries.append(Entry(f"{path}/.wh..wh..opq"))
            self.opaque.add(path)
            self.nodes.setdefault(path, Node("dir"))
            return True
        if op.kind == "whiteout":
            self.entries.append(Entry(f"{parent}/.wh.{base}" if parent else f".wh.{base}"))
            self.nodes[path] = Node("whiteout")
            return True
        if op.kind == "link":
            targets = [k for k, v in self.nodes.items() if v.kind not in ("dir", "whiteout")]
            if not targets:
                return False
            target = targets[op.number % len(targets)]
            self.entries.append(hard_link(path, target))
            self.nodes[path] = self.nodes[target]
            return True
        data = link = ""
        device, kind = (0, 0), tarfile.REGTYPE
        if op.kind == "file":
            data = f"{self.number} {path.encode('utf-8', 'surrogateescape')!r}" * (op.number % 50)
        elif op.kind == "dir":
            kind = tarfile.DIRTYPE
        elif op.kind == "symlink":
            kind, mode, link = tarfile.SYMTYPE, 0o777, f"/{'../x' * (op.number % 60)}/"
        elif op.kind == "null":
            kind, device = tarfile.CHRTYPE, (1, 3 + op.number)
        else:
            kind = tarfile.FIFOTYPE
        self.entries.append(
            Entry(path, data.encode(), kind, link, mode, owner, owner, mtime, device, xattrs)
        )
        self.nodes[path] = Node(op.kind, mode, owner, mtime, data.encode(), link, device,
                                tuple(xattrs.items()), inode)  # fmt: skip
        return True


PATHS = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map(tuple)
OPS = st.builds(Op, path=PATHS, kind=st.sampled_from(KINDS), number=st.integers(0, 400))


def _layers(stack: list[list[Op]]) -> list[Layer]:
    made = []
    for number, ops in enumerate(stack):
        layer = Layer(number)
        for op in ops:
            layer.add(op)
        made.append(layer)
    return made


STACKS = st.lists(st.lists(OPS, max_size=12), min_size=2, max_size=5).map(_layers)


def model(layers: list[Layer]) -> dict[str, Node]:
    """What a mount of the layers, lowest first, shows: each layer applied to those below it."""
    shown: dict[str, Node] = {}

    def hide(path: str) -> None:
        for one in [one for one in shown if one.startswith(f"{path}/")]:
            del shown[one]

    for layer in layers:
        for path in sorted(layer.nodes, key=lambda one: one.split("/")):
            node = layer.nodes[path]
            if node.kind != "dir" or path in layer.opaque:
                hide(path)
            shown.pop(path, None)
            if node.kind != "whiteout":
                shown[path] = node
    return shown


def groups(inodes: dict[str, object]) -> set[frozenset[str]]:
    """The sets of names that are one file."""
    names: dict[object, set[str]] = {}
    for path, inode in inodes.items():
        names.setdefault(inode, set()).add(path)
    return {frozenset(one) for one in names.values() if len(one) > 1}
