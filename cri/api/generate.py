"""Compiles the protocol definitions beside this file: ``python -m cri.api.generate``.

Run from anywhere; protoc itself runs at the project's root, so that the stubs import ``cri.api``.
"""

from __future__ import annotations

import sys
from importlib import resources
from pathlib import Path
from typing import Final

from grpc_tools import protoc

from hostlib.errors import Internal

ROOT: Final = Path(__file__).resolve().parents[2]
PROTOCOLS: Final = ("cri/api/v1.proto", "cri/api/thaw.proto")


def generate(target: Path) -> None:
    """Write the stubs of every protocol under `target`/cri/api. Raises `Internal`."""
    well_known = str(resources.files("grpc_tools") / "_proto")
    code = protoc.main(
        [
            "protoc",
            f"--proto_path={ROOT}",
            f"--proto_path={well_known}",
            f"--python_out={target}",
            f"--pyi_out={target}",
            f"--grpc_python_out={target}",
            *(str(ROOT / name) for name in PROTOCOLS),
        ]
    )
    if code != 0:
        raise Internal(f"protoc failed with {code}")


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT)
