"""Mailweir's client: ``from mailweir import Client, Message``.

Light: httpx and msgspec. The extra ``[broker]`` brings :class:`mailweir.producer.broker.BrokerClient`
for services that share the Celery broker.
"""

from mailweir.contracts.job import Accepted, JobStatus
from mailweir.contracts.submit import Cancelled, JobView, MessageView
from mailweir.producer.aclient import AsyncClient
from mailweir.producer.client import Client
from mailweir.producer.errors import (
    AuthError,
    ConfigurationError,
    IdempotencyConflict,
    InvalidAddress,
    MailError,
    NotFound,
    PayloadTooLarge,
    QueueUnavailable,
    RateLimited,
    ServerError,
    ValidationError,
)
from mailweir.producer.message import Address, Attachment, Message, Template
from mailweir.producer.wire import ItemResult

__all__ = [
    "Accepted",
    "Address",
    "AsyncClient",
    "Attachment",
    "AuthError",
    "Cancelled",
    "Client",
    "ConfigurationError",
    "IdempotencyConflict",
    "InvalidAddress",
    "ItemResult",
    "JobStatus",
    "JobView",
    "MailError",
    "Message",
    "MessageView",
    "NotFound",
    "PayloadTooLarge",
    "QueueUnavailable",
    "RateLimited",
    "ServerError",
    "Template",
    "ValidationError",
]
