from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from cri import config
from hostlib.config import BadConfig


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_precedence(tmp_path: Path) -> None:
    file = write(tmp_path / "c.toml", 'log_level = "debug"\n[pool]\nsize = 5\nparallel = 3\n')
    write(tmp_path / "c.toml.d" / "20.toml", "[pool]\nsize = 7\n")
    write(tmp_path / "c.toml.d" / "10.toml", "[pool]\nsize = 6\n")
    found = config.load(file, {"log_level": "error", "root": "/r", "state": None})
    assert (found.pool.size, found.pool.parallel) == (7, 3)
    assert (found.log_level, str(found.root), str(found.state)) == ("error", "/r", "/run/thaw")


@pytest.mark.parametrize(
    ("text", "where", "hint"),
    [
        ("[pool]\n\nsiz = 2\n", ":3: unknown key pool.siz", "size"),
        ("[pol]\nsize = 2\n", ":1: unknown key pol", "pool"),
        ("pool = 2\n", ":1: pool is a section", "[pool]"),
        ('[pool]\nsize = "2"\n', ":2: pool.size: must be an integer", "integer"),
        ("[pool]\nsize = true\n", ":2: pool.size", "integer"),
        ("[pool]\nsize = -1\n", ":2: pool.size: -1 is out of range", "from 0"),
        (
            "[vm]\nuid_base = 1000\n",
            ":2: vm.uid_base: 1000 is among the ids of users",
            "from 65536",
        ),
        ("[vm]\nuid_base = 4294967295\n", ":2: vm.uid_base: 4294967295 is out of range", "from 0"),
        ('log_level = "loud"\n', ":1: log_level: 'loud' is not known", "debug"),
        ('root = "here"\n', ":1: root: 'here' is no absolute path", "/"),
        ('listen = "tcp://x"\n', ":1: listen", "unix://"),
        ('[network]\nsubnet = "10.0.0.1/16"\n', ":2: network.subnet", "10.88"),
        ('[guest]\nshapes = ["big"]\n', ":2: guest.shapes: 'big'", "CPUS"),
        ('[guest]\ndefault_shape = "3x99"\n', ":2: guest.default_shape", "one of"),
        ("[pool\n", ":1: not TOML", "sections"),
        ('[streaming]\naddress = "0.0.0.0"\n', ":2: streaming.address", "allow_plain_remote"),
        ('[streaming]\naddress = "localhost"\n', ":2: streaming.address", "not a name"),
        ('[streaming]\ntls_cert = "/c"\n', ":2: streaming.tls_cert: there is no tls_key", "both"),
        ('[streaming]\ntls_client_ca = "/c"\n', ":2: streaming.tls_client_ca", "tls_cert"),
        ('[streaming]\ntls_key = "c"\n', ":2: streaming.tls_key: 'c'", "absolute"),
        ("[timeouts]\nbake_seconds = 1\n", ":2: timeouts.bake_seconds", "from 10"),
    ],
)
def test_refusals_name_file_line_key_and_hint(
    tmp_path: Path, text: str, where: str, hint: str
) -> None:
    file = write(tmp_path / "c.toml", text)
    with pytest.raises(BadConfig) as caught:
        config.check(file)
    assert f"{file}{where}" in caught.value.message
    assert hint in (caught.value.hint or "")


@pytest.mark.parametrize(
    "text",
    [
        'address = "::1"',
        'address = "::"\nallow_plain_remote = true',
        'address = "0.0.0.0"\ntls_cert = "/c"\ntls_key = "/k"',
    ],
)
def test_where_the_streaming_server_may_listen(tmp_path: Path, text: str) -> None:
    config.check(write(tmp_path / "c.toml", f"[streaming]\n{text}\n"))


def test_a_flag_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="--log-level"):
        config.load(write(tmp_path / "c", ""), {"log_level": "loud"})


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="no such"):
        config.check(tmp_path / "none.toml")


def test_the_template_is_the_defaults(tmp_path: Path) -> None:
    text = config.commented_template()
    assert config.check(write(tmp_path / "a.toml", text)) == config.Config()
    lines = [line for line in text.splitlines() if not line.startswith("# ")]
    bare = "\n".join(line.removeprefix("#") for line in lines)
    assert tomllib.loads(bare)["pool"]["size"] == config.Config().pool.size
    assert config.check(write(tmp_path / "b.toml", bare)) == config.Config()


def test_a_socket_path_that_is_too_long() -> None:
    with pytest.raises(BadConfig, match="107"):
        config.load(None, {"state": "/" + "s" * 100})
