"""The geo zone of an address, from a MaxMind-format database the operator supplies (S19).

A zone is ``continent/country``, such as ``europe/de`` or ``america/us``; a policy names either part.
Both Americas are ``america``.
"""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Any

import maxminddb

CONTINENTS = {
    "AF": "africa",
    "AN": "antarctica",
    "AS": "asia",
    "EU": "europe",
    "NA": "america",
    "OC": "oceania",
    "SA": "america",
}


class GeoUnreadable(Exception):
    """The database is missing or no MaxMind database; the message names the file."""


class Geo:
    """An open database; thread-safe, close it."""

    def __init__(self, path: Path) -> None:
        try:
            self._reader = maxminddb.open_database(path)
        except (OSError, maxminddb.InvalidDatabaseError) as error:
            raise GeoUnreadable(f"geo.database {path} cannot be read: {error}") from error

    def zone(self, address: str) -> str:
        """Zone of an IP address; empty where the database knows none, or it is no address."""
        try:
            found: Any = self._reader.get(ipaddress.ip_address(address))
        except ValueError:  # no address, or IPv6 in a database of IPv4
            return ""
        if not isinstance(found, dict):
            return ""
        continent = CONTINENTS.get(str(_code(found, "continent", "code")), "")
        country = str(_code(found, "country", "iso_code")).lower()
        return "/".join(part for part in (continent, country) if part)

    def close(self) -> None:
        """Close the file."""
        self._reader.close()


def _code(record: dict[str, Any], part: str, key: str) -> Any:
    inner = record.get(part)
    return inner.get(key, "") if isinstance(inner, dict) else ""
