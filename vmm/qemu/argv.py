"""From a typed machine to QEMU's command line: a pure function.

Bake and restore give the same machine; only the RAM's file, `-incoming`, the kernel and the
descriptors differ, none of which the guest can see. `fingerprint` is what a snapshot's key holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from vmm.channel import SERIAL, VSOCK
from vmm.shape import MachineShape

RO_SLOTS: Final = 12
RW_SLOTS: Final = 4
SLOTS: Final = RO_SLOTS + RW_SLOTS
SCRATCH_SLOT: Final = RO_SLOTS
"""The first read-write slot: the VM's scratch disk, mounted since the bake."""

FREE_RW_SLOTS: Final = range(SCRATCH_SLOT + 1, SLOTS)
"""The others, for block devices of the host."""

SLOT_SIZE: Final = 1 << 40
"""Bytes of an empty slot: a guest reads at most this much of what is put into it later."""

BAKED_MAC: Final = "52:54:00:74:68:77"
AGENT_PORT: Final = "thaw.agent.0"
SHARE_TAG: Final = "share"
GROWTH_PORT: Final = "hot0"
"""Where a device can be plugged while the guest runs (`vmm.growth`)."""

KERNEL_COMMAND_LINE: Final = (
    "console=ttyS0 quiet loglevel=3 panic=-1 reboot=t tsc=reliable no_timer_check "
    "random.trust_cpu=on net.ifnames=0 cryptomgr.notests "
    # No profile is ever loaded into a guest, and nobody reads its audit log: AppArmor and audit
    # would cost a fifth of each exec under emulation.
    "lsm=landlock,yama audit=0 "
    # Each timer that an idle guest sets wakes QEMU four times: half of them were these.
    "nowatchdog sysctl.vm.stat_interval=30 sysctl.vm.compaction_proactiveness=0 "
    "sysctl.net.ipv4.neigh.default.interval_probe_time_ms=3600000 "
    "sysctl.net.ipv6.neigh.default.interval_probe_time_ms=3600000 "
    # Who has not been spoken to for a minute is asked for anew. Linux would remember the first 128
    # for ever, though their addresses may be other pods' now, which tell the host alone.
    "sysctl.net.ipv4.neigh.default.gc_thresh1=0 sysctl.net.ipv6.neigh.default.gc_thresh1=0 "
    # What is to be written is looked at as often as it has to be written (dirty_expire_centisecs),
    # not six times before: each start of a container writes something.
    "sysctl.vm.dirty_writeback_centisecs=3000 "
    # A huge page zeroed for a small process is 2 MiB of the VM's own memory.
    "transparent_hugepage=madvise "
    # Memory that may come above 4 GiB would make the kernel set 64 MiB aside for devices that
    # cannot reach it; there is none.
    "swiotlb=noforce "
    # Memory that is plugged is used at once, and for what can be moved off it again, as long as
    # that is no more than three times what the kernel can use for itself.
    "memhp_default_state=online memory_hotplug.online_policy=auto-movable"
)

# Each costs time under emulation: five-level paging and supervisor access checks, and the flags
# that make memcpy use `rep movsb`, which TCG runs byte by byte.
_CPU: Final = {
    "tcg": "max,la57=off,erms=off,fsrm=off,smap=off",
    "kvm": "host,migratable=on",
    "hvf": "host",
}

_CODE_BASE_MIB: Final = 32
_CODE_MIB_PER_VCPU: Final = 32
"""Size of the buffer for translated code. QEMU's own default is 1 GiB for each VM, which is never
given back: programs are translated anew each time they start, as their addresses are random, so
each container life (create, start, exec, end) was measured to add 1.9 MiB. An idle pod fills about
26 MiB; a buffer below that is flushed while a pod starts, which makes its start several times
slower."""

SANDBOX: Final = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


@dataclass(frozen=True)
class KernelBoot:
    """What a cold boot loads, as inherited descriptors; a restore needs none of it."""

    kernel_fd: int
    initramfs_fd: int


@dataclass(frozen=True)
class SerialAgent:
    """The agent's channel is a virtio-serial port, whose host side is this inherited socket."""

    fd: int


@dataclass(frozen=True)
class VsockAgent:
    """The agent's channel is vsock: an inherited vhost-vsock descriptor that holds `cid`."""

    vhost_fd: int
    cid: int


@dataclass(frozen=True)
class Machine:
    """One QEMU process. Numbers are descriptors that it inherits."""

    qemu: str
    name: str
    """Tells whose process it is, in a list of them."""
    accel: str
    shape: MachineShape
    ram_path: str
    ram_shared: bool
    """True at bake, where the guest's writes go to the file; False maps it copy-on-write."""
    qmp_fd: int
    agent: SerialAgent | VsockAgent
    console_fd: int
    tap_fd: int
    share: str
    boot: KernelBoot | None = None
    incoming: bool = False


def cpu_model(accel: str) -> str:
    return _CPU[accel]


def accelerator(accel: str, vcpus: int) -> str:
    """QEMU's accelerator with its options."""
    if accel != "tcg":
        return accel
    return f"tcg,tb-size={_CODE_BASE_MIB + vcpus * _CODE_MIB_PER_VCPU}"


def is_read_only(slot: int) -> bool:
    """Slots 0 to 11 are read-only, 12 to 15 read-write: the guest sees it at bake."""
    return slot < RO_SLOTS


def _escape(value: str) -> str:
    """A value in QEMU's option syntax, where a comma is doubled."""
    return value.replace(",", ",,")


