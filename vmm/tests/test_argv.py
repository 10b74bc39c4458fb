import pytest

from hostlib.errors import InvalidArgument, ResourceExhausted
from vmm.channel import VSOCK
from vmm.qemu import argv
from vmm.shape import LADDER, MachineShape, pick


def machine(**changes: object) -> argv.Machine:
    values: dict[str, object] = {
        "qemu": "/usr/bin/qemu",
        "name": "/run/thaw/vms/abc/share",
        "accel": "tcg",
        "shape": MachineShape(1, 256),
        "ram_path": "/proc/self/fd/9",
        "ram_shared": False,
        "qmp_fd": 3,
        "agent": argv.SerialAgent(4),
        "console_fd": 5,
        "tap_fd": 6,
        "share": "/srv/a,b",
        "incoming": True,
    }
    return argv.Machine(**(values | changes))  # type: ignore[arg-type]


def test_restore_loads_no_kernel_and_maps_ram_privately() -> None:
    line = argv.argv(machine())
    assert "-kernel" not in line
    assert line[line.index("-incoming") + 1] == "defer"
    (memory,) = [item for item in line if item.startswith("memory-backend-file")]
    assert memory.endswith("mem-path=/proc/self/fd/9,share=off")


def test_boot_loads_the_kernel_and_shares_ram() -> None:
    boot = argv.KernelBoot(7, 8)
    line = argv.argv(machine(boot=boot, incoming=False, ram_shared=True))
    assert line[line.index("-kernel") + 1] == "/proc/self/fd/7"
    assert "-incoming" not in line
    assert any(item.endswith("share=on") for item in line)


def test_commas_in_paths_are_doubled() -> None:
    line = argv.argv(machine(name="/run/a,b"))
    assert any("path=/srv/a,,b,security_model" in item for item in line)
    assert line[line.index("-name") + 1] == "/run/a,,b"


def test_the_guest_sees_the_same_machine_at_bake_and_restore() -> None:
    own = (
        "-kernel",
        "-initrd",
        "-incoming",
        "-global",
        "-object",
        "-chardev",
        "-netdev",
        "-fsdev",
        "-append",
    )
    boot = machine(boot=argv.KernelBoot(7, 8), incoming=False, ram_shared=True, tap_fd=44)

    def seen(line: list[str]) -> list[tuple[str, str]]:
        rest = line[line.index("-machine") :]
        pairs = list(zip(rest[::2], rest[1::2], strict=True))
        return [pair for pair in pairs if pair[0] not in own]

    assert seen(argv.argv(boot)) == seen(argv.argv(machine()))


def test_mitigations_are_for_code_that_the_processor_runs_itself() -> None:
    words = {accel: argv.kernel_command_line(accel, "serial") for accel in ("tcg", "kvm", "hvf")}
    assert "mitigations=off" in words["tcg"]
    assert "mitigations=auto" in words["kvm"] and "mitigations=auto" in words["hvf"]


def test_the_channel_is_baked_into_the_machine_its_ends_are_not() -> None:
    def line(cid: int, incoming: bool) -> list[str]:
        boot = None if incoming else argv.KernelBoot(7, 8)
        agent = argv.VsockAgent(cid + 1, cid)
        return argv.argv(machine(agent=agent, boot=boot, incoming=incoming))

    baked = line(70000, False)
    assert "vhost-vsock-pci,id=vsock0,vhostfd=70001,guest-cid=70000" in baked
    assert baked[baked.index("-append") + 1].endswith(" thaw.channel=vsock")
    assert not any("virtserialport" in item or "id=agent" in item for item in baked)
    assert any(item.startswith("vhost-vsock-pci") for item in line(70002, True))
    shape = MachineShape(1, 256)
    vsock = argv.fingerprint("tcg", shape, VSOCK)
    assert vsock != argv.fingerprint("tcg", shape)
    assert "vhost-vsock-pci,id=vsock0" in vsock


def test_slots() -> None:
    line = argv.argv(machine())
    slots = [item for item in line if item.startswith("scsi-hd")]
    assert len(slots) == argv.SLOTS == 16
    assert [argv.is_read_only(slot) for slot in (0, 11, 12, 15)] == [True, True, False, False]
    assert sum("read-only=on" in item for item in line) == argv.RO_SLOTS
    assert slots[13] == "scsi-hd,id=d13,bus=scsi0.0,channel=0,scsi-id=0,lun=13,drive=e13"


def test_no_balloon_and_confined() -> None:
    line = argv.argv(machine())
    assert not any("balloon" in item for item in line)
    assert "spawn=deny" in line[line.index("-sandbox") + 1]


def test_fingerprint_follows_shape_and_accelerator() -> None:
    base = argv.fingerprint("tcg", MachineShape(1, 256))
    assert base == argv.fingerprint("tcg", MachineShape(1, 256))
    assert base != argv.fingerprint("tcg", MachineShape(2, 256))
    assert base != argv.fingerprint("tcg", MachineShape(1, 512))
    assert base != argv.fingerprint("kvm", MachineShape(1, 256))


def test_translated_code_is_bounded() -> None:
    def accel(name: str, vcpus: int) -> str:
        line = argv.argv(machine(accel=name, shape=MachineShape(vcpus, 256)))
        return line[line.index("-accel") + 1]

    assert accel("tcg", 1) == "tcg,tb-size=64"
    assert accel("tcg", 4) == "tcg,tb-size=160"
    assert accel("kvm", 4) == "kvm"


def test_shapes() -> None:
    assert pick(0.5, 200 * 2**20) == LADDER[0]
    assert pick(2, 1) == MachineShape(2, 2048)
    assert pick(1, 257 * 2**20) == MachineShape(1, 512)
    with pytest.raises(ResourceExhausted):
        pick(1000, 1)
    with pytest.raises(InvalidArgument):
        MachineShape(0, 256)
    with pytest.raises(InvalidArgument):
        MachineShape(1, 1)


@pytest.mark.parametrize(
    ("accel", "vcpus", "wanted"),
    [("tcg", 1, "1,maxcpus=2"), ("tcg", 4, "4,maxcpus=4"), ("kvm", 1, "1,maxcpus=8")],
)
def test_an_emulated_machine_is_never_one_that_has_a_single_processor_for_good(
    accel: str, vcpus: int, wanted: str
) -> None:
    assert argv.processors(accel, MachineShape(vcpus, 256)) == wanted
