"""The daemon's configuration; `hostlib.config` says how it is read."""

# ruff: noqa: RUF009 (`setting` makes a dataclass field, which ruff cannot see)

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from cri.streaming_config import Streaming
from cri.telemetry.config import Metrics
from hostlib import config, ids, log
from hostlib.config import BadValue, setting
from hostlib.errors import InvalidArgument
from images.model import GIB, MIB, Limits
from images.pinned import Pinned

SHAPE: Final = r"[1-9][0-9]?x[1-9][0-9]{1,6}"

_SYSTEM_IDS: Final = 65536

DEFAULT_FILE: Final = Path("/etc/thaw/config.toml")


def default_guest_dir() -> Path:
    """Where a checkout's build puts the guest, else where a package does."""
    project = Path(__file__).resolve().parents[1]
    if (project / "pyproject.toml").is_file():
        return project / ".build" / "guest"
    return Path("/usr/lib/thaw/guest")


_GUEST: Final = default_guest_dir()


@dataclass(frozen=True)
class Guest:
    dir: Path = setting(_GUEST, "The folder with the guest's kernel, initramfs, rehearsal layer.")
    shapes: tuple[str, ...] = setting(
        ("1x2048", "2x4096", "4x8192", "8x16384"),
        "The ladder of machine shapes, CPUSxMEMORY in MiB, smallest first. A pod gets the first\n"
        "that holds what it asks for. Each is baked when it is first wanted.",
        pattern=SHAPE,
        pattern_hint='CPUSxMEMORY in MiB, for example "2x2048"',
    )
    default_shape: str = setting(
        "1x2048",
        "The shape of a pod that asks for no more than it has; the pool keeps this one ready.\n"
        "Memory costs nothing before it is touched; a second CPU doubles the cost of a start\n"
        "under TCG.",
        pattern=SHAPE,
        pattern_hint='CPUSxMEMORY in MiB, for example "2x2048"',
    )

    def validate(self) -> None:
        if self.default_shape not in self.shapes:
            raise BadValue(
                "default_shape",
                f"{self.default_shape!r} is not among shapes",
                "one of: " + ", ".join(self.shapes),
            )


@dataclass(frozen=True)
class Vm:
    accel: str = setting(
        "auto",
        'The accelerator. "auto" takes KVM where it is proved to work, else TCG.',
        choices=("auto", "kvm", "tcg"),
    )
    qemu: str = setting(
        "qemu-system-x86_64", "The QEMU program: a name on PATH, or an absolute path."
    )
    rehearse: bool = setting(
        True,
        "Whether a VM lives one container's life before it waits in the pool: it costs half a\n"
        "second of one core and, under TCG, 20 MB; pods start several times faster.",
    )
    max_memory_mib: int = setting(
        0,
        "A pod's VM grows to this much memory at most while it runs, when the limits of its\n"
        "containers are raised. 0 is the machine's memory. Shapes may be larger.",
        minimum=0,
    )
    max_cpus: int = setting(
        0,
        "A pod's VM grows to so many vCPUs at most, with KVM. 0 is the machine's processors.",
        minimum=0,
    )
    slots: int = setting(
        12,
        "How many image layers can be mounted in one pod. An image whose layers are merged needs\n"
        "one; see images.merge.",
        minimum=1,
        maximum=24,
    )
    uid_base: int = setting(
        ids.WORKER_UID_BASE,
        "QEMU runs as a user and a group of its own for each VM: this number + its parent's pid,\n"
        "4194304 ids at most. 0: as root, with the same few capabilities; for volumes on servers\n"
        "that serve files of all owners to root alone, such as NFS.",
        minimum=0,
        maximum=0xFFFFFFFE - ids.WORKER_UIDS,
    )

    def validate(self) -> None:
        if 0 < self.uid_base < _SYSTEM_IDS:
            raise BadValue(
                "uid_base",
                f"{self.uid_base} is among the ids of users and services",
                f"from {_SYSTEM_IDS}, or 0",
            )


