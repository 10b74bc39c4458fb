from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostlib import process
from images.hosts import BadHosts, Host, find, is_local, parse

WHERE = Path("/etc/thaw/certs.d/example.com/hosts.toml")


def test_defaults() -> None:
    assert [item.base for item in find(None, "docker.io")] == ["https://registry-1.docker.io/v2"]
    assert [item.base for item in find(None, "quay.io")] == ["https://quay.io/v2"]
    assert [item.base for item in find(None, "localhost:5000")] == ["http://localhost:5000/v2"]
    assert [item.base for item in find(None, "127.0.0.1:443")] == ["https://127.0.0.1:443/v2"]


@pytest.mark.parametrize(
    ("host", "local"),
    [("localhost", True), ("127.9.9.9:1", True), ("[::1]:5000", True), ("10.0.0.1", False),
     ("localhost.example", False)],
)  # fmt: skip
def test_local_hosts(host: str, local: bool) -> None:
    assert is_local(host) is local


def test_everything_at_once() -> None:
    mirror, plain, server = parse(
        """
server = "https://up.example"
ca = "up.crt"
[host."https://mirror.example/team"]
capabilities = ["pull"]
ca = ["one.crt", "/abs/two.crt"]
client = [["c.crt", "c.key"], "both.pem", ["one.pem", ""]]
skip_verify = true
dial_timeout = "1m0.5s"
[host."https://mirror.example/team".header]
x-one = "1"
x-many = ["a", "b"]
[host."http://10.0.0.1:5000/root"]
override_path = true
""",
        WHERE,
        "example.com",
    )
    assert mirror.base == "https://mirror.example/team/v2"
    assert mirror.capabilities == {"pull"}
    assert mirror.ca == (WHERE.parent / "one.crt", Path("/abs/two.crt"))
    assert mirror.client[0] == (WHERE.parent / "c.crt", WHERE.parent / "c.key")
    assert mirror.client[1] == (WHERE.parent / "both.pem", None)
    assert mirror.client[2] == (WHERE.parent / "one.pem", None)
    assert mirror.dial_timeout == 60.5 and server.dial_timeout is None
    assert mirror.skip_verify and mirror.is_mirror
    assert mirror.header == (("x-one", "1"), ("x-many", "a"), ("x-many", "b"))
    assert plain.base == "http://10.0.0.1:5000/root"
    assert (server.base, server.is_mirror) == ("https://up.example/v2", False)
    assert server.ca == (WHERE.parent / "up.crt",)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("x = ", "Invalid value|hosts.toml"),
        ("x = 1", "x: unknown key"),
        ("server = 1", "server: must be a URL"),
        ('server = "ftp://x"', "no http or https URL"),
        ('server = "https://u:p@x"', "must hold scheme"),
        ('server = "https://x:port"', "bad URL"),
        ("host = 1", "host: must be tables"),
        ("[host]\nx = 1", "must be a table"),
        ('[host."https://x"]\ncapabilities = ["fly"]', r'host\."https://x"\.capabilities'),
        ('[host."https://x"]\nskip_verify = "yes"', "skip_verify: must be true or false"),
        ('[host."https://x"]\nca = 1', "ca: must be a path"),
        ('[host."https://x"]\nclient = [["a"]]', "client: a pair"),
        ('[host."https://x"]\nheader = 1', "header: must be a table"),
        ('[host."https://x"]\ndial_timeout = 10', "dial_timeout: must be a time"),
        ('[host."https://x"]\ndial_timeout = "10"', "dial_timeout: must be a time"),
        ('[host."https://x"]\ndial_timeout = "0s"', "dial_timeout: must be above 0"),
        ('[host."https://x"]\ndial_timeout = "9h"', "dial_timeout: must be above 0"),
        ('[host."https://x".header]\na = 1', "header.a"),
        ('[host."https://x".header]\na = "b\\r\\nc: d"', "header.a"),
    ],
)
def test_what_is_refused(text: str, match: str) -> None:
    with pytest.raises(BadHosts, match=match) as caught:
        parse(text, WHERE, "example.com")
    assert "hosts.toml" in caught.value.message


def test_the_folder_is_found(tmp_path: Path) -> None:
    for folder, port in (("a.io_5000_", 1), ("b.io:5000", 2), ("_default", 3)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "hosts.toml").write_text(f'server = "http://x:{port}"')
    assert [find(tmp_path, name)[0].base[-4] for name in ("a.io:5000", "b.io:5000", "c.io")] == [
        "1", "2", "3"
    ]  # fmt: skip


