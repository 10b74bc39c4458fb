"""Which images the kubelet is told to keep: by patterns of the configuration."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from images import reference


class Pinned:
    """Patterns of image names; ``*``, ``?`` and ``[...]`` as in a shell.

    A name without them is completed as that of a pull is: ``nginx`` is
    ``docker.io/library/nginx:latest``. Raises `InvalidArgument` for one that is malformed.
    """

    def __init__(self, patterns: Sequence[str] = ()) -> None:
        self._patterns = tuple(
            each if any(c in each for c in "*?[") else str(reference.parse(each))
            for each in patterns
        )

    def __call__(self, names: Iterable[str]) -> bool:
        return any(fnmatchcase(name, each) for name in names for each in self._patterns)
