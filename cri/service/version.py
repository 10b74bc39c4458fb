"""Version."""

from __future__ import annotations

import importlib.metadata

from cri.api import v1_pb2 as v1
from cri.daemon import Daemon

# The kubelet's own API version since CRI began, which crictl shows.
KUBELET_API = "0.1.0"


def thaw_version() -> str:
    try:
        return importlib.metadata.version("thaw")
    except importlib.metadata.PackageNotFoundError:
        return "0.0.0"


async def run(daemon: Daemon, request: v1.VersionRequest) -> v1.VersionResponse:
    del daemon, request
    return v1.VersionResponse(
        version=KUBELET_API,
        runtime_name="thaw",
        runtime_version=thaw_version(),
        runtime_api_version="v1",
    )
