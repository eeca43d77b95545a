"""What a seed-inbox test says: the share of seed mails found in the inbox (S56). Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

FOLDERS = {
    "inbox": 1.0,
    "primary": 1.0,
    "promotions": 1.0,  # a tab of the inbox
    "tabs": 1.0,
    "spam": 0.0,
    "junk": 0.0,
    "bulk": 0.0,
    "missing": 0.0,
    "none": 0.0,
}


class BadResults(ValueError):
    """The results are not understood; the text names line or entry."""


class Seed(msgspec.Struct, frozen=True):
    """Where one seed mail was found."""

    source: str
    provider: str
    folder: str


def checked(rows: Iterable[Any]) -> list[Seed]:
    """Rows with source, provider and folder. Raises :class:`BadResults`."""
    found = []
    for number, row in enumerate(rows, 1):
        try:
            seed = msgspec.convert(row, Seed)
        except msgspec.ValidationError as error:
            raise BadResults(f"entry {number}: {error}") from None
        folder = seed.folder.strip().lower()
        if folder not in FOLDERS:
            raise BadResults(
                f"entry {number}: folder {seed.folder!r} is none of {', '.join(FOLDERS)}"
            )
        if not seed.source or "|" in seed.source + seed.provider or not seed.provider:
            raise BadResults(f"entry {number}: source and provider must be names")
        found.append(Seed(seed.source, seed.provider.lower(), folder))
    if not found:
        raise BadResults("no entries")
    return found


def shares(seeds: Iterable[Seed]) -> dict[tuple[str, str], float]:
    """Share in the inbox per source and provider."""
    sums: dict[tuple[str, str], list[float]] = {}
    for seed in seeds:
        sums.setdefault((seed.source, seed.provider), []).append(FOLDERS[seed.folder])
    return {place: sum(values) / len(values) for place, values in sums.items()}
