"""Signals from outside the mail stream, kept for the manager: seed-inbox placement, blocklistings."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

import msgspec
from sqlalchemy import select

from mailweir.plumbing.database import Database
from mailweir.plumbing.events import drop, put
from mailweir.spool.schema import counters
from reputation.history import FAULTS, LISTED, PLACEMENT
from reputation.policy.placement import BadResults, Seed, checked, shares

__all__ = [
    "BadResults",
    "keep_faults",
    "keep_listings",
    "keep_placement",
    "placements",
    "read_results",
]


def read_results(text: str) -> list[Seed]:
    """Results as JSON (a list of objects, or ``{"results": [...]}``) or CSV with a header.

    Raises :class:`reputation.policy.placement.BadResults`.
    """
    stripped = text.lstrip("﻿ \r\n\t")
    if stripped.startswith(("[", "{")):
        try:
            data = msgspec.json.decode(stripped)
        except msgspec.DecodeError as error:
            raise BadResults(str(error)) from None
        if isinstance(data, dict):
            data = data.get("results")
        if not isinstance(data, list):
            raise BadResults('expected a list, or an object with "results"')
        return checked(data)
    return checked(csv.DictReader(io.StringIO(stripped)))


def keep_placement(
    database: Database, results: Sequence[Seed], now: float
) -> dict[tuple[str, str], float]:
    """Store the newest test of each source and provider; the shares found."""
    found = shares(results)
    with database.write() as conn:
        for (source, provider), share in found.items():
            key = f"{PLACEMENT}{source}|{provider}"
            put(conn, counters, "key", key, body=repr(share), updated_at=now)
    return found


def placements(database: Database) -> dict[tuple[str, str], tuple[float, float]]:
    """(source, provider) -> the newest test's share in the inbox, and when its results came, policy time."""
    query = select(counters.c.key, counters.c.body, counters.c.updated_at)
    with database.read() as conn:
        rows = conn.execute(query.where(counters.c.key.startswith(PLACEMENT))).all()
    found: dict[tuple[str, str], tuple[float, float]] = {}
    for key, body, at in rows:
        source, _, provider = key.removeprefix(PLACEMENT).partition("|")
        found[(source, provider)] = (float(body), float(at))
    return found


def keep_listings(
    database: Database, listed: dict[str, str], known: Sequence[str], now: float
) -> None:
    """Store which sources are on a blocklist (source -> its name); the other ``known`` ones are not."""
    with database.write() as conn:
        drop(conn, counters, "key", [f"{LISTED}{name}" for name in known if name not in listed])
        for source, zone in listed.items():
            body = msgspec.json.encode(zone).decode()
            put(conn, counters, "key", f"{LISTED}{source}", body=body, updated_at=now)


def keep_faults(
    database: Database, faults: dict[str, tuple[str, ...]], known: Sequence[str], now: float
) -> None:
    """Store which checks of their own names and certificates sources fail; the other ``known`` ones none."""
    with database.write() as conn:
        drop(conn, counters, "key", [f"{FAULTS}{name}" for name in known if name not in faults])
        for source, checks in faults.items():
            body = msgspec.json.encode(checks).decode()
            put(conn, counters, "key", f"{FAULTS}{source}", body=body, updated_at=now)
