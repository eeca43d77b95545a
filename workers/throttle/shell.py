"""The throttle in Redis: the scripts, and the bounded local share while Redis is away."""

from __future__ import annotations

import hashlib
import random
import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog
from prometheus_client import Counter, Gauge
from redis.asyncio import Redis
from redis.exceptions import NoScriptError, RedisError

from mailweir.plumbing import keys
from mailweir.plumbing.clock import Clock
from mailweir.plumbing.wire import Command, wire_of
from workers.policy import tokens
from workers.throttle.layers import Ask, Layer
from workers.throttle.twin import PROBE_LEASE, MemoryThrottle
from workers.throttle.types import Booking, Grant, places

log = structlog.get_logger(__name__)

_HERE = Path(__file__).parent
KEEP = 7 * 86400
"""Real seconds a path's state is kept after its last attempt."""

RETRY = (1.0, 2.0)
"""Real seconds until a worker asks a lost Redis again; drawn between, so that none return together."""

HELD = Counter("mailweir_throttle_refused_total", "Tokens refused, by binding layer.", ["layer"])
LOCAL = Gauge("mailweir_throttle_local", "1 while this worker grants from its local share.")
LOCAL_GRANTS = Counter(
    "mailweir_throttle_local_grants_total", "Tokens granted from the local share."
)

UNBOOKED = Counter(
    "mailweir_throttle_unbooked_total", "Attempts a path's state never learned of: Redis was away."
)


