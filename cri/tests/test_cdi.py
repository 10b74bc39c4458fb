from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from cri.oci import cdi
from hostlib.errors import FailedPrecondition, InvalidArgument, NotFound, ThawError, Unimplemented

SPEC: dict[str, Any] = {
    "cdiVersion": "0.8.0",
    "kind": "vendor.com/disk",
    "containerEdits": {"env": ["ALL=1"]},
    "devices": [
        {
            "name": "a",
            "containerEdits": {
                "env": ["A=x=y"],
                "mounts": [
                    {
                        "hostPath": "/opt/a",
                        "containerPath": "/a",
                        "options": ["ro", "nosuid", "nodev", "bind"],
                    }
                ],
                "deviceNodes": [],
            },
        },
        {"name": "b", "containerEdits": {"env": ["B=2", "ALL=2"]}},
        {"name": "node", "containerEdits": {"deviceNodes": [{"path": "/dev/x"}]}},
        {"name": "hook", "containerEdits": {"hooks": [{"hookName": "createRuntime"}]}},
        {"name": "bad", "containerEdits": {"mounts": [{"hostPath": "/x"}]}},
        {"name": "worse", "containerEdits": ["x"]},
    ],
}


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    made = [tmp_path / "etc", tmp_path / "run", tmp_path / "missing"]
    for folder in made[:2]:
        folder.mkdir()
    (made[0] / "disk.json").write_text(json.dumps(SPEC))
    (made[0] / "notes.txt").write_text("{")
    other = {"kind": "vendor.com/net", "devices": [{"name": "0", "containerEdits": {}}]}
    (made[1] / "net.yaml").write_text(yaml.safe_dump(other))
    return made


def test_mounts_and_environment(folders: list[Path]) -> None:
    names = ["vendor.com/disk=a", "vendor.com/disk=b", "vendor.com/disk=a", "vendor.com/net=0"]
    found = cdi.edits(names, folders)
    assert dict(found.env) == {"ALL": "2", "A": "x=y", "B": "2"}
    (mount,) = found.mounts
    assert (mount.host_path, mount.container_path, mount.readonly) == ("/opt/a", "/a", True)
    assert list(mount.mount_options) == ["nosuid", "nodev"]
    assert cdi.edits([], folders) == cdi.Edits()


def test_the_later_folder_counts(folders: list[Path]) -> None:
    one = {"name": "a", "containerEdits": {"env": ["A=later"]}}
    (folders[1] / "x.yaml").write_text(
        yaml.safe_dump({"kind": "vendor.com/disk", "devices": [one]})
    )
    assert cdi.edits(["vendor.com/disk=a"], folders).env == (("A", "later"),)


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("vendor.com/disk=none", NotFound),
        ("vendor.com/other=a", NotFound),
        ("disk=a", InvalidArgument),
        ("vendor.com/disk=../a", InvalidArgument),
        ("vendor.com/disk=node", Unimplemented),
        ("vendor.com/disk=hook", Unimplemented),
        ("vendor.com/disk=bad", FailedPrecondition),
        ("vendor.com/disk=worse", FailedPrecondition),
    ],
)
def test_what_is_refused(folders: list[Path], name: str, error: type[ThawError]) -> None:
    with pytest.raises(error, match=r"vendor|disk\.json|disk=a"):
        cdi.edits([name], folders)


@pytest.mark.parametrize("text", ["{", "[]", '"x"', "a: [", " " * (cdi.MAX_BYTES + 1)])
def test_a_broken_specification_is_named(folders: list[Path], text: str) -> None:
    (folders[1] / "broken.yaml").write_text(text)
    with pytest.raises(FailedPrecondition, match=r"broken\.yaml"):
        cdi.edits(["vendor.com/disk=a"], folders)
