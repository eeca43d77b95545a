"""MTA-STS policies of recipients' domains, fetched and kept (RFC 8461).

A policy that cannot be fetched is no policy (5.1), one that is kept holds until it is too old: whoever
blocks our fetch or hides the record wins nothing against a domain we have mailed before.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass

import httpx
import structlog
from prometheus_client import Counter

from workers.delivery.connection import is_private
from workers.delivery.dns import DnsTrouble, Resolver
from workers.delivery.sts_policy import BadPolicy, StsPolicy, parse, policy_id

MAX_BYTES = 64 * 1024  # of a policy (RFC 8461 3.3 suggests this bound)
FETCH = 15.0  # real seconds for one whole fetch
AGAIN = 300.0  # seconds after a failed fetch before the same id is asked for again (3.3)
REFRESH = 86_400.0  # seconds after which a kept policy is fetched anew in the background (3.3)
CACHE_SIZE = 50_000  # domains

log = structlog.get_logger(__name__)
_fetches = Counter("mailweir_mta_sts_fetches", "MTA-STS policy fetches by result", ["result"])


class FetchFailed(Exception):
    """The policy host gave no policy; the text says why."""


@dataclass(frozen=True, slots=True)
class _Kept:
    id: str
    policy: StsPolicy
    fetched: float

    def fresh(self, now: float) -> bool:
        return now < self.fetched + self.policy.max_age

    def aging(self, now: float) -> bool:
        return now >= self.fetched + min(REFRESH, self.policy.max_age / 2)


class MtaSts:
    """Belongs to one event loop. ``port`` is that of policy hosts; tests have one of their own."""

    def __init__(
        self,
        resolver: Resolver,
        *,
        allow_private: bool = False,
        port: int = 443,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._resolver = resolver
        self._allow_private = allow_private
        self._port = port
        self._clock = clock
        self._kept: dict[str, _Kept] = {}
        self._failed: dict[str, tuple[str, float]] = {}  # domain -> id, when
        self._flights: dict[str, asyncio.Task[StsPolicy | None]] = {}
        self._tls: ssl.SSLContext | None = None

    async def policy(self, domain: str) -> StsPolicy | None:
        """The policy in force for ``domain`` (A-label), None where it has none. Never raises."""
        now = self._clock()
        kept = self._kept.get(domain)
        if kept is not None and not kept.fresh(now):
            del self._kept[domain]
            kept = None
        known = await self._id(domain)
        if known is None:  # hidden or gone: what is kept holds (RFC 8461 3.1, 10.2)
            return kept.policy if kept else None
        if kept is not None and kept.id == known:
            if kept.aging(now):
                self._flight(domain, known)
            return kept.policy
        return await asyncio.shield(self._flight(domain, known)) or (kept.policy if kept else None)

    async def close(self) -> None:
        """Leave no fetch behind."""
        for task in list(self._flights.values()):
            task.cancel()
        await asyncio.gather(*self._flights.values(), return_exceptions=True)

    async def _id(self, domain: str) -> str | None:
        try:
            return policy_id(await self._resolver.texts(f"_mta-sts.{domain}"))
        except DnsTrouble:
            return None

    def _flight(self, domain: str, known: str) -> asyncio.Task[StsPolicy | None]:
        """One fetch at a time per domain."""
        flight = self._flights.get(domain)
        if flight is None:
            flight = asyncio.get_running_loop().create_task(self._renew(domain, known))
            self._flights[domain] = flight
            flight.add_done_callback(lambda _: self._flights.pop(domain, None))
        return flight

    async def _renew(self, domain: str, known: str) -> StsPolicy | None:
        tried, when = self._failed.get(domain, ("", 0.0))
        if tried == known and self._clock() < when + AGAIN:
            return None
        try:
            async with asyncio.timeout(FETCH):
                policy = parse(await self._fetch(f"mta-sts.{domain}"))
        except (
            FetchFailed,
            BadPolicy,
            DnsTrouble,
            TimeoutError,
            OSError,
            httpx.HTTPError,
        ) as error:
            _bound(self._failed)
            self._failed[domain] = (known, self._clock())
            _fetches.labels("failed").inc()
            log.warning("no MTA-STS policy", domain=domain, why=str(error) or type(error).__name__)
            return None
        _bound(self._kept)
        self._failed.pop(domain, None)
        self._kept[domain] = _Kept(known, policy, self._clock())
        _fetches.labels("good").inc()
        return policy

    async def _fetch(self, host: str) -> str:
        """The policy file; the certificate must name ``host``, a redirect is a failure (3.3)."""
        found = await self._resolver.addresses(host, "A")
        found += await self._resolver.addresses(host, "AAAA")
        usable = [a for a in found if self._allow_private or not is_private(a)]
        if not usable:
            raise FetchFailed(f"{host} has no public address")
        address = f"[{usable[0]}]" if ":" in usable[0] else usable[0]
        if self._tls is None:
            self._tls = ssl.create_default_context()
        async with (
            httpx.AsyncClient(verify=self._tls, trust_env=False, timeout=FETCH) as client,
            client.stream(
                "GET",
                f"https://{address}:{self._port}/.well-known/mta-sts.txt",
                headers={"Host": host, "Accept-Encoding": "identity"},
                extensions={"sni_hostname": host},  # what the certificate is checked against, too
            ) as answer,
        ):
            if answer.status_code != 200:
                raise FetchFailed(f"{host} answered {answer.status_code}")
            kind = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind != "text/plain":
                raise FetchFailed(f"{host} answered with another type than text/plain")
            if answer.headers.get("content-encoding", "identity") != "identity":
                raise FetchFailed(f"{host} answered in an encoding we did not ask for")
            body = b""
            async for part in answer.aiter_raw():
                body += part
                if len(body) > MAX_BYTES:
                    raise FetchFailed(f"{host} answered with more than {MAX_BYTES} bytes")
        return body.decode("utf-8", "replace")


def _bound(cache: dict[str, _Kept] | dict[str, tuple[str, float]]) -> None:
    if len(cache) >= CACHE_SIZE:
        for old in list(cache)[: CACHE_SIZE // 10]:
            del cache[old]
