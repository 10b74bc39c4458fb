"""Pins: of names, which they follow."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hostlib import errors
from images.service import Images, Limits
from images.tests.build import Entry, image, tar
from images.tests.fake_registry import FakeRegistry


@pytest.fixture
async def images(tmp_path: Path) -> AsyncIterator[Images]:
    """A store whose configuration pins some."""
    made = Images(
        tmp_path, registry_config=None, limits=Limits(), pinned=["*/always:*"], tag_life=300
    )
    await made.open()
    yield made
    await made.close()


async def again(tmp_path: Path) -> dict[str, bool]:
    """What another daemon finds pinned, by id."""
    other = Images(tmp_path, registry_config=None, limits=Limits())
    await other.open()
    found = {each.id: each.pinned for each in other.list()}
    await other.close()
    return found


async def test_a_pin_goes_with_its_name(
    images: Images, registry: FakeRegistry, tmp_path: Path
) -> None:
    ref = f"{registry.host}/a/b:1"
    registry.add(image(tar(Entry("one"))), "1")
    first = await images.pull(ref)
    assert not first.pinned
    # Also where the registry is not asked.
    first = await images.pull(ref, cached=True, pin=True)
    assert first.pinned
    assert await again(tmp_path) == {first.id: True}
    registry.add(image(tar(Entry("two"))), "1")
    second = await images.pull(ref)
    assert second.id != first.id and second.pinned
    left = images.get(first.id)
    assert left is not None and not left.pinned
    assert await again(tmp_path) == {first.id: False, second.id: True}
    assert not (await images.pin(ref, pinned=False)).pinned
    assert await again(tmp_path) == {first.id: False, second.id: False}


async def test_pins_by_digest_and_id(images: Images, registry: FakeRegistry) -> None:
    built = registry.add(image(tar(Entry("one"))), "1")
    by_digest = f"{registry.host}/a/b@{built.digest}"
    found = await images.pull(by_digest, pin=True)
    assert found.pinned
    # A tag is another name.
    ref = f"{registry.host}/a/b:1"
    await images.pull(ref, pin=True)
    assert (await images.pin(ref, pinned=False)).pinned
    assert not (await images.pin(by_digest, pinned=False)).pinned
    for name in (found.id, found.id[7:], found.id[7:19]):
        assert (await images.pin(name)).pinned
        assert (await images.pin(ref, pinned=False)).pinned
        assert not (await images.pin(name, pinned=False)).pinned
    with pytest.raises(errors.NotFound, match="none:1"):
        await images.pin("r.example/none:1")
    with pytest.raises(errors.InvalidArgument):
        await images.pin("Bad//Name")


async def test_what_the_configuration_pins_stays_so(images: Images, registry: FakeRegistry) -> None:
    registry.add(image(tar(Entry("one"))), "1")
    found = await images.pull(f"{registry.host}/always:1")
    assert found.pinned
    assert (await images.pin(found.id, pinned=False)).pinned


async def test_a_pin_ends_with_the_removal(
    images: Images, registry: FakeRegistry, tmp_path: Path
) -> None:
    registry.add(image(tar(Entry("one"))), "1")
    ref = f"{registry.host}/a/b:1"
    for held in (False, True):
        found = await images.pull(ref, pin=True)
        if held:
            images.hold(found.id, "container")
        await images.remove(ref)
        assert images.list() == []
        again_here = await images.pull(ref)
        assert not again_here.pinned
        assert await again(tmp_path) == {found.id: False}
