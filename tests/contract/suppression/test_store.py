"""The list in SQL: scopes, ends, merging, pages."""

from __future__ import annotations

import itertools

import pytest

from mailweir.plumbing.database import Database
from suppression import store
from suppression.entries import BadEntry, Entry, Reason, Scope, key_of, verdict

A = "a@example.com"


def entry(key: str = A, **fields: object) -> Entry:
    values: dict[str, object] = {
        "key": key,
        "scope": Scope.GLOBAL,
        "reason": Reason.HARD_BOUNCE,
        "created_at": 100.0,
    }
    return Entry(**(values | fields))  # type: ignore[arg-type]  # fields of Entry by name


def test_adding_twice_changes_nothing(database: Database) -> None:
    with database.write() as conn:
        assert store.add(conn, [entry(), entry()]) == 1
        assert store.add(conn, [entry(source_event="again", created_at=200.0)]) == 0
        assert len(store.lookup(conn, [A])[A]) == 1


def test_the_longer_end_and_the_confirmed_entry_win(database: Database) -> None:
    with database.write() as conn:
        store.add(conn, [entry(expires_at=500.0, pending=True)])
        store.add(conn, [entry(expires_at=300.0)])
        (found,) = store.lookup(conn, [A])[A]
        assert (found.expires_at, found.pending) == (500.0, False)
        store.add(conn, [entry()])
        assert store.lookup(conn, [A])[A][0].expires_at is None


def test_an_ended_entry_is_replaced(database: Database) -> None:
    with database.write() as conn:
        store.add(conn, [entry(reason=Reason.SOFT_BOUNCE, expires_at=150.0)])
        store.add(conn, [entry(reason=Reason.COMPLAINT, created_at=200.0)])
        assert store.lookup(conn, [A])[A][0].reason == "complaint"


@pytest.mark.parametrize(
    ("fields", "tenant", "bucket", "suppressed"),
    [
        ({"scope": "global"}, "t1", "bulk", True),
        ({"scope": "tenant", "tenant": "t1"}, "t1", "transactional", True),
        ({"scope": "tenant", "tenant": "t1"}, "t2", "bulk", False),
        ({"scope": "bucket", "tenant": "t1", "bucket": "bulk"}, "t1", "bulk", True),
        ({"scope": "bucket", "tenant": "t1", "bucket": "bulk"}, "t1", "marketing", False),
        ({"scope": "bucket", "bucket": "bulk"}, "t9", "bulk", True),
        ({"scope": "global", "expires_at": 999.0}, "t1", "bulk", False),
        ({"scope": "global", "pending": True}, "t1", "bulk", False),
    ],
)
def test_scopes(
    database: Database, fields: dict[str, object], tenant: str, bucket: str, suppressed: bool
) -> None:
    with database.write() as conn:
        store.add(conn, [entry(**fields)])
        held = store.held(conn, [A]).get(A, [])
    assert (verdict(held, tenant, bucket, 1000.0) is not None) is suppressed


@pytest.mark.parametrize(
    "bad",
    [
        {"scope": "tenant"},
        {"scope": "bucket", "bucket": "news"},
        {"scope": "everyone"},
        {"reason": "whim"},
        {"tenant": "t1"},
    ],
)
def test_nonsense_is_refused_by_field(database: Database, bad: dict[str, object]) -> None:
    with database.write() as conn, pytest.raises(BadEntry):
        store.add(conn, [entry(**bad)])


def test_pages_hold_all_entries_of_a_key(database: Database) -> None:
    keys = [f"u{i:03}@example.com" for i in range(25)]
    everything = [entry(k, scope="bucket", bucket=b) for k in keys for b in ("bulk", "marketing")]
    with database.write() as conn:
        store.add(conn, everything)
        pages = list(store.every(conn, size=7))
    assert sum(map(len, pages)) == 50
    per_page = [{e.key for e in page} for page in pages]
    for first, second in itertools.pairwise(per_page):
        assert not first & second


def test_pending_is_confirmed_or_dropped(database: Database) -> None:
    with database.write() as conn:
        store.add(
            conn, [entry(pending=True), entry("b@example.com", pending=True, created_at=900.0)]
        )
        assert store.release(conn, None, confirm=True, before=500.0) == [A]
        assert store.held(conn, [A])
        assert store.release(conn, ["b@example.com"], confirm=False, before=1000.0)
        assert not store.lookup(conn, ["b@example.com"])


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("USER@Exämple.com", "user@xn--exmple-cua.com"),  # A24, S8
        ("A@X.COM", "a@x.com"),  # A27
        ("a@x.com.", "a@x.com"),  # A28
        ("@Example.COM", "@example.com"),
        ("News@Acme.test > A@x.com", "news@acme.test>a@x.com"),
    ],
)
def test_one_key(text: str, key: str) -> None:
    assert key_of(text) == key


@pytest.mark.parametrize("text", ["a＠x.com", "a​@x.com", "‮a@x.com", "﻿a@x.com", "a@x", ""])
def test_no_key_for_what_is_no_address(text: str) -> None:
    with pytest.raises(BadEntry):
        key_of(text)
