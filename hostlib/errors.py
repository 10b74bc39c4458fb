"""The one tree of Thaw's errors. Every error that a user can meet is one of these.

::

    ThawError                 code INTERNAL
    ├── InvalidArgument       the request is wrong whatever the state of the system
    ├── NotFound              the named object does not exist
    ├── AlreadyExists         the name is taken
    ├── FailedPrecondition    right request, wrong moment
    ├── PermissionDenied      the caller, or this process, lacks the right
    ├── Unauthenticated       a registry wants credentials, or refused those given
    ├── ResourceExhausted     a limit was reached: disk, memory, count, size, rate
    ├── DeadlineExceeded      it took longer than allowed
    ├── Unavailable           a peer is down; trying again may help
    ├── Unimplemented         known, and not done by this version
    ├── DataLoss              bytes differ from what their digest or record promises
    └── Internal              a defect of Thaw

A package derives its own errors from these leaves. ``code`` is the name of a gRPC status code; the
gRPC server maps it in one place. Causes are kept with ``raise ... from``, and
``asyncio.CancelledError`` is never wrapped.
"""

from __future__ import annotations

from typing import ClassVar, Final


class ThawError(Exception):
    """An error with a gRPC status code and, where there is something to do about it, a hint.

    ``message`` says what failed, with the names involved; ``hint`` says what to do.
    """

    code: ClassVar[str] = "INTERNAL"

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} (hint: {self.hint})" if self.hint else self.message

    def to_dict(self) -> dict[str, str | None]:
        """The form in which an error crosses a process boundary; `from_dict` reads it."""
        return {"code": self.code, "message": self.message, "hint": self.hint}


class InvalidArgument(ThawError):
    code = "INVALID_ARGUMENT"


class NotFound(ThawError):
    code = "NOT_FOUND"


class AlreadyExists(ThawError):
    code = "ALREADY_EXISTS"


class FailedPrecondition(ThawError):
    code = "FAILED_PRECONDITION"


class PermissionDenied(ThawError):
    code = "PERMISSION_DENIED"


class Unauthenticated(ThawError):
    code = "UNAUTHENTICATED"


class ResourceExhausted(ThawError):
    code = "RESOURCE_EXHAUSTED"


class DeadlineExceeded(ThawError):
    code = "DEADLINE_EXCEEDED"


class Unavailable(ThawError):
    code = "UNAVAILABLE"


class Unimplemented(ThawError):
    code = "UNIMPLEMENTED"


class DataLoss(ThawError):
    code = "DATA_LOSS"


class Internal(ThawError):
    code = "INTERNAL"


_BY_CODE: Final[dict[str, type[ThawError]]] = {
    cls.code: cls
    for cls in (
        InvalidArgument,
        NotFound,
        AlreadyExists,
        FailedPrecondition,
        PermissionDenied,
        Unauthenticated,
        ResourceExhausted,
        DeadlineExceeded,
        Unavailable,
        Unimplemented,
        DataLoss,
        Internal,
    )
}

_MAX_TEXT: Final = 4096


def from_dict(data: object) -> ThawError:
    """The error that a peer sent with `ThawError.to_dict`; the peer is not trusted.

    An unknown code becomes `Internal`; texts are cut at 4096 characters.
    """
    if not isinstance(data, dict):
        return Internal("a peer reported an error that is no error object")
    cls = _BY_CODE.get(str(data.get("code")), Internal)
    hint = data.get("hint")
    return cls(
        str(data.get("message") or "unknown error")[:_MAX_TEXT],
        hint=str(hint)[:_MAX_TEXT] if hint else None,
    )
