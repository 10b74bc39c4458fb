"""kill -9 at each step of a pull and of a removal: the next start finds a sound store."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hostlib.tasks import in_thread
from images.service import Images, Limits
from images.tests.build import Entry, image, tar
from images.tests.fake_registry import FakeRegistry

PULL = """
import asyncio, os, sys
from pathlib import Path
from hostlib import failpoint
from images.service import Images, Limits

SLOTS = int(os.environ["SLOTS"])

async def main():
    failpoint.load_environment()
    images = Images(
        Path(sys.argv[1]), registry_config=None, limits=Limits(), slots=SLOTS, tag_life=60
    )
    await images.open()
    found = await images.pull(sys.argv[2])
    if len(sys.argv) > 3:
        await images.remove(found.id)
    await images.close()

asyncio.run(main())
"""


def die(root: Path, ref: str, point: str, *more: str, slots: int = 12) -> int:
    return subprocess.run(
        [sys.executable, "-c", PULL, root, ref, *more],
        env={
            **os.environ,
            "THAW_FAILPOINTS": f"{point}=kill",
            "PYTHONPATH": os.getcwd(),
            "SLOTS": str(slots),
        },
        capture_output=True,
        timeout=60,
    ).returncode


@pytest.mark.parametrize(
    "point",
    ["pull.resolve", "pull.chunk", "convert.start", "convert.verified", "pull.commit",
     "layer.sync", "layer.rename", "layer.renamed", "pull.record", "store.blobs", "store.record",
     "store.written", "tags.save"],
)  # fmt: skip
async def test_a_pull_that_dies(registry: FakeRegistry, tmp_path: Path, point: str) -> None:
    registry.add(image(tar(Entry("a", b"x" * 100_000)), tar(Entry("b"))))
    ref = f"{registry.host}/a"
    assert await in_thread(die, tmp_path, ref, point) == -9
    images = Images(tmp_path, registry_config=None, limits=Limits())
    await images.open()
    assert not list((tmp_path / "images/ingest").iterdir())
    assert len(images.list()) == (1 if point in ("store.written", "tags.save") else 0)
    for found in images.list():
        assert all(layer.path.stat().st_size == layer.size for layer in found.layers)
    found = await images.pull(ref)
    assert images.get(ref) == found
    await images.remove(ref)
    await images.collect()
    assert not [item for item in (tmp_path / "images").rglob("*") if item.is_file()]
    await images.close()


@pytest.mark.parametrize(
    "point", ["merge.start", "merge.written", "merge.sync", "merge.rename", "merge.renamed",
              "pull.record"],
)  # fmt: skip
async def test_a_merge_that_dies(registry: FakeRegistry, tmp_path: Path, point: str) -> None:
    """Nothing is there then, or a whole file; what nobody needs goes with the first collection."""
    registry.add(image(tar(Entry("a", b"x" * 100_000)), tar(Entry("b"))))
    ref = f"{registry.host}/a"
    assert await in_thread(lambda: die(tmp_path, ref, point, slots=1)) == -9
    images = Images(tmp_path, registry_config=None, limits=Limits(), slots=1)
    await images.open()
    assert not list((tmp_path / "images/ingest").iterdir())
    merged = list((tmp_path / "images/merged").iterdir())
    assert len(merged) == (1 if point in ("merge.renamed", "pull.record") else 0)
    found = await images.pull(ref)
    assert found.merged is not None and found.merged.size == found.merged.path.stat().st_size
    assert not merged or merged[0] == found.merged.path
    await images.remove(ref)
    assert not [item for item in (tmp_path / "images").rglob("*") if item.is_file()]
    await images.close()


async def test_merged_layers_of_no_image_are_collected(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    registry.add(image(tar(Entry("a")), tar(Entry("b"))))
    assert (
        await in_thread(lambda: die(tmp_path, f"{registry.host}/a", "pull.record", slots=1)) == -9
    )
    images = Images(tmp_path, registry_config=None, limits=Limits(), slots=1)
    await images.open()
    assert await images.collect() > 0
    assert not [item for item in (tmp_path / "images").rglob("*") if item.is_file()]
    await images.close()


async def test_a_removal_that_dies(registry: FakeRegistry, tmp_path: Path) -> None:
    registry.add(image(tar(Entry("a"))))
    ref = f"{registry.host}/a"
    assert await in_thread(die, tmp_path, ref, "store.remove", "remove") == -9
    images = Images(tmp_path, registry_config=None, limits=Limits())
    await images.open()
    assert len(images.list()) == 1
    await images.remove(ref)
    assert images.list() == []
    await images.close()
