"""The server's errors, by where the fault lies. `api_errors.py` maps each class to an HTTP status; nothing else does.

A message says what was expected, what came, and what to do.
"""


class CoveyServerError(Exception):
    """Base of everything the server raises on purpose."""


class InvalidInputError(CoveyServerError):
    """The caller sent something that cannot be accepted."""


class NotFoundError(CoveyServerError):
    """The thing that was named does not exist."""

    def __init__(self, kind: str, ident: object) -> None:
        super().__init__(f"there is no {kind} {ident!s:.80}")
        self.kind = kind
        self.ident = ident


class ConflictError(CoveyServerError):
    """The request contradicts the present state."""


class UnauthenticatedError(CoveyServerError):
    """No valid token or login was presented."""


class ForbiddenError(CoveyServerError):
    """The caller is known and may not do this."""


class RefusedError(CoveyServerError):
    """A rule of safety, privacy or quality forbids it."""


class TooLargeError(CoveyServerError):
    """A body or file is over its limit."""


class ThrottledError(CoveyServerError):
    """Too many tries or requests; later ones are welcome."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class UnavailableError(CoveyServerError):
    """A part that is needed (broker, SuperLink, store) does not answer."""
