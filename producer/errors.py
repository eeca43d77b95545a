"""Typed errors of the client. Every one says whether the same call may be made again."""

from __future__ import annotations


class MailError(Exception):
    """Base of all errors of the client.

    ``code`` is stable text for programs, ``retryable`` whether the same call (same idempotency key) may
    succeed later, ``request_id`` names the call in the server's logs."""

    code = "error"
    retryable = False

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        field: str | None = None,
        status: int | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(f"{field}: {message}" if field else message)
        self.code = code or type(self).code
        self.field = field
        self.status = status
        self.request_id = request_id
        self.retry_after = retry_after  # seconds


class ValidationError(MailError):
    """A field has a value that cannot be; ``field`` is its path (``to[2]``)."""

    code = "invalid"


class InvalidAddress(ValidationError):
    """A recipient or sender is no address we mail."""

    code = "invalid_address"


class IdempotencyConflict(MailError):
    """The idempotency key was used for another message."""

    code = "idempotency_conflict"


class PayloadTooLarge(MailError):
    """More bytes or recipients than one call may have."""

    code = "too_large"


class AuthError(MailError):
    """The API key is missing, not valid, or may not do this."""

    code = "unauthorized"


class NotFound(MailError):
    """There is no such message."""

    code = "not_found"


class RateLimited(MailError):
    """Too many calls; wait ``retry_after`` seconds."""

    code = "rate_limited"
    retryable = True


class QueueUnavailable(MailError):
    """Nobody accepts just now: no connection, 503, or the ingress queue is full."""

    code = "unavailable"
    retryable = True


class ServerError(MailError):
    """The server failed or answered what nobody understands."""

    code = "server_error"
    retryable = True


class ConfigurationError(MailError):
    """``MAILWEIR_URL`` or ``MAILWEIR_API_KEY`` is missing or unusable."""

    code = "configuration"