@dataclass(frozen=True)
class Pool:
    size: int = setting(
        10,
        "How many VMs of the default shape wait ready on a quiet node: the pods that start in a\n"
        "burst. 0: there is no pool.",
        minimum=0,
        maximum=1000,
    )
    max_size: int = setting(
        0,
        "How many wait at most, after bursts that were larger; the memory of a burst halves every\n"
        "10 minutes. 0 is 4 for each processor. The pool stays at size where this is less.",
        minimum=0,
        maximum=1000,
    )
    max_memory_mib: int = setting(
        0,
        "The pool holds no more VMs than have so much private memory, each counted with\n"
        "reserve_mib. 0 is an eighth of the machine's memory.",
        minimum=0,
    )
    reserve_mib: int = setting(
        64, "What one waiting VM is counted with (QEMU, shim, translated code).", minimum=1
    )
    min_available_percent: int = setting(
        5,
        "All waiting VMs end while less of the machine's memory is available (MemAvailable).\n"
        "0: this is not looked at.",
        minimum=0,
        maximum=90,
    )
    max_stall_percent: int = setting(
        10,
        "They end too while tasks wait for memory more of the time than this (the kernel's\n"
        "pressure stall information) and less than 4 times min_available_percent is available.\n"
        "0: this is not looked at.",
        minimum=0,
        maximum=100,
    )
    relief_seconds: float = setting(
        60.0, "How long memory must not be short before VMs are made to wait again.", minimum=0.0
    )
    parallel: int = setting(
        0,
        "How many VMs are restored for the pool at a time. 0 is one for each 8 processors, and at\n"
        "least one.",
        minimum=0,
        maximum=64,
    )
    on_the_spot: int = setting(
        0,
        "How many VMs are restored at a time for pods that found the pool empty; more pods wait\n"
        "their turn. 0 is twice the processors.",
        minimum=0,
        maximum=1024,
    )


@dataclass(frozen=True)
class Registry:
    config_path: str = setting(
        "",
        "The folder with hosts.toml files, one folder for each registry, in containerd's form:\n"
        "mirrors, plain http, private certificate authorities. Empty: none.",
    )

    def validate(self) -> None:
        if self.config_path and not Path(self.config_path).is_absolute():
            raise BadValue("config_path", "must be an absolute path", "begin it with /")


@dataclass(frozen=True)
class Images:
    max_layers: int = setting(127, "More layers than this are refused.", minimum=1, maximum=1000)
    max_layer_gib: int = setting(
        64, "A layer that unpacks to more than this is refused.", minimum=1
    )
    max_layer_entries: int = setting(
        4_000_000, "A layer with more files than this is refused.", minimum=1
    )
    parallel: int = setting(
        3, "How many layers are downloaded and converted at a time.", minimum=1, maximum=64
    )
    stall_seconds: float = setting(
        60.0, "A transfer in which nothing arrives for so long is given up.", minimum=1.0
    )
    merge: str = setting(
        "auto",
        'When an image\'s layers are merged into one file. "auto": all, in the background after\n'
        'their pull. "needed": only where they are more than vm.slots, as part of the pull.',
        choices=("auto", "needed"),
    )
    tag_ttl_seconds: float = setting(
        300.0,
        "How long `thaw pull` and `thaw run` take a tag for what it meant when its registry was\n"
        "last asked. The kubelet's pulls always ask.",
        minimum=0.0,
    )
    pinned: tuple[str, ...] = setting(
        (),
        "Images that the kubelet's garbage collection is told to keep: names, or patterns such as\n"
        '"registry.example/base/*".',
    )
    min_free_mib: int = setting(
        256, "A pull is refused or ended when the disk would have less free.", minimum=0
    )

    def validate(self) -> None:
        try:
            Pinned(self.pinned)
        except InvalidArgument as error:
            raise BadValue("pinned", error.message, error.hint) from error


@dataclass(frozen=True)
class Network:
    mode: str = setting(
        "auto",
        'What connects pods. "auto": CNI where cni_conf_dir has a configuration, else "builtin":\n'
        "a bridge of the daemon's own.",
        choices=("auto", "cni", "builtin"),
    )
    cni_conf_dir: str = setting(
        "/etc/cni/net.d",
        "The folder with CNI configurations; the first by name is used. Empty: CNI is not used.",
        pattern="(/.*)?",
        pattern_hint="an absolute path, or nothing",
    )
    cni_bin_dirs: tuple[Path, ...] = setting(
        (Path("/opt/cni/bin"), Path("/usr/lib/cni")), "Where CNI plugins are looked for."
    )
    subnet: str = setting(
        "10.88.0.0/16", "The built-in bridge's IPv4 subnet; its first address is the host's."
    )
    subnet6: str = setting(
        "",
        "The built-in bridge's IPv6 subnet, for pods with an address of both kinds; a /64 of\n"
        "fd00::/8, for example. Empty: pods have IPv4 alone.",
    )
    mtu: int = setting(1500, "The built-in network's MTU.", minimum=576, maximum=65535)
    cni_timeout_seconds: float = setting(
        60.0, "How long a chain of CNI plugins may take.", minimum=1.0
    )
    dns_servers: tuple[str, ...] = setting(
        (), "Name servers of pods that name none themselves. Empty: the host's resolv.conf."
    )

    def validate(self) -> None:
        if self.mode == "cni" and not self.cni_conf_dir:
            raise BadValue("cni_conf_dir", 'mode "cni" needs a folder', 'write "/etc/cni/net.d"')
        try:
            network = ipaddress.IPv4Network(self.subnet)
        except ValueError as error:
            raise BadValue("subnet", str(error), 'write "10.88.0.0/16"') from error
        if network.prefixlen > 29:
            raise BadValue("subnet", "too small for a pod", "a prefix of 29 or shorter")
        if self.subnet6:
            try:
                six = ipaddress.IPv6Network(self.subnet6)
            except ValueError as error:
                raise BadValue("subnet6", str(error), 'write "fd00:88::/64"') from error
            if six.num_addresses < network.num_addresses:
                raise BadValue("subnet6", "smaller than network.subnet", "a prefix of 64 will do")
        for server in self.dns_servers:
            try:
                ipaddress.ip_address(server)
            except ValueError as error:
                raise BadValue("dns_servers", str(error), "write addresses, not names") from error


