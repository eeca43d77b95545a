"""Which events suppress whom, and what never does; the mass-bounce guard's arithmetic."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailweir.contracts.events import EventType, Feedback
from suppression.entries import BadEntry, Held, decode, encode, verdict
from suppression.mass import ProviderGuard
from suppression.rules import DAY, Change, Subject, asked, fed_back

WHO = Subject("a@example.com", "news@acme.test", "acme")


def event(kind: EventType, **fields: object) -> Feedback:
    return Feedback("e1", kind, "test", 100.0, **fields)  # type: ignore[arg-type]  # fields by name


def test_wishes() -> None:
    (hard,) = asked("recipient:", "invalid_recipient", WHO, 0.0, "1")
    assert (hard.scope, hard.reason, hard.expires_at) == ("global", "hard_bounce", None)
    (idle,) = asked("recipient:180", "inactive_mailbox", WHO, 0.0, "1")
    assert idle.expires_at == 180 * DAY
    (domain,) = asked("domain:", "invalid_domain", WHO, 0.0, "1")
    assert (domain.key, domain.expires_at) == ("@example.com", 7 * DAY)
    (pair,) = asked("pair:90", "recipient_refused", WHO, 0.0, "1")
    assert (pair.key, pair.tenant) == ("news@acme.test>a@example.com", "acme")
    assert asked("pair:90", None, WHO._replace(sender=""), 0.0, "1") == ()


@pytest.mark.parametrize("wish", ["everyone:", "recipient:soon", ""])
def test_wishes_nobody_understands(wish: str) -> None:
    with pytest.raises(BadEntry):
        asked(wish, None, WHO, 0.0, "1")


@pytest.mark.parametrize(
    "kind",
    [k for k in EventType if k not in ("complained", "unsubscribed", "subscribed", "delivered")],
)
def test_other_events_suppress_nobody(kind: EventType) -> None:
    assert fed_back(event(kind), WHO, 100.0) == Change()


def test_not_spam_is_no_complaint() -> None:
    assert fed_back(event(EventType.COMPLAINED, category="not-spam"), WHO, 100.0) == Change()
    (entry,) = fed_back(event(EventType.COMPLAINED), WHO, 100.0).add
    assert (entry.scope, entry.tenant) == ("tenant", "acme")
    (unknown,) = fed_back(event(EventType.COMPLAINED), WHO._replace(tenant=""), 100.0).add
    assert unknown.scope == "global"


held = st.builds(
    Held,
    st.just("bucket"),
    st.sampled_from(["", "t1", "t2"]),
    st.sampled_from(["", "bulk", "marketing"]),
    st.sampled_from(["complaint", "manual", "unsubscribe"]),
    st.one_of(st.none(), st.floats(0, 200)),
)


@given(st.lists(held, max_size=5))
def test_projection_says_the_same(entries: list[Held]) -> None:
    assert decode(encode(entries)) == entries
    for tenant, bucket in (("t1", "bulk"), ("t2", "marketing")):
        matching = [
            e
            for e in entries
            if e.tenant in ("", tenant)
            and e.bucket in ("", bucket)
            and (e.expires_at is None or e.expires_at > 100.0)
        ]
        assert (verdict(entries, tenant, bucket, 100.0) is not None) == bool(matching)


def test_guard_needs_a_baseline_a_sample_and_a_jump() -> None:
    new = ProviderGuard()
    for i in range(300):
        new.note(1e6 + i, True)
    assert not new.holds(1e6 + 300)  # a bad list at a provider never seen is a bad list
    known = ProviderGuard()
    for i in range(600):
        known.note(1e6 + i, i % 50 == 0)
    for i in range(30):
        known.note(1e6 + 1200 + i, True)
    assert not known.holds(1e6 + 1230)  # too few
    for i in range(30):
        known.note(1e6 + 1230 + i, True)
    assert known.holds(1e6 + 1260)
    assert not known.holds(1e6 + 1260 + 1801)