class Throttle:
    """Redis' answer to :class:`workers.throttle.types.Limiter`.

    ``share``: workers alive, asked when Redis is lost: each then grants at most the ``share``-th part
    of every rate, and of what was left of every count at the last look."""

    def __init__(
        self,
        redis: Redis,
        clock: Clock,
        *,
        share: Callable[[], int] = lambda: 1,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._wire = wire_of(redis)
        self._clock = clock
        self._share = share
        self._chance = chance
        self._scripts = {
            name: (_HERE / f"{name}.lua").read_text() for name in ("take", "give_back", "book")
        }
        self._hashes = {
            name: hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
            for name, text in self._scripts.items()
        }
        self._left: dict[str, int] = {}  # slot key -> what was left at the last look
        self._local: MemoryThrottle | None = None
        self._spent: list[tuple[Grant, int]] = []  # local grants, debited when Redis is back
        self._again = 0.0  # real monotonic time of the next try

    @property
    def local(self) -> bool:
        """Whether grants come from the local share now."""
        return self._local is not None

    async def take(
        self,
        asks: list[tuple[Ask, int]],
        waiting: Sequence[int] = (),
        back: Sequence[bool] = (),
    ) -> list[Grant]:
        """See :class:`Limiter`. One round trip for all asks."""
        if not asks:
            return []
        if self._local is not None and time.monotonic() < self._again:
            return await self._take_local(asks)
        none = [0] * len(asks)
        try:
            grants = await self._take(asks, waiting or none, back or none)
        except (RedisError, OSError) as error:
            self._lost(error)
            return await self._take_local(asks)
        if self._local is not None:
            await self._found()
        for grant in grants:
            if grant.layer is not None:
                HELD.labels(grant.layer.partition(":")[0]).inc(len(grant.places))
        return grants

    async def give_back(self, grant: Grant, count: int) -> None:
        """See :class:`Limiter`. Tokens that cannot go back are lost, which errs on the safe side."""
        if count <= 0:
            return
        if grant.local:
            if self._local is not None:
                await self._local.give_back(grant, count)
            return
        try:
            await self._many("give_back", [self._give_back_args(grant, count)])
        except (RedisError, OSError) as error:
            log.warning("tokens not given back", error=type(error).__name__)

    async def book(self, bookings: list[Booking]) -> None:
        """See :class:`Limiter`. While Redis is away, only this worker's own machine learns."""
        if not bookings:
            return
        if self._local is not None:
            await self._local.book(bookings)
            return
        origin, speed = self._clock.lua_args
        calls: list[tuple[list[str], list[str]]] = []
        for source, provider, ceiling, events, hold in bookings:
            args = [
                origin,
                speed,
                f"{source}|{provider}",
                repr(ceiling),
                repr(self._chance()),
                repr(hold),
                str(KEEP),
            ]
            for event, began in events:
                args += (event.value, repr(began))
            calls.append(
                (
                    [
                        keys.path_state(source, provider),
                        keys.probe_lease(source, provider),
                        keys.PATH_INDEX,
                    ],
                    args,
                )
            )
        try:
            await self._many("book", calls)
        except (RedisError, OSError) as error:
            UNBOOKED.inc(sum(len(b.events) for b in bookings))
            log.warning("attempts not booked", error=type(error).__name__)

    async def _take(
        self, asks: list[tuple[Ask, int]], waiting: Sequence[int], back: Sequence[int]
    ) -> list[Grant]:
        origin, speed = self._clock.lua_args
        lease = str(int(PROBE_LEASE * 1000))
        calls, tokens_ = [], []
        for (ask, n), wait, was_sent_back in zip(asks, waiting, back, strict=True):
            token = secrets.token_hex(8)
            tokens_.append(token)
            names = [
                keys.EPOCH,
                keys.COUNTERS_READY,
                keys.TOKENS_SINCE,
                keys.path_state(ask.source, ask.provider),
                keys.probe_lease(ask.source, ask.provider),
            ]
            args = [origin, speed, str(n), token, lease, repr(tokens.AHEAD)]
            args += (str(wait), repr(tokens.SOON), str(int(was_sent_back)))
            for layer in ask.layers:
                names.append(layer.key)
                args += (layer.kind, repr(layer.a), repr(layer.b))
            calls.append((names, args))
        answers = await self._many("take", calls)
        return [
            self._grant(ask, n, answer, token)
            for (ask, n), answer, token in zip(asks, answers, tokens_, strict=True)
        ]

    def _grant(self, ask: Ask, n: int, answer: list[int | bytes], token: str) -> Grant:
        granted, binding = int(answer[0]), int(answer[1])
        available, first, step, cap, now = (float(x) for x in answer[2:7])
        promised, soon, gap = int(answer[9]), float(answer[10]), float(answer[11])
        counts = (layer for layer in ask.layers if layer.kind == "count")
        for layer, used in zip(counts, answer[12:], strict=True):
            self._left[layer.slot_key(now)] = max(0, int(layer.a) - int(used))
        return Grant(
            ask,
            granted,
            ask.layers[binding - 1].name if binding else None,
            available,
            places(first, step, cap, n - granted - promised),
            now,
            bool(answer[7]),
            token,
            promised=tuple(soon + k * gap for k in range(promised)),
            shut=float(answer[8]) if answer[8] else None,
        )

    def _give_back_args(self, grant: Grant, count: int) -> tuple[list[str], list[str]]:
        origin, speed = self._clock.lua_args
        names = [keys.probe_lease(grant.ask.source, grant.ask.provider)]
        args = [origin, speed, str(count), grant.token, repr(grant.at)]
        for layer in grant.ask.layers:
            names.append(layer.key)
            args += (layer.kind, repr(layer.a), repr(layer.b))
        return names, args

    async def _many(
        self, name: str, calls: list[tuple[list[str], list[str]]]
    ) -> list[list[int | bytes]]:
        """Run a script for each call, in one round trip."""
        sha = self._hashes[name]
        commands: list[Command] = [
            ("EVALSHA", sha, len(names), *names, *args) for names, args in calls
        ]
        try:
            return await self._wire.run(*commands)
        except NoScriptError:
            # A restarted server forgot the script. What a part of the calls took is lost: the safe side.
            load: Command = ("SCRIPT", "LOAD", self._scripts[name])
            return (await self._wire.run(load, *commands))[1:]

    def _lost(self, error: Exception) -> None:
        if self._local is None:
            log.warning(
                "redis lost: local share", error=type(error).__name__, workers=self._share()
            )
            LOCAL.set(1)
            self._local = MemoryThrottle(self._clock.now, speed=self._clock.rate)
        self._again = time.monotonic() + random.uniform(*RETRY)

    async def _take_local(self, asks: list[tuple[Ask, int]]) -> list[Grant]:
        assert self._local is not None
        workers = max(1, self._share())
        now = self._clock.now()
        shared = [(self._shrink(ask, workers, now), n) for ask, n in asks]
        grants = await self._local.take(shared)
        out = []
        for (ask, _), grant in zip(asks, grants, strict=True):
            if taken := grant.granted + len(grant.promised):
                LOCAL_GRANTS.inc(taken)
                self._spent.append((grant._replace(ask=ask), taken))
            out.append(grant)
        return out

    def _shrink(self, ask: Ask, workers: int, now: float) -> Ask:
        """The ask with one worker's part of every limit; a count never seen has nothing left."""
        small = []
        for layer in ask.layers:
            if layer.kind == "count":
                left = self._left.get(layer.slot_key(now), 0)
                small.append(layer._replace(a=float(left // workers)))
            else:
                small.append(Layer(layer.name, layer.kind, 1.0, layer.b / workers))
        return ask._replace(layers=tuple(small))

    async def _found(self) -> None:
        """Redis is back: counted limits are debited by what went meanwhile; rates need no debt."""
        spent, self._spent, self._local = self._spent, [], None
        LOCAL.set(0)
        log.info("redis back", spent=sum(n for _, n in spent))
        debits = []
        for grant, count in spent:
            counts = tuple(layer for layer in grant.ask.layers if layer.kind == "count")
            if counts:
                debit = grant._replace(ask=grant.ask._replace(layers=counts))
                debits.append(self._give_back_args(debit, -count))
        if not debits:
            return
        try:
            await self._many("give_back", debits)
        except (RedisError, OSError) as error:  # away again: what was granted stays granted
            self._spent = spent + self._spent
            self._lost(error)
