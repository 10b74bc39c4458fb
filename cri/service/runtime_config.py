"""RuntimeConfig: the cgroup driver that the kubelet is to use as well."""

from __future__ import annotations

import os

from cri.api import v1_pb2 as v1
from cri.daemon import Daemon


async def run(daemon: Daemon, request: v1.RuntimeConfigRequest) -> v1.RuntimeConfigResponse:
    del request
    driver = daemon.config.cgroup_driver
    # sd_booted(3): the folder exists where systemd is the init.
    systemd = driver == "systemd" or (driver == "auto" and os.path.isdir("/run/systemd/system"))
    return v1.RuntimeConfigResponse(
        linux=v1.LinuxRuntimeConfiguration(cgroup_driver=v1.SYSTEMD if systemd else v1.CGROUPFS)
    )
