from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri.streaming.requests import Attach, Exec, Forward, Request, Wanted
from cri.streaming.tokens import LIFETIME, MOST, Tokens
from hostlib.errors import InvalidArgument, NotFound, ResourceExhausted

OUT = Wanted(False, True, False, False)
REQUESTS: list[Request] = [Exec("c", ("true",), OUT), Attach("c", OUT), Forward("p", ())]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


Step = tuple[str, int]

steps = st.lists(
    st.one_of(
        st.tuples(st.just("issue"), st.integers(0, 2)),
        st.tuples(st.just("take"), st.integers(0, 30)),
        st.tuples(st.just("wait"), st.integers(0, 90)),
    ),
    max_size=60,
)


@given(steps)
def test_a_token_works_once_and_within_a_minute(script: list[Step]) -> None:
    clock = Clock()
    tokens = Tokens(clock)
    issued: list[tuple[str, Request, float]] = []
    used: set[str] = set()
    for name, number in script:
        if name == "issue":
            request = REQUESTS[number]
            issued.append((tokens.issue(request), request, clock.now))
        elif name == "wait":
            clock.now += number
        elif issued:
            path, request, born = issued[number % len(issued)]
            if path in used or clock.now >= born + LIFETIME:
                with pytest.raises(NotFound):
                    tokens.take(path)
            else:
                assert tokens.take(path) is request
                used.add(path)
    assert len({path for path, _, _ in issued}) == len(issued)


@given(st.text(max_size=80))
def test_nothing_else_is_a_token(text: str) -> None:
    tokens = Tokens()
    path = tokens.issue(REQUESTS[0])
    for wrong in (text, "/exec/" + text, path + text + "x", path[:-1] + text):
        if wrong != path:
            with pytest.raises(NotFound):
                tokens.take(wrong)
    assert tokens.take(path) is REQUESTS[0]


def test_a_token_is_for_its_verb_alone_and_holds_more_than_128_bits() -> None:
    tokens = Tokens()
    path = tokens.issue(REQUESTS[0])
    with pytest.raises(NotFound):
        tokens.take(path.replace("exec", "attach"))
    # Base64: six bits for each character of the secret.
    assert (len(path) - len("/exec/") - 12) * 6 >= 128


def test_unused_tokens_are_bounded_and_expire() -> None:
    clock = Clock()
    tokens = Tokens(clock)
    for _ in range(MOST):
        tokens.issue(REQUESTS[2])
    with pytest.raises(ResourceExhausted):
        tokens.issue(REQUESTS[2])
    clock.now = LIFETIME
    tokens.issue(REQUESTS[2])
    assert len(tokens) == 1


@pytest.mark.parametrize("streams", [(True, True, True, True), (False, False, False, False)])
def test_streams_that_make_no_sense(streams: tuple[bool, bool, bool, bool]) -> None:
    with pytest.raises(InvalidArgument):
        Wanted(*streams)
