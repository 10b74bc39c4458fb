"""UpdateRuntimeConfig: the node's pod CIDR, for those who configure a network from it.

CNI plugins have configurations of their own and the built-in bridge has ``network.subnet``, so that
it is noted, as other runtimes do without a template for CNI, and changes nothing.
"""

from __future__ import annotations

import ipaddress
import logging

from cri.api import v1_pb2 as v1
from cri.daemon import Daemon
from hostlib.errors import InvalidArgument

log = logging.getLogger(__name__)


async def run(
    daemon: Daemon, request: v1.UpdateRuntimeConfigRequest
) -> v1.UpdateRuntimeConfigResponse:
    for text in filter(None, request.runtime_config.network_config.pod_cidr.split(",")):
        try:
            ipaddress.ip_network(text.strip(), strict=False)
        except ValueError as error:
            raise InvalidArgument(f"malformed pod CIDR {text!r}") from error
        log.info("pod CIDR %s; the network is set by %s", text, daemon.config.network.subnet)
    return v1.UpdateRuntimeConfigResponse()
