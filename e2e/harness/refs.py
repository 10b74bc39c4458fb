"""The references of the test images, and a command that does nothing for long."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

SHELL: Final = "registry.test/demo/shell:latest"
NGINX: Final = "registry.test/demo/nginx:latest"
WEBAPP: Final = "registry.test/demo/webapp:latest"
SLEEP: Final = ("/bin/sleep", "1000000")
SMALL: Final[Mapping[str, object]] = {"shapes": ["1x256"], "default_shape": "1x256"}
"""The section ``guest`` of a daemon whose base bakes soonest."""
SIZED: Final[Mapping[str, object]] = {"shapes": ["1x256", "2x512"], "default_shape": "1x256"}
"""The same with a larger VM beside it."""