def _agent(channel: str, host: SerialAgent | VsockAgent | None) -> list[str]:
    """The channel's devices; `host` is what of it the guest does not see."""
    if channel == VSOCK:
        # After a restore the device resets its transport and the guest reads its new context id.
        own = (
            f",vhostfd={host.vhost_fd},guest-cid={host.cid}" if isinstance(host, VsockAgent) else ""
        )
        return ["-device", f"vhost-vsock-pci,id=vsock0{own}"]
    return [
        *("-device", "virtio-serial-pci,id=serial0,max_ports=2"),
        *("-device", f"virtserialport,bus=serial0.0,nr=1,chardev=agent,name={AGENT_PORT}"),
    ]


def kernel_command_line(accel: str, channel: str) -> str:
    """What the guest's kernel and agent are told; the agent looks for the channel's name."""
    # A retpoline is a trick on the processor's own return predictor: code that TCG translated does
    # not use it, and has only the cost of each indirect call.
    words = [KERNEL_COMMAND_LINE, f"mitigations={'off' if accel == 'tcg' else 'auto'}"]
    if channel == VSOCK:
        words.append(f"thaw.channel={channel}")
    return " ".join(words)


def processors(accel: str, shape: MachineShape) -> str:
    """The value of `-smp`.

    Under TCG a machine could always have a second processor, though it never gets one: for a
    machine that cannot, QEMU translates locked instructions as plain ones, and Linux's barriers
    between its virtio drivers and the devices, which are another thread, are such instructions.
    Without them one of the two can miss what the other wrote, for good: a request that the guest
    does not look at, or an answer that QEMU does not. Linux does not count that processor either
    (`MachineShape.most`).
    """
    most = shape.most(accel).vcpus
    return f"{shape.vcpus},maxcpus={max(most, 2) if accel == 'tcg' else most}"


def _hardware(
    accel: str, shape: MachineShape, channel: str, host: SerialAgent | VsockAgent | None = None
) -> list[str]:
    """All of the machine that the guest sees, and that must be the same at restore."""
    argv = [
        *("-machine", "q35,memory-backend=ram0,vmport=off,usb=off,graphics=off,sata=off,smbus=off"),
        *("-accel", accelerator(accel, shape.vcpus)),
        *("-cpu", cpu_model(accel)),
        *("-smp", processors(accel, shape)),
        *("-m", f"{shape.memory_mib}M,maxmem={shape.most(accel).memory_mib}M"),
        *("-device", "vmgenid,guid=auto,id=generation"),
        *_agent(channel, host),
        *(
            "-device",
            f"virtio-net-pci,id=nic0,netdev=net0,guest_announce=off,mac={BAKED_MAC},romfile=",
        ),
        *("-device", f"virtio-9p-pci,id=p9,fsdev=share,mount_tag={SHARE_TAG}"),
        *("-device", "virtio-scsi-pci,id=scsi0"),
        *("-device", f"pcie-root-port,id={GROWTH_PORT},chassis=1"),
    ]
    for slot in range(SLOTS):
        read_only = "on" if is_read_only(slot) else "off"
        argv += [
            "-blockdev",
            f"null-co,node-name=e{slot},size={SLOT_SIZE},read-zeroes=on,read-only={read_only}",
            "-device",
            f"scsi-hd,id=d{slot},bus=scsi0.0,channel=0,scsi-id=0,lun={slot},drive=e{slot}",
        ]
    return argv


def argv(machine: Machine) -> list[str]:
    """The command line that starts `machine`."""
    share = "on" if machine.ram_shared else "off"
    memory = (
        f"memory-backend-file,id=ram0,size={machine.shape.memory_mib}M,"
        f"mem-path={_escape(machine.ram_path)},share={share}"
    )
    chardev: list[str] = []
    channel = VSOCK
    if isinstance(machine.agent, SerialAgent):
        chardev, channel = ["-chardev", f"socket,id=agent,fd={machine.agent.fd}"], SERIAL
    line = [
        machine.qemu,
        *("-name", _escape(machine.name)),
        *("-nodefaults", "-no-user-config", "-display", "none", "-vga", "none"),
        *("-sandbox", SANDBOX),
        *("-object", memory),
        *("-chardev", f"socket,id=qmp,fd={machine.qmp_fd}"),
        *("-mon", "chardev=qmp,mode=control"),
        *chardev,
        *("-chardev", f"socket,id=console,fd={machine.console_fd}"),
        *("-serial", "chardev:console"),
        *("-netdev", f"tap,id=net0,fd={machine.tap_fd}"),
        "-fsdev",
        f"local,id=share,path={_escape(machine.share)},security_model=passthrough,multidevs=remap",
        *_hardware(machine.accel, machine.shape, channel, machine.agent),
    ]
    if machine.boot is not None:
        line += [
            *("-kernel", f"/proc/self/fd/{machine.boot.kernel_fd}"),
            *("-initrd", f"/proc/self/fd/{machine.boot.initramfs_fd}"),
            *("-append", kernel_command_line(machine.accel, channel)),
        ]
    if machine.incoming:
        # Else QEMU itself sends a frame to all, once the guest runs, to tell where the VM is now:
        # no switch knows the VM, and each of the host's guests would wake to look at it.
        line += ["-incoming", "defer", "-global", "migration.announce-rounds=0"]
    return line


def fingerprint(accel: str, shape: MachineShape, channel: str = SERIAL) -> list[str]:
    """What of the command line a snapshot depends on."""
    return [*_hardware(accel, shape, channel), "-append", kernel_command_line(accel, channel)]
