"""What the daemon knows of a pod's network: one protocol, whatever stands behind it.

A VM is born with a network namespace of its own, pinned at a path, with ``tap0`` open in it. A
`PodNetwork` joins that tap to a network. All its methods are safe to repeat after a crash.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, Protocol

INTERFACE: Final = "eth0"
"""The pod's interface, in the VM's namespace and in the guest alike."""

TAP: Final = "tap0"
"""The tap that QEMU holds, in the VM's namespace."""

Wire = dict[str, Any]
"""A JSON object."""


@dataclass(frozen=True)
class PodIdentity:
    """Whose network it is: the sandbox id, and the pod's name, namespace and uid in Kubernetes."""

    id: str
    name: str = ""
    namespace: str = ""
    uid: str = ""


@dataclass(frozen=True)
class HostPort:
    """A port of the host that leads to a port of the pod.

    ``host_port`` 0 asks for nothing; an empty ``host_ip`` means every address of the host,
    loopback included; ``0.0.0.0`` and ``::`` mean every one of their family.
    """

    protocol: Literal["tcp", "udp", "sctp"]
    container_port: int
    host_port: int
    host_ip: str = ""


@dataclass(frozen=True)
class Dns:
    """The pod's resolver configuration, as CRI's DNSConfig; for plugins that ask for it."""

    servers: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Attachment:
    """A pod's place in the network.

    ``ips`` are plain addresses, the primary one first. ``guest`` is the ``network`` object that the
    guest agent's ``restore`` takes (docs/protocol.md). ``opaque`` goes into the pod's record as it
    is; it is all that `PodNetwork.detach` needs.
    """

    ips: tuple[str, ...]
    interface: str
    guest: Wire
    opaque: Wire


@dataclass(frozen=True)
class NetworkConfig:
    """The network section of the configuration.

    ``mode`` ``auto`` takes CNI where ``cni_conf_dir`` holds a configuration, and the built-in
    bridge otherwise. ``subnet`` is the built-in network's, IPv4, CIDR; ``subnet6`` its IPv6 one,
    empty for none; an empty ``bridge`` is named after the instance. Time-outs are in seconds.
    """

    mode: Literal["auto", "cni", "builtin"] = "auto"
    subnet: str = "10.88.0.0/16"
    subnet6: str = ""
    mtu: int = 1500
    bridge: str = ""
    masquerade: bool = True
    cni_conf_dir: Path = Path("/etc/cni/net.d")
    cni_bin_dirs: tuple[Path, ...] = field(default=(Path("/opt/cni/bin"), Path("/usr/lib/cni")))
    cni_timeout: float = 60.0


class PodNetwork(Protocol):
    """A network that pods can be attached to."""

    async def start(self) -> None:
        """Make what all pods share. What fails is told by `ready` too; `FailedPrecondition` when
        the configuration cannot work on this host."""
        ...

    async def close(self) -> None:
        """Let go of it; what all pods share is removed when no pod and no VM uses it."""
        ...

    def ready(self) -> tuple[bool, str, str]:
        """CRI's NetworkReady condition: status, reason, message. Reason and message are empty
        when it is ready."""
        ...

    def check_room(self) -> None:
        """Asked before a VM is made. Raises `ResourceExhausted` where another one could certainly
        not be connected."""
        ...

    async def prepare(self, vm_id: str, netns: Path) -> None:
        """Do for a pooled VM what needs no pod. `attach` does it itself where it was not done."""
        ...

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
        """Give the pod its addresses and ports. When it fails nothing is left of it.

        Raises `ResourceExhausted` when no address is free, `FailedPrecondition` when a host port
        is taken, `Unavailable` when a plugin fails.
        """
        ...

    async def detach(self, vm_id: str, netns: Path, pod: PodIdentity, opaque: Wire) -> None:
        """Undo `attach` and `prepare`. Idempotent; works after a crash, with an empty `opaque`
        (the crash came before the record), and when the namespace is gone."""
        ...

    async def discard(self, vm_id: str, netns: Path) -> None:
        """Undo `prepare` for a pooled VM that is thrown away. Idempotent."""
        ...

    async def reconcile(self, live: Mapping[str, Wire]) -> None:
        """Free the addresses, ports and links that nothing holds.

        `live` has every VM that lives on, by its VM id (not the pod's): a pod's ``opaque``, an
        empty object for a pooled VM, or for a pod whose network was never recorded.
        """
        ...
