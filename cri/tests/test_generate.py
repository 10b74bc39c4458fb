from __future__ import annotations

import re
from pathlib import Path

from cri.api import generate
from cri.api import v1_pb2 as v1

_VERSION = re.compile(r"^.*(?:[Vv]ersion|VERSION).*$", re.MULTILINE)


def test_the_stubs_are_up_to_date(tmp_path: Path) -> None:
    generate.generate(tmp_path)
    for made in sorted(tmp_path.glob("cri/api/*_pb2*")):
        kept = generate.ROOT / "cri" / "api" / made.name
        # The generator writes its own version into what it makes.
        assert _VERSION.sub("", kept.read_text()) == _VERSION.sub("", made.read_text()), (
            f"{kept} is stale: run python -m cri.api.generate"
        )


def test_the_whole_of_cri() -> None:
    counts = {name: len(each.methods) for name, each in v1.DESCRIPTOR.services_by_name.items()}
    assert counts == {"RuntimeService": 37, "ImageService": 6}
    assert v1.DESCRIPTOR.package == "runtime.v1"
