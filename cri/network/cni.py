"""Pod networks by CNI plugins, as libcni runs them (https://www.cni.dev/docs/spec/, section 4).

After ADD the plugin's interface and the VM's tap are joined; the guest gets the addresses, routes
and neighbours that the plugins configured in the namespace, so that any plugin works.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pyroute2.netlink.exceptions import NetlinkError

from cri.network import cni_config, netlink
from cri.network.api import (
    INTERFACE,
    TAP,
    Attachment,
    Dns,
    HostPort,
    NetworkConfig,
    PodIdentity,
    Wire,
)
from cri.network.cni_config import NetworkList
from hostlib import failpoint, process, records
from hostlib.errors import (
    DataLoss,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    ThawError,
    Unavailable,
)

log = logging.getLogger(__name__)

KIND: Final = "cni"
_CACHE: Final = "cni-attachment"
_VERSION: Final = 1
_TRY_AGAIN: Final = 11
"""The CNI error code for "try again later"."""
_FULL: Final = ("no IP addresses available", "no addresses available")


class CniNetwork:
    """`cri.network.api.PodNetwork` by the configuration in ``cni_conf_dir``."""

    kind = KIND

    def __init__(self, config: NetworkConfig, state: Path) -> None:
        self._config = config
        self._state = state / "cni"
        self._cache = self._state / "cache"
        self._stamp: object = None
        self._network: NetworkList | None = None
        self._reason = "not read yet"

    async def start(self) -> None:
        self._cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        records.sweep(self._cache)
        self.refresh()

    async def close(self) -> None:
        """Plugins keep nothing running."""

    def refresh(self) -> NetworkList | None:
        """The configuration as it is now; read anew only when a file has changed."""
        stamp = cni_config.stamp(self._config.cni_conf_dir)
        if stamp != self._stamp:
            self._network, self._reason = cni_config.load(self._config.cni_conf_dir)
            self._stamp = stamp
        return self._network

    def ready(self) -> tuple[bool, str, str]:
        network = self.refresh()
        if network is None:
            return False, "NetworkPluginNotReady", f"cni plugin not initialized: {self._reason}"
        for plugin in network.plugins:
            try:
                self._find(plugin["type"])
            except FailedPrecondition as error:
                return False, "NetworkPluginNotReady", str(error)
        return True, "", ""

    def check_room(self) -> None:
        """What there is room for is the plugins' to say."""

    async def prepare(self, vm_id: str, netns: Path) -> None:
        """Nothing can be done before the pod is known."""

    async def discard(self, vm_id: str, netns: Path) -> None:
        """Nothing was done."""

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
        network = self.refresh()
        if network is None:
            raise FailedPrecondition(
                f"no CNI network: {self._reason}",
                hint=f"put a configuration into {self._config.cni_conf_dir}",
            )
        for plugin in network.plugins:
            # Before the first one runs: one that is missing could not be asked to undo anything.
            self._find(plugin["type"])
        ports = [port for port in port_mappings if port.host_port]
        try:
            offered = cni_config.capabilities(ports, dns, annotations or {})
        except ValueError as error:
            raise InvalidArgument(f"bad bandwidth annotation: {error}") from error
        cached: Wire = {
            "name": network.name,
            "cni_version": network.version,
            "plugins": list(network.plugins),
            "offered": offered,
            "result": None,
            "vm": vm_id,
            "netns": str(netns),
            "identity": [pod.name, pod.namespace, pod.uid],
        }
        # Before the first plugin runs, so that DEL finds it whatever happens.
        self._remember(pod.id, cached)
        try:
            await failpoint.hit("network.attach.address")
            result: Wire = {}
            for plugin in network.plugins:
                answer = await self._run(
                    "ADD", network, plugin, offered, netns, pod, result or None
                )
                result = answer or result
            cached["result"] = result
            self._remember(pod.id, cached)
            await failpoint.hit("network.attach.link")
            guest = await self._connect(netns)
            await failpoint.hit("network.attach.done")
            ips = addresses(result)
            if not ips:
                raise Unavailable(f"CNI network {network.name} gave the pod no address")
            if not guest["addresses"]:
                guest |= from_result(result)
        except BaseException as error:
            await self._undo(pod, netns, quiet=True)
            if isinstance(error, NetlinkError | OSError):
                raise netlink.as_error(error, f"attach pod {pod.id}") from error
            raise
        return Attachment(ips, INTERFACE, guest, {"kind": KIND, "pod": pod.id, **cached})

    async def _connect(self, netns: Path) -> Wire:
        async with netlink.inside(netns, ipv6=True) as inner:
            found = await netlink.links(inner)
            for name in (INTERFACE, TAP):
                if name not in found:
                    raise Internal(f"the pod's namespace has no {name} after CNI ADD")
            if "lo" in found and not found["lo"].up:
                await inner.link("set", index=found["lo"].index, state="up")
            # Read before the link carries traffic of the guest alone.
            guest = await netlink.configuration(inner, found[INTERFACE])
            await netlink.join(inner, found[INTERFACE], found[TAP])
        return guest

    async def detach(
        self,
        vm_id: str,  # noqa: ARG002
        netns: Path,
        pod: PodIdentity,
        opaque: Wire,
    ) -> None:
        if opaque.get("plugins") and not self._path(pod.id).exists():
            # The cache is gone, or DEL was done before: plugins must take a second DEL.
            self._remember(pod.id, opaque)
        await self._undo(pod, netns, quiet=False)

    async def _undo(self, pod: PodIdentity, netns: Path | None, *, quiet: bool) -> None:
        """DEL in reverse order; the cache goes only when every plugin has agreed, so that what
        failed is tried again. Without `netns` the namespace is the one that ADD was told: a VM
        that was not bound yet lives on, and must not keep the interface."""
        try:
            cached = records.read(self._path(pod.id), _CACHE, _VERSION)
        except FileNotFoundError:
            return
        network = NetworkList(
            cached["name"], cached["cni_version"], tuple(cached["plugins"]), self._path(pod.id)
        )
        if netns is None:
            netns = Path(cached.get("netns") or "/nonexistent")
        name, namespace, uid = cached["identity"]
        whole = PodIdentity(pod.id, name, namespace, uid)
        failure: ThawError | None = None
        for plugin in reversed(network.plugins):
            try:
                await failpoint.hit("network.detach.plugin")
                await self._run(
                    "DEL", network, plugin, cached["offered"], netns, whole, cached["result"]
                )
            except ThawError as error:
                log.warning("CNI DEL of pod %s: %s", pod.id, error)
                failure = failure or error
        if failure is None:
            self._path(pod.id).unlink(missing_ok=True)
        elif not quiet:
            raise failure

    async def reconcile(self, live: Mapping[str, Wire]) -> None:
        held = {opaque["pod"] for opaque in live.values() if opaque.get("kind") == KIND}
        for path in sorted(self._cache.glob("[0-9a-f]*.json")):
            pod = path.name.removesuffix(".json")
            if pod in held:
                continue
            try:
                await self._undo(PodIdentity(pod), None, quiet=False)
            except DataLoss as error:
                log.warning("%s; removed", error)
                path.unlink(missing_ok=True)
            except ThawError as error:
                log.warning("the network of pod %s stays for the next start: %s", pod, error)

    def _path(self, pod: str) -> Path:
        return self._cache / f"{pod}.json"

    def _remember(self, pod: str, cached: Wire) -> None:
        body = {k: v for k, v in cached.items() if k not in ("kind", "pod")}
        self._cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        records.write(self._path(pod), _CACHE, _VERSION, body, durable=False)

    def _find(self, kind: str) -> str:
        for folder in self._config.cni_bin_dirs:
            path = folder / kind
            if os.access(path, os.X_OK):
                return str(path)
        where = ", ".join(str(folder) for folder in self._config.cni_bin_dirs)
        raise FailedPrecondition(
            f"CNI plugin {kind} is not in {where}",
            hint="apt-get install containernetworking-plugins, or set network.cni_bin_dirs",
        )

    async def _run(
        self,
        command: str,
        network: NetworkList,
        plugin: Wire,
        offered: Wire,
        netns: Path,
        pod: PodIdentity,
        previous: Wire | None,
    ) -> Wire | None:
        """One plugin's answer to ADD, DEL or CHECK."""
        kind = str(plugin["type"])
        exists = netns.exists()
        if command == "ADD" and not exists:
            raise NotFound(f"the pod has no network namespace at {netns}")
        arguments = [
            "IgnoreUnknown=1",
            f"K8S_POD_NAMESPACE={pod.namespace}",
            f"K8S_POD_NAME={pod.name}",
            f"K8S_POD_INFRA_CONTAINER_ID={pod.id}",
            f"K8S_POD_UID={pod.uid}",
        ]
        env = {
            **process.ENVIRONMENT,
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": pod.id,
            # DEL with an empty path frees what lies outside of the namespace that is gone.
            "CNI_NETNS": str(netns) if exists else "",
            "CNI_IFNAME": INTERFACE,
            "CNI_ARGS": ";".join(arguments),
            "CNI_PATH": ":".join(str(folder) for folder in self._config.cni_bin_dirs),
        }
        body = cni_config.request(network, plugin, offered, self._state, previous)
        done = await process.run(
            self._find(kind),
            stdin=json.dumps(body).encode(),
            timeout=self._config.cni_timeout,
            env=env,
            check=False,
        )
        if done.returncode != 0:
            raise plugin_error(f"CNI plugin {kind} {command}", done)
        return _result(done.stdout, kind) if command == "ADD" else None

    async def check(self, netns: Path, pod: PodIdentity) -> None:
        """CHECK: whether the pod's network is still as ADD left it. Raises what a plugin reports;
        plugins know it since 0.4.0, for older configurations nothing is done."""
        cached = records.read(self._path(pod.id), _CACHE, _VERSION)
        if cached["cni_version"] in ("0.3.0", "0.3.1"):
            return
        network = NetworkList(
            cached["name"], cached["cni_version"], tuple(cached["plugins"]), self._path(pod.id)
        )
        for plugin in network.plugins:
            await self._run(
                "CHECK", network, plugin, cached["offered"], netns, pod, cached["result"]
            )


