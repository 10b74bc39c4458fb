"""Images made of others, layer upon layer."""

from __future__ import annotations

import json
from dataclasses import replace

from demo import oci


def layered(base: oci.Image, layers: list[oci.Layer]) -> oci.Image:
    """`base` with more layers on top."""
    blobs, diff_ids = zip(*(layer.blob() for layer in layers), strict=True)
    document = json.loads(base.config.data)
    document["rootfs"]["diff_ids"] += diff_ids
    config = replace(base.config, data=json.dumps(document).encode())
    manifest = json.loads(base.manifest.data)
    manifest["config"] = config.descriptor
    manifest["layers"] += [blob.descriptor for blob in blobs]
    data = json.dumps(manifest).encode()
    return oci.Image(replace(base.manifest, data=data), config, (*base.layers, *blobs))
