"""Errors of the SPDY core. What a peer does wrong is an event; these are raised at the caller.

::

    SpdyError
    ├── WrongUse            the call is not allowed in this state: a defect of the caller
    ├── StreamClosed        the stream is over in this direction, maybe since the peer reset it
    └── StreamsExhausted    the peer allows no more streams, or ids or the connection are used up
"""

from __future__ import annotations

from hostlib.errors import FailedPrecondition, Internal, ResourceExhausted, ThawError


class SpdyError(ThawError):
    """The root of what the SPDY core raises."""


class WrongUse(SpdyError, Internal):
    pass


class StreamClosed(SpdyError, FailedPrecondition):
    """A race that every caller meets: the peer may end a stream at any time."""


class StreamsExhausted(SpdyError, ResourceExhausted):
    pass
