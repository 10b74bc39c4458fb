import pytest

from hostlib import process
from hostlib.errors import DeadlineExceeded, FailedPrecondition


async def test_a_command_sees_only_the_environment_it_is_given() -> None:
    result = await process.run("env")
    assert {line.split("=")[0] for line in result.stdout.decode().split()} == {"PATH", "LC_ALL"}


async def test_large_input_and_output_do_not_block_each_other() -> None:
    result = await process.run("cat", stdin=b"x" * 3_000_000)
    assert result.stdout == b"x" * process.MAX_OUTPUT


async def test_a_failure_carries_the_end_of_stderr() -> None:
    with pytest.raises(process.CommandFailed, match="sh failed with 3: no luck"):
        await process.run("sh", "-c", "echo no luck >&2; exit 3")


async def test_a_command_that_hangs_is_ended() -> None:
    with pytest.raises(DeadlineExceeded):
        await process.run("sleep", "60", timeout=0.05)


def test_a_missing_program_names_its_package() -> None:
    with pytest.raises(FailedPrecondition, match="apt-get install none"):
        process.find("no-such-program", package="none")
