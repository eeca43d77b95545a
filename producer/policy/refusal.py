"""Why a door says no: one family of errors, each with the HTTP status it means.

No message holds a recipient's address; ``field`` is the path that leads to the value.
"""

from __future__ import annotations


class Refusal(Exception):
    """A submission that is not accepted; nothing of it was stored."""

    status = 400
    code = "refused"
    title = "Refused"

    def __init__(self, field: str | None, why: str) -> None:
        super().__init__(f"{field}: {why}" if field else why)
        self.field = field
        self.why = why


class Invalid(Refusal):
    """A field has a value that cannot be; the same request will never be accepted."""

    status = 422
    code = "invalid"
    title = "Invalid field"


class TooLarge(Refusal):
    """More bytes or recipients than one call may have."""

    status = 413
    code = "too_large"
    title = "Too large"


class Forbidden(Refusal):
    """The credential may not ask for this."""

    status = 403
    code = "forbidden"
    title = "Not allowed"
