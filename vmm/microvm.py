"""A microVM: a QEMU process, its monitor and its agent, with explicit states."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import os
import re
import socket
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, Final, TypeVar

from hostlib import failpoint, ids, linux
from hostlib.errors import DataLoss, FailedPrecondition, ThawError, Unavailable
from vmm import channel as channels
from vmm import ram, rehearse, tap
from vmm.accel import Accelerator
from vmm.agent.client import AgentClient
from vmm.guest import GuestImage
from vmm.qemu import argv, confine
from vmm.qemu.build import identify
from vmm.qemu.driver import ExitReason, Process
from vmm.qemu.qmp import Qmp, QmpFailed, QmpGone
from vmm.shape import MachineShape
from vmm.slots import Slots
from vmm.snapshot import Snapshot

log = logging.getLogger(__name__)

T = TypeVar("T")

MIGRATION_TIMEOUT: Final = 60.0
CONNECT_TIMEOUT: Final = 30.0

_SYMPTOMS_TIMEOUT: Final = 2.0
_PROCESSOR: Final = re.compile(r"\b(RIP=[0-9a-f]+|HLT=\d)")


class State(enum.Enum):
    NEW = "new"
    PAUSED = "paused"
    RUNNING = "running"
    STOPPED = "stopped"


class VmDied(Unavailable):
    """QEMU ended; the message has the reason."""


class MicroVM:
    """One VM. Made by `restore` (paused) or `boot` (running); ended by `kill`, which is idempotent.

    When QEMU ends, for whatever reason, `exited` is done and the state is STOPPED. The object's
    descriptors and processes are gone after `kill`.
    """

    def __init__(
        self,
        process: Process,
        qmp_sock: socket.socket,
        agent_sock: socket.socket | None,
        open_agent: channels.Open,
    ):
        self._process = process
        self._qmp_sock: socket.socket | None = qmp_sock
        self._agent_sock = agent_sock
        self._open_agent = open_agent
        self._qmp: Qmp | None = None
        self._agent: AgentClient | None = None
        self._slots = Slots(self)
        self.state = State.NEW
        self.most: MachineShape | None = None
        """What it can become (`vmm.growth`)."""
        self.worker_uid = 0
        """The user and group that QEMU runs as."""
        self.exited: asyncio.Future[ExitReason] = process.exited
        self.exited.add_done_callback(self._on_exit)

    @classmethod
    async def _start(
        cls,
        *,
        qemu: str,
        accel: Accelerator,
        shape: MachineShape,
        ram_fd: int,
        ram_shared: bool,
        tap_fd: int | None,
        share: Path,
        console_limit: int,
        uid_base: int,
        channel: str,
        boot: argv.KernelBoot | None = None,
        devices_fd: int | None = None,
    ) -> MicroVM:
        with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:

            def pair() -> tuple[socket.socket, socket.socket]:
                mine, other = socket.socketpair()
                return ours.enter_context(mine), theirs.enter_context(other)

            qmp, console = pair(), pair()
            serial: socket.socket | None = None
            agent: argv.SerialAgent | argv.VsockAgent
            if channel == channels.VSOCK:
                vhost_fd, cid = channels.claim()
                theirs.callback(os.close, vhost_fd)
                agent, agent_fd = argv.VsockAgent(vhost_fd, cid), vhost_fd
                open_agent = channels.dialled(cid)
            else:
                serial, other = pair()
                agent, agent_fd = argv.SerialAgent(other.fileno()), other.fileno()
                open_agent = channels.connected(serial)
            own_network = tap_fd is None
            if tap_fd is None:
                tap_fd = tap.open_private_tap()
                theirs.callback(os.close, tap_fd)
            program = os.path.realpath(qemu)
            machine = argv.Machine(
                qemu=program,
                name=str(share),
                accel=accel.name,
                shape=shape,
                ram_path=f"/proc/self/fd/{ram_fd}",
                ram_shared=ram_shared,
                qmp_fd=qmp[1].fileno(),
                agent=agent,
                console_fd=console[1].fileno(),
                tap_fd=tap_fd,
                share=f"/{confine.SHARE}",
                boot=boot,
                incoming=boot is None,
            )
            passed = [qmp[1].fileno(), agent_fd, console[1].fileno(), tap_fd, ram_fd]
            if boot is not None:
                passed += [boot.kernel_fd, boot.initramfs_fd]
            if devices_fd is not None:
                passed.append(devices_fd)
            confinement = confine.Confinement(
                ids.worker_uid(uid_base, os.getpid()),
                share,
                Path(program),
                devices=("/dev/kvm",) if accel.name == "kvm" else (),
                own_network=own_network,
            )
            await failpoint.hit("vm.start")
            process = Process.start(
                argv.argv(machine),
                confinement=confinement,
                pass_fds=passed,
                console=console[0],
                console_limit=console_limit,
            )
            ours.pop_all()
        vm = cls(process, qmp[0], serial, open_agent)
        vm.most = shape.most(accel.name)
        vm.worker_uid = confinement.uid
        try:
            sock, vm._qmp_sock = qmp[0], None
            vm._qmp = await vm._while_alive(Qmp.connect(sock))
        except BaseException:
            await vm.kill()
            raise
        return vm

    @classmethod
    async def restore(
        cls,
        snapshot: Snapshot,
        *,
        ram_fd: int,
        tap_fd: int | None,
        share: Path,
        accel: Accelerator,
        qemu: str,
        scratch: Path | None = None,
        console_limit: int = 65536,
        uid_base: int = ids.WORKER_UID_BASE,
    ) -> MicroVM:
        """A VM in the snapshot's state, paused. Descriptors stay the caller's.

        `ram_fd` is the snapshot's RAM (`vmm.ram.load`); without a `tap_fd` the VM gets a TAP that
        leads nowhere; `share` is the folder that the guest can mount over 9p; `scratch` is this
        VM's own copy of the snapshot's scratch disk, without which it runs no container. QEMU runs
        confined (`vmm.qemu.confine`), with the user id `ids.worker_uid` of `uid_base`. Raises
        `FailedPrecondition` when the snapshot was baked by another QEMU or for another machine,
        `DataLoss` when QEMU refuses it, `VmDied`. Nothing is left behind on failure.
        """
        build = await identify(qemu)
        snapshot.check_qemu(build, accel.name)
        try:
            devices = linux.open_read_only(str(snapshot.devices))
        except OSError as error:
            raise DataLoss(
                f"snapshot {snapshot.key[:12]} has lost its device state", hint="thaw bake"
            ) from error
        try:
            vm = await cls._start(
                qemu=build.path,
                accel=accel,
                shape=snapshot.shape,
                ram_fd=ram_fd,
                ram_shared=False,
                tap_fd=tap_fd,
                share=share,
                console_limit=console_limit,
                uid_base=uid_base,
                channel=snapshot.inputs.channel,
                devices_fd=devices,
            )
            try:
                await failpoint.hit("vm.incoming")
                await vm._migrate("migrate-incoming", devices)
                vm._become(State.PAUSED)
                if scratch is not None:
                    # Before the guest runs: it has the disk mounted.
                    await vm.attach(argv.SCRATCH_SLOT, scratch, read_only=False)
            except BaseException:
                await vm.kill()
                raise
        except (VmDied, QmpFailed) as error:
            raise DataLoss(
                f"QEMU did not accept snapshot {snapshot.key[:12]}: {error.message}",
                hint="bake it again: thaw bake",
            ) from error
        finally:
            os.close(devices)
        return vm

    @classmethod
    async def boot(
        cls,
        guest: GuestImage,
        shape: MachineShape,
        *,
        accel: Accelerator,
        qemu: str,
        share: Path,
        tap_fd: int | None = None,
        ram_fd: int | None = None,
        console_limit: int = 65536,
        uid_base: int = ids.WORKER_UID_BASE,
        channel: str = channels.SERIAL,
    ) -> MicroVM:
        """A VM that boots its kernel: what a bake begins with. Running on return.

        `ram_fd` is an empty, writable memfd that then holds the guest's memory. Raises
        `FailedPrecondition`, `VmDied`.
        """
        build = await identify(qemu)
        with contextlib.ExitStack() as files:
            memory = ram_fd
            if memory is None:
                memory = ram.create("thaw-boot")
                files.callback(os.close, memory)
            kernel, initramfs = files.enter_context(guest.boot_files())
            vm = await cls._start(
                qemu=build.path,
                accel=accel,
                shape=shape,
                ram_fd=memory,
                ram_shared=True,
                tap_fd=tap_fd,
                share=share,
                console_limit=console_limit,
                uid_base=uid_base,
                channel=channel,
                boot=argv.KernelBoot(kernel, initramfs),
            )
        vm._become(State.RUNNING)
        return vm

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def agent(self) -> AgentClient:
        """The session with the agent. Raises `FailedPrecondition` before `connect`."""
        if self._agent is None:
            raise FailedPrecondition("the VM's agent is not connected")
        return self._agent

    def console(self) -> bytes:
        """The last bytes that the guest wrote to its console."""
        return bytes(self._process.console)

    async def connect(self, *, timeout: float = CONNECT_TIMEOUT) -> None:
        """Begin the session with the agent, under a new nonce. Once for each VM.

        Raises `DeadlineExceeded`, `VmDied`, `vmm.agent.codec.AgentProtocolError`.
        """
        if self._agent is not None:
            raise FailedPrecondition("the VM's agent is connected already")
        if self.state is not State.RUNNING:
            raise FailedPrecondition(f"the VM is {self.state.value}, its agent cannot answer")
        await failpoint.hit("vm.connect")
        sock = await self._while_alive(self._open_agent(timeout))
        self._agent_sock = None
        self._agent = await self._while_alive(AgentClient.open(sock, timeout=timeout))

    async def resume(self) -> None:
        """Let the guest run. Idempotent."""
        if self.state is State.RUNNING:
            return
        self._require(State.PAUSED)
        await failpoint.hit("vm.resume")
        await self.monitor("cont")
        self._become(State.RUNNING)

    async def pause(self) -> None:
        """Stop the guest's processors. Idempotent."""
        if self.state is State.PAUSED:
            return
        self._require(State.RUNNING)
        await self.monitor("stop")
        self._become(State.PAUSED)

    async def attach(self, slot: int, source: Path | int, *, read_only: bool = True) -> None:
        """`Slots.attach`."""
        await self._slots.attach(slot, source, read_only=read_only)

    async def detach(self, slot: int) -> None:
        """`Slots.detach`."""
        await self._slots.detach(slot)

    async def rehearse(self, rehearsal: Path, *, with_exec: bool = False) -> None:
        """Live one whole container life, so that the paths are translated and warm.

        The VM runs and its agent is connected; afterwards it is as before. The caller pauses it.
        """
        await rehearse.run(self, rehearsal, with_exec=with_exec)

    async def save_devices(self, descriptor: int) -> None:
        """Write the paused VM's device state, without its RAM, to a file."""
        self._require(State.PAUSED)
        await self._migrate("migrate", descriptor)

    async def _migrate(self, command: str, descriptor: int) -> None:
        """Migrate to or from an inherited or handed-over descriptor; RAM stays in its file."""
        assert self._qmp
        capabilities = [
            {"capability": name, "state": True} for name in ("x-ignore-shared", "events")
        ]
        await self.monitor("migrate-set-capabilities", {"capabilities": capabilities})
        uri = f"fd:{descriptor}"
        if command == "migrate":
            await self.monitor("getfd", {"fdname": "devices"}, fd=descriptor)
            uri = "fd:devices"
        with self._qmp.listen("MIGRATION") as events:
            await self.monitor(command, {"uri": uri})

            async def finished() -> None:
                while True:
                    event = await events.get()
                    data = event["data"]
                    assert isinstance(data, dict)
                    if data["status"] == "completed":
                        return
                    if data["status"] in ("failed", "cancelled"):
                        found = await self.monitor("query-migrate")
                        raise QmpFailed(f"{command} failed: {found.get('error-desc', 'no reason')}")

            try:
                async with asyncio.timeout(MIGRATION_TIMEOUT):
                    await self._while_alive(finished())
            except TimeoutError as error:
                raise QmpFailed(f"{command} did not end in {MIGRATION_TIMEOUT:g} s") from error

    async def kill(self) -> None:
        """End the VM and free all that it holds. Idempotent; safe in any state."""
        if self._agent is not None:
            await self._agent.close()
        self._process.kill()
        await asyncio.shield(self.exited)
        if self._qmp is not None:
            await self._qmp.close()
        for sock in (self._qmp_sock, self._agent_sock):
            if sock is not None:
                sock.close()
        self._qmp_sock = self._agent_sock = None

    async def monitor(
        self, command: str, arguments: dict[str, Any] | None = None, *, fd: int | None = None
    ) -> Any:
        """Run a command of QEMU's monitor; its result. Raises `VmDied`, `QmpFailed`."""
        assert self._qmp
        try:
            return await self._qmp.execute(command, arguments, fd=fd)
        except QmpGone as error:
            # The monitor's end comes before the process's: the reason is the latter's.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    reason = await asyncio.shield(self.exited)
                    raise VmDied(reason.text) from error
            raise

    async def symptoms(self) -> str:
        """What is seen from outside of a guest that does not answer, for a message: what QEMU's
        threads do, whether it took what the agent was sent, and what its monitor says of the
        processor. Takes 2 s at most, and raises nothing."""
        found = [f"QEMU's threads: {linux.threads(self.pid)}"]
        if self._agent is not None:
            found.append(f"{self._agent.unread()} bytes for the agent not taken")
        try:
            async with asyncio.timeout(_SYMPTOMS_TIMEOUT):
                status = await self.monitor("query-status")
                registers = await self.monitor(
                    "human-monitor-command", {"command-line": "info registers"}
                )
            processor = " ".join(_PROCESSOR.findall(str(registers)))
            found.append(f"its monitor: {dict(status).get('status')} {processor}")
        except (ThawError, TimeoutError, AssertionError, TypeError, ValueError):
            found.append("its monitor does not answer")
        return "; ".join(found)

    def require_restored(self) -> None:
        """Raises `VmDied` when it is no more, `FailedPrecondition` before it has its state."""
        self._require(State.PAUSED, State.RUNNING)

    async def _while_alive(self, work: Awaitable[T]) -> T:
        """The result of `work`. Raises `VmDied` when QEMU ends meanwhile."""
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait((task, self.exited), return_when=asyncio.FIRST_COMPLETED)
            if task.done() and task.exception() is None:
                return task.result()
            if not task.done() or isinstance(task.exception(), Unavailable):
                # A closed connection is noticed before the process's end.
                await asyncio.wait((self.exited,), timeout=1)
                if self.exited.done():
                    raise VmDied(self.exited.result().text)
            return await task
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait((task,))
            if not task.cancelled():
                task.exception()

    def _on_exit(self, _: asyncio.Future[ExitReason]) -> None:
        self._become(State.STOPPED)

    def _become(self, state: State) -> None:
        if self.state is State.STOPPED:
            return
        log.debug("vm pid %d: %s -> %s", self.pid, self.state.value, state.value)
        self.state = state

    def _require(self, *states: State) -> None:
        if self.state is State.STOPPED:
            raise VmDied(self.exited.result().text)
        if self.state not in states:
            wanted = " or ".join(state.value for state in states)
            raise FailedPrecondition(f"the VM is {self.state.value}, not {wanted}")
