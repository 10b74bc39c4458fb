from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path

from demo import oci


def _names(layer: oci.Layer) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(layer.tar())) as archive:
        return archive.getnames()


def test_the_same_files_in_another_order_are_the_same_bytes() -> None:
    first = oci.Layer().file("a/b", "1").file("c", "2").tar()
    second = oci.Layer().file("c", "2").file("a/b", "1").tar()
    assert first == second


def test_whiteouts_have_the_names_of_the_image_specification() -> None:
    assert _names(oci.Layer().delete("etc/gone").replace("srv/www")) == [
        "etc",
        "etc/.wh.gone",
        "srv",
        "srv/www",
        "srv/www/.wh..wh..opq",
    ]


def test_parents_come_before_what_they_hold() -> None:
    assert _names(oci.Layer().file("a/b/c", "")) == ["a", "a/b", "a/b/c"]


def test_an_image_names_its_layers_and_their_plain_digests() -> None:
    layer = oci.Layer().file("a", "1")
    made = oci.image([layer, oci.Layer(zstd=True).file("b", "2")], {"Cmd": ["x"]})
    manifest, config = json.loads(made.manifest.data), json.loads(made.config.data)
    assert [item["digest"] for item in manifest["layers"]] == [
        oci.digest(blob.data) for blob in made.layers
    ]
    assert config["rootfs"]["diff_ids"][0] == oci.digest(gzip.decompress(made.layers[0].data))
    assert [item["mediaType"] for item in manifest["layers"]] == [oci.LAYER_GZIP, oci.LAYER_ZSTD]
    assert config["config"] == {"Cmd": ["x"]}


def test_a_saved_image_is_loaded_as_it_was(tmp_path: Path) -> None:
    made = oci.image([oci.Layer().file("a", "1")], {})
    oci.save(made, tmp_path)
    assert oci.load(tmp_path) == made
