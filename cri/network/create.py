"""Which network the daemon gets: CNI where it is configured, else the built-in bridge.

The choice is made anew for each VM, since a configuration may come or go while the daemon runs.
What a pod was attached by is noted in its record, and that network takes it off again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from cri.network import builtin, cni
from cri.network.api import (
    Attachment,
    Dns,
    HostPort,
    NetworkConfig,
    PodIdentity,
    PodNetwork,
    Wire,
)
from cri.network.builtin import BuiltinNetwork
from cri.network.cni import CniNetwork


class AutoNetwork:
    """`PodNetwork` that is CNI or the built-in bridge, as ``network.mode`` says."""

    def __init__(self, config: NetworkConfig, instance: str, state: Path) -> None:
        self._mode = config.mode
        self._cni = CniNetwork(config, state)
        self._builtin = BuiltinNetwork(config, instance, state)
        self._builtin_started = False

    def _wants_cni(self) -> bool:
        if self._mode == "auto":
            return self._cni.refresh() is not None
        return self._mode == "cni"

    async def _start_builtin(self) -> None:
        if not self._builtin_started:
            await self._builtin.start()
            self._builtin_started = True

    async def start(self) -> None:
        await self._cni.start()
        # Pods of an earlier configuration may still be on the bridge.
        if not self._wants_cni() or self._builtin.has_leases():
            await self._start_builtin()

    async def close(self) -> None:
        await self._cni.close()
        await self._builtin.close()

    def ready(self) -> tuple[bool, str, str]:
        return self._cni.ready() if self._wants_cni() else self._builtin.ready()

    def check_room(self) -> None:
        if not self._wants_cni():
            self._builtin.check_room()

    async def prepare(self, vm_id: str, netns: Path) -> None:
        if not self._wants_cni():
            await self._start_builtin()
            await self._builtin.prepare(vm_id, netns)

    async def attach(
        self,
        vm_id: str,
        netns: Path,
        pod: PodIdentity,
        *,
        port_mappings: Sequence[HostPort] = (),
        dns: Dns | None = None,
        annotations: Mapping[str, str] | None = None,
    ) -> Attachment:
        network: PodNetwork = self._cni
        if self._wants_cni():
            # A VM prepared before the configuration came has an eth0 that is in the plugins' way.
            if self._builtin_started:
                await self._builtin.discard(vm_id, netns)
        else:
            await self._start_builtin()
            network = self._builtin
        return await network.attach(
            vm_id,
            netns,
            pod,
            port_mappings=port_mappings,
            dns=dns,
            annotations=annotations,
        )

    async def detach(self, vm_id: str, netns: Path, pod: PodIdentity, opaque: Wire) -> None:
        kind = opaque.get("kind")
        if kind != builtin.KIND:
            await self._cni.detach(vm_id, netns, pod, opaque)
        if kind != cni.KIND and (self._builtin_started or kind == builtin.KIND):
            await self._start_builtin()
            await self._builtin.detach(vm_id, netns, pod, opaque)

    async def discard(self, vm_id: str, netns: Path) -> None:
        if self._builtin_started:
            await self._builtin.discard(vm_id, netns)

    async def reconcile(self, live: Mapping[str, Wire]) -> None:
        if any(opaque.get("kind") == builtin.KIND for opaque in live.values()):
            await self._start_builtin()
        await self._cni.reconcile(live)
        if self._builtin_started:
            await self._builtin.reconcile(live)


def create(config: NetworkConfig, instance: str, state: Path, root: Path) -> PodNetwork:
    """The network of this daemon; `start` it before anything else.

    Everything that it keeps lies under `state`: a reboot takes pods and links with it. `root` is
    not used for that reason. Raises `InvalidArgument` for a bad subnet.
    """
    del root
    return AutoNetwork(config, instance, state)
