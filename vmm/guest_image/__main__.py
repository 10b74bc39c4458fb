"""``python -m vmm.guest_image``: build the guest image."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from hostlib.errors import ThawError
from vmm.guest_image import build, scratch

PROJECT = Path(__file__).resolve().parent.parent.parent


def default_agent() -> Path:
    """Where cargo puts the agent, with an explicit target or without; the newest wins."""
    target = PROJECT / "guest_agent" / "target"
    plain = target / "release" / "thaw-agent"
    found = [path for path in (plain, *target.glob("*/release/thaw-agent")) if path.is_file()]
    return max(found, key=lambda path: path.stat().st_mtime, default=plain)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m vmm.guest_image", description="Build the guest image."
    )
    parser.add_argument("--out", type=Path, default=PROJECT / ".build" / "guest")
    parser.add_argument("--agent", type=Path, default=default_agent())
    parser.add_argument("--kernel-package", type=Path, help="a kernel .deb instead of the mirror's")
    parser.add_argument(
        "--scratch-size", type=int, default=scratch.DEFAULT_SIZE, help="bytes of the scratch disk"
    )
    parser.add_argument("--refresh", action="store_true", help="ask the mirror for a newer kernel")
    args = parser.parse_args()
    try:
        image = asyncio.run(
            build.build(
                args.out,
                args.agent,
                package=args.kernel_package,
                scratch_size=args.scratch_size,
                refresh=args.refresh,
            )
        )
    except ThawError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 1
    print(f"guest image: kernel {image.kernel_version}, {args.out}", file=sys.stderr)  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
