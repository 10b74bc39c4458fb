"""Shims without VMs, all in one process, at the sockets where thawd looks for them."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from cri.main import raise_open_files
from hostlib import linux
from shim import records
from shim.protocol import Message, Wire
from shim.server import Answer, Server


def _serve(folder: Path, ram: int) -> None:
    known = records.read_vm_folder(folder)
    assert known.pod is not None
    body = {
        "vm_id": known.id,
        "pid": 0,
        "start_time": 0,
        "snapshot_key": "key",
        "state": "running",
        "pod": records.to_dict(known.pod),
        "containers": [records.to_dict(each) for each in known.containers],
    }

    async def describe(_params: Wire, _message: Message) -> Answer:
        return Answer(body)

    async def give_ram(_params: Wire, _message: Message) -> Answer:
        return Answer({"key": "key"}, fds=(ram,))

    Server({"describe": describe, "ram": give_ram}, lambda: None).listen(known.socket)


async def _main(vms: Path) -> None:
    raise_open_files()
    ram = os.memfd_create("ram", os.MFD_ALLOW_SEALING)
    linux.seal(ram)
    for folder in vms.iterdir():
        _serve(folder, ram)
    print("ready", flush=True)
    # The other side closes its end when it has seen enough.
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_main(Path(sys.argv[1])))
