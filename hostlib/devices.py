"""Device rules that containers have in common: `linux.resources.devices` of the OCI spec.

A later rule wins. containerd gives all but the second and third (pkg/oci, WithDefaultUnixDevices),
runc adds those: nodes may be made, and do nothing until they may be opened.
"""

from __future__ import annotations

from typing import Any, Final

_OPEN: Final = ((1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2), (136, None))
"""null, zero, full, random, urandom, tty, console, ptmx, and all of devpts."""


def default_rules() -> list[dict[str, Any]]:
    """Deny all, but mknod and the devices that every container has."""
    rules: list[dict[str, Any]] = [
        {"allow": False, "access": "rwm"},
        {"allow": True, "type": "c", "access": "m"},
        {"allow": True, "type": "b", "access": "m"},
    ]
    for major, minor in _OPEN:
        rule = {"allow": True, "type": "c", "major": major, "access": "rwm"}
        rules.append(rule if minor is None else rule | {"minor": minor})
    return rules
