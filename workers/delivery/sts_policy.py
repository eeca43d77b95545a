"""MTA-STS policies and the record that announces them, read and matched (RFC 8461): pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

MAX_AGE = 31_557_600.0  # seconds; a longer max_age counts as this one (RFC 8461 3.2)

_RECORD = re.compile(r"v=STSv1[ \t]*;[ \t]*(.*)")
_ID = re.compile(r"[A-Za-z0-9]{1,32}")
_MX = re.compile(r"(?:\*\.)?(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9])?\.)*[a-z0-9][a-z0-9-]{0,62}")


class BadPolicy(ValueError):
    """What was fetched is no MTA-STS policy."""


@dataclass(frozen=True, slots=True)
class StsPolicy:
    """A domain's wish: ``mode`` is enforce, testing or none; ``max_age`` in seconds."""

    mode: str
    mx: tuple[str, ...]  # host patterns, lower case
    max_age: float

    def allows(self, host: str) -> bool:
        """A pattern names this MX host; ``*.`` stands for exactly one label (RFC 8461 4.1)."""
        name = host.lower().rstrip(".")
        parent = name.partition(".")[2]
        return any(
            pattern == name or (pattern.startswith("*.") and pattern[2:] == parent)
            for pattern in self.mx
        )


def policy_id(records: Sequence[str]) -> str | None:
    """The id of the one valid record among a domain's ``_mta-sts`` TXT records. None: no policy, also
    where two claim to be it (RFC 8461 3.1)."""
    ours = [found for record in records if (found := _RECORD.fullmatch(record.strip()))]
    if len(ours) != 1:
        return None
    ids = [
        value.strip()
        for name, _, value in (field.partition("=") for field in ours[0].group(1).split(";"))
        if name.strip() == "id"
    ]
    return ids[0] if len(ids) == 1 and _ID.fullmatch(ids[0]) else None


def parse(text: str) -> StsPolicy:
    """A policy file (RFC 8461 3.2). Unknown keys are ignored, of doubled keys but ``mx`` the first
    counts. Raises :class:`BadPolicy`."""
    fields: dict[str, str] = {}
    hosts: list[str] = []
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        key, value = key.strip(), value.strip()
        if not colon:
            if line.strip():
                raise BadPolicy("a line without a colon")
        elif key == "mx":
            hosts.append(value.lower().rstrip("."))
        else:
            fields.setdefault(key, value)
    if fields.get("version") != "STSv1":
        raise BadPolicy("no version: STSv1")
    mode = fields.get("mode", "")
    if mode not in ("enforce", "testing", "none"):
        raise BadPolicy("mode is not enforce, testing or none")
    age = fields.get("max_age", "")
    if not (age.isascii() and age.isdigit() and len(age) <= 10):
        raise BadPolicy("max_age is no number of seconds")
    if mode != "none" and not hosts:
        raise BadPolicy("no mx")
    if not all(_MX.fullmatch(host) for host in hosts):
        raise BadPolicy("an mx that is no host name")
    return StsPolicy(mode, tuple(hosts), min(float(age), MAX_AGE))