def test_folders_of_certificates(tmp_path: Path) -> None:
    """As docker has them, where there is no hosts.toml, or an empty one."""

    def lay(folder: str, *names: str) -> Path:
        (tmp_path / folder).mkdir(exist_ok=True)
        for name in names:
            (tmp_path / folder / name).touch()
        return tmp_path / folder

    own = lay("a.io:5000", "b.crt", "a.crt", "one.cert", "one.key", "both.cert", "README")
    lay("_default", "site.crt")
    (host,) = find(tmp_path, "a.io:5000")
    assert host.base == "https://a.io:5000/v2"
    assert host.ca == (own / "a.crt", own / "b.crt")
    assert host.client == ((own / "both.cert", None), (own / "one.cert", own / "one.key"))
    (host,) = find(tmp_path, "b.io")
    assert (host.ca, host.client) == ((tmp_path / "_default/site.crt",), ())
    # The first folder decides, also where nothing is in it.
    lay("b.io")
    (host,) = find(tmp_path, "b.io")
    assert (host.ca, host.client) == ((), ())
    # Certificates mean TLS, also for a registry of this machine.
    lay("127.0.0.1:5000")
    assert find(tmp_path, "127.0.0.1:5000")[0].base == "http://127.0.0.1:5000/v2"
    lay("127.0.0.1:5000", "ca.crt")
    assert find(tmp_path, "127.0.0.1:5000")[0].base == "https://127.0.0.1:5000/v2"
    (own / "hosts.toml").touch()
    assert find(tmp_path, "a.io:5000")[0].ca == (own / "a.crt", own / "b.crt")
    (own / "hosts.toml").write_text('server = "https://up.example"')
    assert find(tmp_path, "a.io:5000") == (Host("https://up.example/v2", "a.io:5000"),)
    lay("b.io", "lonely.key")
    with pytest.raises(BadHosts, match=r"lonely\.key has no certificate") as caught:
        find(tmp_path, "b.io")
    assert "lonely.cert" in (caught.value.hint or "")
    lay("b.io", "lonely.cert")
    with pytest.raises(BadHosts, match=r"TLS files of registry host https://b\.io/v2"):
        find(tmp_path, "b.io")[0].tls()


def test_verification_is_left_out_for_hosts_that_are_named_alone(tmp_path: Path) -> None:
    (tmp_path / "_default").mkdir()
    file = tmp_path / "_default/hosts.toml"
    file.write_text("skip_verify = true")
    with pytest.raises(BadHosts, match="for every registry"):
        find(tmp_path, "a.io")
    file.write_text('[host."https://m.io"]\nskip_verify = true')
    assert [item.skip_verify for item in find(tmp_path, "a.io")] == [True, False]
    file.write_text('server = "https://m.io"\nskip_verify = true')
    assert [item.skip_verify for item in find(tmp_path, "a.io")] == [True]
    (tmp_path / "a.io").mkdir()
    (tmp_path / "a.io/hosts.toml").write_text("skip_verify = true")
    assert [item.skip_verify for item in find(tmp_path, "a.io")] == [True]


def test_missing_tls_files_are_named(tmp_path: Path) -> None:
    host = parse('ca = "none.crt"', tmp_path / "hosts.toml", "example.com")[0]
    with pytest.raises(BadHosts, match=r"example\.com"):
        host.tls()


VALUES = st.recursive(
    st.one_of(st.booleans(), st.integers(-5, 5), st.sampled_from(["https://x", "a", "pull", ""])),
    lambda inner: st.lists(inner, max_size=2),
    max_leaves=4,
)


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return f'"{value}"' if isinstance(value, str) else str(value)


@given(
    st.dictionaries(
        st.sampled_from(
            [
                "capabilities",
                "ca",
                "client",
                "skip_verify",
                "override_path",
                "header",
                "dial_timeout",
            ]
        ),
        VALUES,
    )
)
def test_odd_values_are_taken_or_refused(table: dict[str, object]) -> None:
    lines = [f"{key} = {_toml(value)}" for key, value in table.items()]
    text = "\n".join(['[host."https://x"]', *lines])
    with contextlib.suppress(BadHosts):
        assert parse(text, WHERE, "example.com")[0].base.startswith("https://x")


async def test_tls_is_set_up_anew_only_when_its_files_change(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    await process.run(
        "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=x",
        "-keyout", str(tmp_path / "key.pem"), "-out", str(file),
    )  # fmt: skip
    host = Host("https://x/v2", "x", ca=(file,))
    first = host.tls()
    assert Host("https://y/v2", "y", ca=(file,)).tls() is first
    assert Host("https://x/v2", "x").tls() is not first
    assert Host("https://x/v2", "x", ca=(file,), skip_verify=True).tls() is not first
    assert host.tls() is first
    file.write_text(file.read_text() + "\n")
    assert host.tls() is not first


@given(st.text(max_size=200))
def test_noise_is_refused(text: str) -> None:
    with contextlib.suppress(BadHosts):
        assert parse(text, WHERE, "example.com")