@dataclass(frozen=True)
class Snapshot:
    on_demand: bool = setting(
        False,
        "false: the default shape is baked as the daemon starts. true: not before a pod needs it.",
    )


@dataclass(frozen=True)
class Timeouts:
    spawn_seconds: float = setting(
        60.0, "How long a VM may take until it waits ready.", minimum=1.0
    )
    bind_seconds: float = setting(
        45.0,
        "How long the eight restore steps may take. The shim waits 30 s for the guest, and says why"
        " where that was not enough.",
        minimum=1.0,
    )
    bake_seconds: float = setting(600.0, "How long a bake may take.", minimum=10.0)
    adopt_seconds: float = setting(
        1.5, "How long one shim may take to answer a daemon that starts.", minimum=0.1
    )
    call_seconds: float = setting(60.0, "How long a shim may take for a plain call.", minimum=1.0)


@dataclass(frozen=True)
class Config:
    root: Path = setting(
        Path("/var/lib/thaw"), "What is kept: images, snapshots, scratch disks, addresses."
    )
    state: Path = setting(
        Path("/run/thaw"), "What a reboot may take: records, sockets, network namespaces."
    )
    listen: str = setting(
        "unix:///run/thaw/thawd.sock",
        "The socket that the kubelet and crictl connect to.",
        pattern=r"unix:///.+",
        pattern_hint='a unix socket: "unix:///run/thaw/thawd.sock"',
    )
    log_level: str = setting("info", "How much is logged.", choices=log.LEVELS)
    cgroup_driver: str = setting(
        "auto",
        'What the kubelet is told. "auto": systemd where it runs, else cgroupfs.',
        choices=("auto", "systemd", "cgroupfs"),
    )
    guest: Guest = field(default_factory=Guest)
    vm: Vm = field(default_factory=Vm)
    pool: Pool = field(default_factory=Pool)
    registry: Registry = field(default_factory=Registry)
    images: Images = field(default_factory=Images)
    network: Network = field(default_factory=Network)
    streaming: Streaming = field(default_factory=Streaming)
    metrics: Metrics = field(default_factory=Metrics)
    snapshot: Snapshot = field(default_factory=Snapshot)
    timeouts: Timeouts = field(default_factory=Timeouts)

    def validate(self) -> None:
        # sun_path holds 108 bytes; the longest below state is vms/<8>/shim.sock.
        for key, path in (
            ("listen", self.socket_path),
            ("state", self.state / "vms" / "00000000" / "shim.sock"),
        ):
            if len(str(path).encode()) > 107:
                raise BadValue(key, f"{path} is longer than 107 bytes", "use a shorter path")
        if self.root == self.state:
            raise BadValue("state", "root and state must differ", "use another folder")

    @property
    def socket_path(self) -> Path:
        """The path in `listen`."""
        return Path(self.listen.removeprefix("unix://"))

    @property
    def instance(self) -> str:
        """What marks this daemon's global names."""
        return ids.instance_id(self.root)


def image_limits(images: Images) -> Limits:
    """The section as the image store wants it."""
    return Limits(
        layer_bytes=images.max_layer_gib * GIB,
        layer_entries=images.max_layer_entries,
        layers=images.max_layers,
        parallel_layers=images.parallel,
        stall_timeout=images.stall_seconds,
        min_free_bytes=images.min_free_mib * MIB,
    )


def load(file: Path | None, flags: dict[str, Any] | None = None) -> Config:
    """The configuration; `DEFAULT_FILE` is read when no `file` is named and it exists.

    Raises `hostlib.config.BadConfig`.
    """
    if file is None and DEFAULT_FILE.is_file():
        file = DEFAULT_FILE
    return config.load(Config, file=file, flags=flags)


def check(file: Path) -> Config:
    """What `thaw config check` does: the configuration, or `hostlib.config.BadConfig`."""
    return config.load(Config, file=file)


def commented_template() -> str:
    """A configuration file with every setting explained and commented out."""
    return config.template(
        Config,
        Config(),
        (
            "Configuration of thawd. Every setting is shown with its default.",
            "Files in <this file>.d/*.toml override it, flags override both.",
        ),
    )


def shape_size(shape: str) -> tuple[int, int]:
    """The vCPUs and the MiB of memory of a shape."""
    match = re.fullmatch(r"(\d+)x(\d+)", shape)
    assert match is not None
    return int(match.group(1)), int(match.group(2))
