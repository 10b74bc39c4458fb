"""Runs a fuzz target of the streaming cores: ``python -m cri.streaming.tests.fuzz TARGET CORPUS...
[OPTION...]``, with TARGET `spdy` or `channels`. Run by `make fuzz`.
"""

from __future__ import annotations

import importlib
import sys

import atheris


def main() -> None:
    name = sys.argv.pop(1)
    # The standard library's own branches would slow every input down.
    with atheris.instrument_imports(include=["cri.streaming"]):
        target = importlib.import_module(f"cri.streaming.tests.fuzz_{name}")
    atheris.Setup(sys.argv, target.one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
