"""Credentials by reference, never by value.

``env:NAME``; ``file:/path[#key]`` (read again when the file changes); ``vault:mount/path#key`` (HashiCorp
Vault, KV version 2); ``aws:name-or-arn[#key]`` (AWS Secrets Manager). ``#key`` picks from a JSON object.

Values live in memory only: no repr, log or error of ours carries one, errors name the reference.
``get`` answers from memory while it may, and goes on with the last value while Vault or AWS is away;
``refresh`` asks again (a remote said 535, a key rotated).
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import httpx
import structlog
import tenacity

from mailweir.plumbing import sigv4
from mailweir.plumbing.settings import Settings

_log = structlog.get_logger(__name__)


class SecretUnavailable(Exception):
    """The secret behind ``reference`` cannot be had now. The text names the reference, never a value."""

    def __init__(self, reference: str, why: str) -> None:
        super().__init__(f"secret {reference}: {why}")
        self.reference = reference
        self.why = why


class Secrets:
    """Resolves references. Safe to share between threads."""

    def __init__(self, settings: Settings) -> None:
        self._limits = settings.secrets
        self._lock = threading.Lock()
        self._files: dict[str, tuple[tuple[int, int, int], str]] = {}
        self._remote: dict[str, tuple[float, str]] = {}  # place -> (asked at, document)

    def __repr__(self) -> str:
        return "Secrets()"

    def get(self, reference: str) -> str:
        """The value, from memory where it is fresh. Raises :class:`SecretUnavailable`."""
        return self._fetch(reference, anew=False)

    def refresh(self, reference: str) -> str:
        """The value, asked for anew. Raises :class:`SecretUnavailable`."""
        return self._fetch(reference, anew=True)

    def _fetch(self, reference: str, *, anew: bool) -> str:
        scheme, colon, rest = reference.partition(":")
        if not colon or not rest:
            raise SecretUnavailable(reference, "a reference is SCHEME:NAME")
        if scheme == "env":
            return self._env(reference, rest)
        if scheme == "file":
            return self._file(reference, rest, anew=anew)
        if scheme == "vault":
            place, hash_, key = rest.partition("#")
            if not hash_ or "/" not in place:
                raise SecretUnavailable(reference, "it must be vault:mount/path#key")
            return pick(reference, self._cached(reference, scheme, place, anew=anew), key)
        if scheme == "aws":
            place, hash_, key = rest.partition("#")
            text = self._cached(reference, scheme, place, anew=anew)
            return pick(reference, text, key) if hash_ else text
        raise SecretUnavailable(reference, "the scheme is none of env, file, vault, aws")

    def _env(self, reference: str, name: str) -> str:
        value = os.environ.get(name)
        if not value:
            raise SecretUnavailable(reference, "the environment variable is not set")
        return value

    def _file(self, reference: str, rest: str, *, anew: bool) -> str:
        name, _, key = rest.partition("#")
        path = Path(name)
        try:
            stat = path.stat()
            mark = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            with self._lock:
                known = self._files.get(name)
            if known is None or known[0] != mark or anew:
                known = (mark, path.read_text(encoding="utf-8"))
                with self._lock:
                    self._files[name] = known
        except (OSError, UnicodeDecodeError) as error:
            raise SecretUnavailable(
                reference, f"the file cannot be read: {type(error).__name__}"
            ) from None
        text = known[1]
        if key:
            return pick(reference, text, key)
        if not text.strip():
            raise SecretUnavailable(reference, "the file is empty")
        return text.rstrip("\r\n")

    def _cached(self, reference: str, scheme: str, place: str, *, anew: bool) -> str:
        """A document of Vault or AWS, from memory while it is fresh or its keeper is away."""
        with self._lock:
            known = self._remote.get(f"{scheme}:{place}")
        if known is not None and not anew and time.monotonic() - known[0] < self._limits.ttl:
            return known[1]
        try:
            text = (
                self._vault(reference, place) if scheme == "vault" else self._aws(reference, place)
            )
        except SecretUnavailable as error:
            if known is None or anew:
                raise
            _log.warning("secret_kept", reference=reference, why=error.why)
            return known[1]
        with self._lock:
            self._remote[f"{scheme}:{place}"] = (time.monotonic(), text)
        return text

    def _vault(self, reference: str, place: str) -> str:
        """KV v2 (developer.hashicorp.com/vault/api-docs/secret/kv/kv-v2): the data object as JSON."""
        base = self._limits.vault_url or os.environ.get("VAULT_ADDR")
        token = os.environ.get("VAULT_TOKEN")
        if not base or not token:
            raise SecretUnavailable(reference, "VAULT_ADDR and VAULT_TOKEN are not set")
        mount, _, path = place.partition("/")
        headers = {"X-Vault-Token": token}
        if namespace := os.environ.get("VAULT_NAMESPACE"):
            headers["X-Vault-Namespace"] = namespace
        url = f"{base.rstrip('/')}/v1/{quote(mount)}/data/{quote(path)}"
        answer = self._ask(reference, "GET", url, lambda: headers, b"")
        try:
            return json.dumps(answer.json()["data"]["data"])
        except (ValueError, KeyError, TypeError):
            raise SecretUnavailable(reference, "Vault's answer holds no data") from None

    def _aws(self, reference: str, name: str) -> str:
        """GetSecretValue (docs.aws.amazon.com/secretsmanager/latest/apireference)."""
        region = self._limits.aws_region or os.environ.get("AWS_REGION")
        if not region:
            raise SecretUnavailable(reference, "AWS_REGION is not set")
        try:
            by = sigv4.credentials()
        except sigv4.NoCredentials as error:
            raise SecretUnavailable(reference, str(error)) from None
        url = self._limits.aws_url or f"https://secretsmanager.{region}.amazonaws.com/"
        body = json.dumps({"SecretId": name}).encode()
        headers = {
            "Content-Type": "application/x-amz-json-1.1",
            "X-Amz-Target": "secretsmanager.GetSecretValue",
        }

        def signed() -> dict[str, str]:
            return sigv4.sign(
                "POST", url, headers, body, service="secretsmanager", region=region, by=by
            )

        answer = self._ask(reference, "POST", url, signed, body)
        try:
            text = answer.json()["SecretString"]
        except (ValueError, KeyError, TypeError):
            text = None
        if not isinstance(text, str) or not text:
            raise SecretUnavailable(reference, "the secret is binary or empty")
        return text

    def _ask(
        self,
        reference: str,
        method: str,
        url: str,
        headers: Callable[[], dict[str, str]],
        body: bytes,
    ) -> httpx.Response:
        """One request, again for trouble that passes. Raises :class:`SecretUnavailable`."""
        limits = self._limits
        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(limits.tries),
            wait=tenacity.wait_random_exponential(multiplier=0.1, max=2.0),
            retry=tenacity.retry_if_exception_type(_Passing),
            reraise=True,
        )

        def once() -> httpx.Response:
            try:
                answer = httpx.request(
                    method, url, headers=headers(), content=body, timeout=limits.timeout
                )
            except httpx.TransportError as error:
                raise _Passing(type(error).__name__) from None
            if answer.status_code >= 500 or answer.status_code == 429:
                raise _Passing(f"HTTP {answer.status_code}")
            return answer

        try:
            answer = retrying(once)
        except _Passing as error:
            raise SecretUnavailable(reference, f"its keeper does not answer: {error}") from None
        if answer.status_code != 200:
            raise SecretUnavailable(reference, f"its keeper says HTTP {answer.status_code}")
        return answer


class _Passing(Exception):
    """Trouble that may pass: worth another request."""


def pick(reference: str, text: str, key: str) -> str:
    """The string under ``key`` of a JSON object. Raises :class:`SecretUnavailable`."""
    try:
        document = json.loads(text)
    except ValueError:
        raise SecretUnavailable(reference, "it is not JSON, so it has no keys") from None
    value = document.get(key) if isinstance(document, dict) else None
    if not isinstance(value, str) or not value:
        raise SecretUnavailable(reference, f"the JSON object has no text under {key!r}")
    return value