def _result(data: bytes, kind: str) -> Wire | None:
    if not data.strip():
        return None
    try:
        body = json.loads(data)
    except ValueError as error:
        raise Unavailable(f"CNI plugin {kind} answered with something that is no JSON") from error
    if not isinstance(body, dict):
        raise Unavailable(f"CNI plugin {kind} answered with something that is no object")
    return body


def plugin_error(what: str, done: process.Result) -> ThawError:
    """A plugin's refusal: an error object on its standard output, else whatever it wrote."""
    body: Any = None
    try:
        body = json.loads(done.stdout)
    except ValueError:
        pass
    if not isinstance(body, dict):
        tail = (done.stderr or done.stdout).decode(errors="replace").strip()[-1000:]
        return Unavailable(f"{what} failed with {done.returncode}: {tail}")
    parts = [str(body[k])[:1000] for k in ("msg", "details") if body.get(k)]
    text = f"{what} failed: {': '.join(parts)} (code {body.get('code')})"
    if any(mark in text for mark in _FULL):
        return ResourceExhausted(text, hint="remove pods, or give the network a larger range")
    hint = "the plugin asks to try again later" if body.get("code") == _TRY_AGAIN else None
    return Unavailable(text, hint=hint)


def addresses(result: Wire) -> tuple[str, ...]:
    """The pod's addresses in a result, without prefix; the first IPv4 address leads."""
    plain = [str(ip["address"]).partition("/")[0] for ip in result.get("ips", ())]
    return tuple(sorted(plain, key=lambda ip: ":" in ip))


def from_result(result: Wire) -> Wire:
    """Addresses and routes for the guest, from a result alone: where a plugin leaves the
    interface bare and configures by other means."""
    ips = list(result.get("ips", ()))
    gateways = {":" in ip["gateway"]: ip["gateway"] for ip in reversed(ips) if ip.get("gateway")}
    routes = []
    for route in result.get("routes", ()):
        gateway = route.get("gw") or gateways.get(":" in route["dst"])
        routes.append({"dst": route["dst"], **({"gateway": gateway} if gateway else {})})
    routes.sort(key=lambda route: "gateway" in route)
    return {"addresses": [ip["address"] for ip in ips], "routes": routes}
