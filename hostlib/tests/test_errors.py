from hypothesis import given
from hypothesis import strategies as st

from hostlib.errors import Internal, NotFound, ThawError, from_dict


def test_an_error_survives_the_way_to_another_process() -> None:
    error = from_dict(NotFound("no pod x", hint="thaw pods").to_dict())
    assert isinstance(error, NotFound)
    assert (error.message, error.hint) == ("no pod x", "thaw pods")


def test_an_unknown_code_becomes_internal() -> None:
    assert type(from_dict({"code": "NO_SUCH", "message": "m"})) is Internal


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(json_values)
def test_whatever_a_peer_sends_becomes_an_error(data: object) -> None:
    error = from_dict(data)
    assert isinstance(error, ThawError)
    assert len(error.message) <= 4096
