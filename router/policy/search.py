"""The search for a source: pool after pool, candidate after candidate, until one may take the job."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from mailweir.contracts.job import Bucket
from mailweir.contracts.policy import Action, Rule, Share
from mailweir.contracts.route import Held, Orders, Rejected, Routed, queue_name
from router.policy.compiled import Candidate, View
from router.policy.draft import Draft, Drawn
from router.policy.eligibility import REACH_WAIT, UNREACHED, Needs, No, after, refusal
from router.policy.order import by_hash, round_robin, sticky
from router.policy.rules import Facts, zones_of
from router.policy.shares import arm_of
from router.policy.waiting import RECHECK, UNKNOWN_WAIT, held, summary
from router.policy.wanted import Wanted, weight_at

LAST_RESORT = "score below throttling: only if nothing better is left"
STAYS = "stays with source"
STAY_WAIT = 3600.0  # a greylisted job waits this long for its source before it may move
_NO_ACTION = Action()


class Step(NamedTuple):
    """One pool, or the fallback relays of one, in the order they are tried."""

    pool: str
    relays: bool
    failover: bool
    own: bool  # own IPs may be used (not when the provider itself is down)
    only: str  # a source asked for by an A/B arm; "" for all


class Found(NamedTuple):
    """A candidate that may take the job."""

    candidate: Candidate
    step: Step
    credits: dict[str, float] | None  # round robin's credits to write back
    total: float = 0.0  # what its turn costs


class Trace:
    """Where explain collects every candidate, in the order they were looked at."""

    def __init__(self) -> None:
        self.looked: list[tuple[Candidate, str | None]] = []
        self.barred: list[tuple[str, str]] = []
        self.facts: Facts | None = None
        self.rule: Rule | None = None
        self.wanted: Wanted | None = None


class Search:
    """One job's search. Used once."""

    def __init__(
        self, draft: Draft, facts: Facts, rule: Rule | None, wish: Wanted, trace: Trace | None
    ) -> None:
        self.draft, self.facts, self.rule, self.wish, self.trace = draft, facts, rule, wish, trace
        self.action = rule.action if rule is not None else _NO_ACTION
        self.job = facts.job
        self.bucket: str = facts.job.bucket
        self.transactional = facts.job.bucket == Bucket.TRANSACTIONAL
        self.rejected: list[Rejected] = []
        self.soonest: float | None = None
        self.degraded: list[Found] = []
        policy = draft.context.policy.policy
        self.regions: Mapping[str, int] = {}
        if policy.geo and facts.zone:
            named = (policy.geo[name] for name in zones_of(facts.zone) if name in policy.geo)
            self.regions = next(named, {})
        if trace is not None:
            trace.facts, trace.rule, trace.wanted = facts, rule, wish

    def run(self) -> Routed | Held:
        """The route, or why and until when the job waits."""
        now = self.facts.now
        rule = self.rule.name if self.rule is not None else ""
        needs = self._needs()
        if isinstance(needs, str):
            return held(self.job, now, now + RECHECK, needs, rule=rule)
        if self.job.stay_with:
            stayed = self._stay(needs)
            if stayed is not None:
                return stayed
        if not self.wish.shares:
            why = f"no pool is defined for {self.bucket}"
            return held(self.job, now, now + RECHECK, why, rule=rule)
        drawn = self._drawn()
        found = self._first(needs, drawn)
        if found is None and self.degraded:
            found = max(self.degraded, key=lambda f: f.candidate.path.score)
        if found is not None:
            self.draft.charge(drawn)
            return self._routed(found, drawn)
        until = self.soonest if self.soonest is not None else now + UNKNOWN_WAIT
        pool = self.wish.shares[drawn.arm].pool
        rejected = tuple(self.rejected)
        return held(self.job, now, until, summary(pool, rejected), rule=rule, rejected=rejected)

    def _drawn(self) -> Drawn:
        """The arm whose turn it is; of an A/B split the job's own, by the weights when it was accepted:
        it keeps it over all its attempts (S20)."""
        shares = self.wish.shares
        if not self.wish.arm:
            return self.draft.draw(self.wish.key, shares)
        meta = self.job.meta
        since = self.job.accepted_at if meta.send_at is None else meta.send_at
        weights = [weight_at(share, since) for share in shares]
        return Drawn(arm_of(self.job.id, self.wish.arm, weights), "", None)

    def _needs(self) -> Needs | str:
        """The job's constraints; a sentence when they cannot be met at all (residency fails closed)."""
        policy = self.draft.context.policy.policy
        regions: frozenset[str] | None = None
        named = ""
        tag = self.job.meta.residency
        if tag:
            if tag not in policy.residency:
                return f"residency {tag!r} is not defined in the policy"
            regions, named = frozenset(policy.residency[tag]), f"residency {tag}"
        if self.action.region is not None:
            pin = frozenset({self.action.region})
            regions = pin if regions is None else regions & pin
            named = (
                f"{named} and region pin {self.action.region}"
                if named
                else (f"region pin {self.action.region}")
            )
        return Needs(
            self.bucket,
            self.facts.provider,
            self.transactional,
            regions,
            named,
            self.action.warm_only,
            self.job.meta.risk == "high",
            self.facts.now,
        )

    # --- steps ------------------------------------------------------------------------------

    def _steps(self, drawn: Drawn) -> Iterator[Step]:
        """The drawn pool, its failover order, the sibling shares, its fallback relays."""
        first = self.wish.shares[drawn.arm]
        compiled = self.draft.context.policy
        own = not self.draft.provider_down(self.facts.provider)
        seen: set[tuple[str, str]] = set()

        def fresh(pool: str, only: str) -> bool:
            key = (pool, only)
            if key in seen or (pool, "") in seen or pool not in compiled.pools:
                return False
            seen.add(key)
            return True

        if fresh(first.pool, first.source or ""):
            yield Step(first.pool, False, False, True, first.source or "")
        chain = self.wish.chain
        if chain is None and first.pool in compiled.pools:
            chain = compiled.pools[first.pool].chain
        for name in chain or ():
            if fresh(name, ""):
                yield Step(name, False, True, own, "")
        for share in self.wish.shares:
            if fresh(share.pool, share.source or ""):
                yield Step(share.pool, False, True, own, share.source or "")
        if first.pool in compiled.pools and compiled.pools[first.pool].relays:
            yield Step(first.pool, True, True, own, "")

    def _first(self, needs: Needs, drawn: Drawn) -> Found | None:
        """The first candidate that may take the job; with a trace, all are looked at."""
        found: Found | None = None
        for step in self._steps(drawn):
            hit = self._in_step(step, needs, found)
            if found is None and hit is not None:
                found = hit
                if self.trace is None:
                    return found
        return found

    def _in_step(self, step: Step, needs: Needs, found: Found | None) -> Found | None:
        compiled = self.draft.context.policy
        view = compiled.view(
            self.draft.context.snapshot, step.pool, needs.provider, self.bucket, relays=step.relays
        )
        for name in view.barred:
            self._reject(step.pool, name, f"isolation: it does not serve {self.bucket}", None)
        until = self.draft.paused.get(f"pool:{step.pool}") if self.draft.paused else None
        if until is not None and not step.relays:
            for c in view.candidates:
                self._reject(c.pool, c.name, "its pool is paused", until, c)
            return None
        ordered, credits = self._ordered(step, view)
        hit: Found | None = None
        for c in ordered:
            no = self._ask(c, step, needs)
            if no is None:
                if hit is None and found is None:
                    hit = Found(c, step, credits, view.total)
                    if self.trace is None:
                        return hit
                    self.trace.looked.append((c, None))
                elif self.trace is not None:
                    why = (
                        "behind the chosen source in order"
                        if found is None
                        else ("only if the pools before it cannot")
                    )
                    self.trace.looked.append((c, why))
            else:
                self._reject(c.pool, c.name, no.why, no.until, c)
                if credits is not None:
                    credits[c.name] = 0.0  # what cannot run saves up no turns
        return hit

    def _ordered(
        self, step: Step, view: View
    ) -> tuple[Iterable[Candidate], dict[str, float] | None]:
        """Candidates in the order they are asked."""
        candidates: Sequence[Candidate] = view.candidates
        if step.only:
            return [c for c in candidates if c.name == step.only], None
        if step.relays:
            return candidates, None  # fallback relays have an order of their own
        pool = self.draft.context.policy.pools[step.pool].pool
        if not pool.sticky and not self.wish.source:
            told = self.draft.told
            if told is not None:  # whose turn it was is in the record
                return sorted(candidates, key=lambda c: told.place(c.pool, c.name)), None
            key = f"{step.pool}|{self.facts.provider}|{self.bucket}"
            return round_robin(view, self.draft.credits.get(key, {}), self.regions)
        if len(candidates) <= 1:
            return candidates, None
        facts = self.facts
        job = facts.job
        if job.lane.startswith("~") and facts.domain not in self.draft.context.busy_domains:
            ordered = sticky(candidates, view.nodes, facts.domain, self.regions)
        else:
            recipient = job.recipient.lower()
            ordered = by_hash(view, recipient, facts.domain, pool.sub_pool, self.regions)
        if self.wish.source:
            return sorted(ordered, key=lambda c: c.name != self.wish.source), None
        return ordered, None

    def _ask(self, c: Candidate, step: Step, needs: Needs) -> No | None:
        """Eligibility, with the two things that depend on where in the search we are."""
        if not step.own and c.source.own:
            return No(
                "the provider fails for all our own sources: they do not shift among themselves"
            )
        no = self._refusal(c, needs, failover=step.failover)
        if no is None and self.transactional:
            floor = self.draft.look.thresholds.throttle_below
            if c.path.score < floor:
                self.degraded.append(Found(c, step, None))
                return No(LAST_RESORT)
        return no

    def _refusal(self, c: Candidate, needs: Needs, *, failover: bool) -> No | None:
        told = self.draft.told
        if told is not None and told.knows(c.pool, c.name):
            return told.refusal(c.pool, c.name)
        no = refusal(c, needs, self.draft.look, failover=failover)
        out = self.draft.context.unreached
        if no is None and out and c.name in out.get(self._queue(c), ()):
            return No(UNREACHED, needs.now + REACH_WAIT)
        return no

    def _reject(
        self, pool: str, source: str, why: str, until: float | None, c: Candidate | None = None
    ) -> None:
        if until is not None and (self.soonest is None or until < self.soonest):
            self.soonest = until
        if c is None:
            self.rejected.append(Rejected(pool, source, why))
            if self.trace is not None:
                self.trace.barred.append((pool, source))
            return
        self.rejected.append(Rejected(pool, source, why, c.weight, c.path.score))
        if self.trace is not None:
            self.trace.looked.append((c, why))

    # --- outcomes ---------------------------------------------------------------------------

    def _stay(self, needs: Needs) -> Routed | Held | None:
        """Greylisting and uncertain outcomes: the same source, or a wait (S35, N41)."""
        name = self.job.stay_with or ""
        now = self.facts.now
        uncertain = self.job.state == "uncertain"
        rule = self.rule.name if self.rule is not None else ""
        place = self._place_of(name)
        if place is None:
            if uncertain:
                why = (
                    f"source {name}, which it must stay with, does not take {self.bucket} any more"
                )
                return held(self.job, now, now + RECHECK, why, rule=rule)
            return None
        c, step = place
        until = self.draft.paused.get(f"pool:{c.pool}") if self.draft.paused else None
        no = No("its pool is paused", until) if until else self._refusal(c, needs, failover=False)
        if no is None:
            if self.trace is not None:
                self.trace.looked.append((c, None))
            return self._routed(Found(c, step, None), None)
        again = no.until if no.until is not None else now + UNKNOWN_WAIT
        told = self.draft.told
        # a source nobody has reached for so long may never come back
        late = no.why == UNREACHED and now - self.job.accepted_at > STAY_WAIT
        moves = not uncertain and (late or again - now > STAY_WAIT)
        if told is not None:
            moves = not told.stays
        if moves:
            return None
        self._reject(c.pool, c.name, no.why, no.until, c)
        why = f"{STAYS} {name}: {no.why}"
        return held(self.job, now, again, why, rule=rule, rejected=tuple(self.rejected))

    def _place_of(self, name: str) -> tuple[Candidate, Step] | None:
        """The source as a candidate, preferably of a pool this job asks for."""
        compiled = self.draft.context.policy
        asked = [share.pool for share in self.wish.shares]
        for pool in (*asked, *(p for p in compiled.pools if p not in asked)):
            for relays in (False, True):
                if pool not in compiled.pools:
                    continue
                view = compiled.view(
                    self.draft.context.snapshot,
                    pool,
                    self.facts.provider,
                    self.bucket,
                    relays=relays,
                )
                for c in view.candidates:
                    if c.name == name:
                        return c, Step(pool, relays, False, True, "")
        return None

    def _routed(self, found: Found, drawn: Drawn | None) -> Routed:
        """Book the job on its path and say where it goes."""
        draft, facts, c, step = self.draft, self.facts, found.candidate, found.step
        key = f"{c.name}|{facts.provider}"
        draft.used[key] = draft.used.get(key, 0) + 1
        if step.failover:
            draft.ramps[key] = after(draft.ramps.get(key), facts.now)
        if found.credits is not None:
            found.credits[c.name] -= found.total
            draft.credits[f"{step.pool}|{facts.provider}|{self.bucket}"] = found.credits
        share = self.wish.shares[drawn.arm] if drawn is not None else None
        return Routed(
            self._queue(c),
            c.pool,
            c.name,
            facts.provider,
            self._orders(found, share),
            c.path.score,
            self._reasons(found, share),
            tuple(self.rejected),
            self.wish.level,
        )

    def _orders(self, found: Found, share: Share | None) -> Orders:
        action = self.action
        arm = ""
        if self.wish.arm and share is not None and not found.step.failover:
            arm = f"{self.wish.arm}/{share.pool}" + (f"/{share.source}" if share.source else "")
        return Orders(
            rule=self.rule.name if self.rule is not None else "",
            provider=self.facts.provider,
            tls=action.tls,
            sign=action.sign,
            retry_hard=action.retry_hard,
            strict=action.strict,
            daily_limit=action.daily_limit,
            rate=str(action.rate) if action.rate is not None else None,
            archive=action.archive,
            relay=found.candidate.name if found.step.relays else None,
            priority=action.priority,
            arm=arm,
        )

    def _throttled(self, c: Candidate) -> bool:
        return not self.transactional and (
            c.path.score < self.draft.look.thresholds.throttle_below or c.path.state == "slowed"
        )

    def _queue(self, c: Candidate) -> str:
        """The queue a job goes to with this source."""
        regions = self.draft.context.policy.policy.regions
        region = (c.region or regions[0]) if regions else None
        return queue_name(self.bucket, throttled=self._throttled(c), region=region)

    def _reasons(self, found: Found, share: Share | None) -> tuple[str, ...]:
        out = list(self.wish.notes)
        if self.rule is not None:
            out.append(f"rule {self.rule.number} {self.rule.name!r} is the first that matches")
        if share is None:
            out.append(f"{STAYS} {found.candidate.name}")
        elif len(self.wish.shares) > 1:
            which = f"split {self.wish.arm}: " if self.wish.arm else ""
            out.append(f"{which}pool {share.pool} by weight {share.weight}")
        if found.step.relays:
            out.append(f"fallback relay of pool {found.step.pool}")
        elif found.step.failover:
            out.append(f"failover to pool {found.step.pool}")
        if self._throttled(found.candidate):
            out.append(f"throttled queue: score {found.candidate.path.score:.2f}")
        return tuple(out)
