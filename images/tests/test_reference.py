from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostlib.errors import InvalidArgument, ThawError, Unimplemented
from images.reference import parse

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("nginx", "docker.io/library/nginx:latest"),
        ("nginx:1.2", "docker.io/library/nginx:1.2"),
        ("a/b", "docker.io/a/b:latest"),
        ("docker.io/nginx", "docker.io/library/nginx:latest"),
        ("index.docker.io/nginx", "docker.io/library/nginx:latest"),
        ("localhost/a", "localhost/a:latest"),
        ("localhost:5000/a:b", "localhost:5000/a:b"),
        ("host.example/a/b/c", "host.example/a/b/c:latest"),
        ("Host/a", "Host/a:latest"),
        ("[::1]:5000/a", "[::1]:5000/a:latest"),
        ("a:5000", "docker.io/library/a:5000"),
        (f"a@{DIGEST}", f"docker.io/library/a@{DIGEST}"),
        (f"q.io/a:t@{DIGEST}", f"q.io/a:t@{DIGEST}"),
        ("a__b/c--d/e.f_g", "docker.io/a__b/c--d/e.f_g:latest"),
        ("registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10"),
        ("a:" + "t" * 128, "docker.io/library/a:" + "t" * 128),
    ],
)
def test_good_references(text: str, normal: str) -> None:
    assert str(parse(text)) == normal


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "A", "a/B", "a:", ":a", "a@", "a@sha256:ab", "a:t:u", "a//b", "/a", "a/", "-a",
        "a.", "a___b", "a b", "a\n", "https://a/b", "a:-t", "host:port/a", "-host.x/a", "b" * 64,
        "a:" + "t" * 129, "h.io/" + "a" * 251, "a" * 1025, f"a@{DIGEST}@{DIGEST}", "a..b", "../a",
        "é", "[::1/a", "a@SHA256:" + "A" * 64 + "\n",
    ],
)  # fmt: skip
def test_bad_references(text: str) -> None:
    if text == "b" * 64:
        with pytest.raises(InvalidArgument, match="id, not a name"):
            parse(text)
        return
    if text == "a" * 1025:
        with pytest.raises(InvalidArgument, match="longer"):
            parse(text)
        return
    with pytest.raises(InvalidArgument) as caught:
        parse(text)
    assert caught.value.hint


def test_other_digests_are_known_and_not_done() -> None:
    with pytest.raises(Unimplemented, match="not sha256"):
        parse("a@sha512:" + "a" * 128)


PART = st.from_regex(r"[a-z0-9]{1,8}((\.|_|__|-+)[a-z0-9]{1,8}){0,2}", fullmatch=True)


@given(
    st.one_of(st.none(), st.from_regex(r"[a-z]{1,5}\.[a-z]{2,3}(:[0-9]{1,5})?", fullmatch=True)),
    st.lists(PART, min_size=1, max_size=4),
    st.one_of(st.none(), st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True)),
    st.booleans(),
)
def test_normal_forms_are_fixed_points(
    domain: str | None, parts: list[str], tag: str | None, digest: bool
) -> None:
    if domain is None:
        # A first part with a dot would be a host.
        parts[0] = parts[0].replace(".", "-")
    path = "/".join(parts)
    text = f"{domain}/{path}" if domain else path
    text += f":{tag}" if tag else ""
    text += f"@{DIGEST}" if digest else ""
    found = parse(text)
    assert parse(str(found)) == found
    assert found.tag == (tag or (None if digest else "latest"))
    assert found.digest == (DIGEST if digest else None)
    if domain:
        assert (found.domain, found.path) == (domain, path)
    else:
        library = "library/" if len(parts) == 1 else ""
        assert (found.domain, found.path) == ("docker.io", library + path)


@given(st.text(max_size=300))
def test_noise_is_parsed_or_refused(text: str) -> None:
    try:
        found = parse(text)
    except ThawError:
        return
    assert parse(str(found)) == found
