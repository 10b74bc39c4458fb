"""The one way in which Thaw runs a host command: argv, explicit environment, bounded output."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from hostlib.errors import DeadlineExceeded, FailedPrecondition, Internal

ENVIRONMENT: Final[Mapping[str, str]] = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
}
"""What every command gets: nothing of the caller's environment, so that it behaves the same
wherever the daemon was started."""

MAX_OUTPUT: Final = 1024 * 1024


@dataclass(frozen=True)
class Result:
    """How a command ended; output is cut at `MAX_OUTPUT` bytes for each stream."""

    returncode: int
    stdout: bytes
    stderr: bytes


class CommandFailed(Internal):
    """A host command ended with a non-zero exit code."""

    def __init__(self, argv: Sequence[str], result: Result) -> None:
        tail = result.stderr.decode(errors="replace").strip()[-1000:]
        super().__init__(f"{os.path.basename(argv[0])} failed with {result.returncode}: {tail}")
        self.result = result


def find(program: str, *, package: str) -> str:
    """The path of `program`. Raises `FailedPrecondition`, naming the Debian `package`."""
    path = shutil.which(program, path=ENVIRONMENT["PATH"])
    if path is None:
        raise FailedPrecondition(f"{program} is not installed", hint=f"apt-get install {package}")
    return path


async def _drain(stream: asyncio.StreamReader) -> bytes:
    kept = bytearray()
    while chunk := await stream.read(65536):
        kept += chunk[: MAX_OUTPUT - len(kept)]
    return bytes(kept)


async def _feed(sink: asyncio.StreamWriter | None, data: bytes | int) -> None:
    if sink is None or isinstance(data, int):
        return
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        sink.write(data)
        await sink.drain()
    sink.close()


async def run(
    *argv: str,
    stdin: bytes | int = b"",
    timeout: float | None = 60.0,
    env: Mapping[str, str] = ENVIRONMENT,
    check: bool = True,
    pass_fds: Sequence[int] = (),
    cwd: str | None = None,
) -> Result:
    """Run a command to its end.

    Raises `CommandFailed` on a non-zero exit code where `check` is set, `DeadlineExceeded` after
    `timeout` seconds; it is killed then, and also when the caller is cancelled. A descriptor given
    as `stdin` is closed here once the command has it, so that its writer sees the command's end.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=stdin if isinstance(stdin, int) else asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=dict(env),
            pass_fds=tuple(pass_fds),
            cwd=cwd,
            start_new_session=True,
        )
    finally:
        if isinstance(stdin, int):
            os.close(stdin)
    assert process.stdout and process.stderr
    try:
        async with asyncio.timeout(timeout):
            out, err, _ = await asyncio.gather(
                _drain(process.stdout), _drain(process.stderr), _feed(process.stdin, stdin)
            )
            returncode = await process.wait()
    except TimeoutError as error:
        raise DeadlineExceeded(f"{argv[0]} did not end within {timeout:g} s") from error
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    result = Result(returncode, out, err)
    if check and returncode != 0:
        raise CommandFailed(argv, result)
    return result
