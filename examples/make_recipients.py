"""Writes a CSV of made-up recipients: 35 % Gmail, 20 % Outlook, 15 % Yahoo, the rest small domains.

``python examples/make_recipients.py 5000 > recipients.csv``
"""

from __future__ import annotations

import csv
import random
import sys

FIRST = ("Ada", "Béla", "Chloé", "Dmitri", "Emre", "Fatima", "Grace", "Håkon", "Inés", "Jürgen")
CITIES = ("Aachen", "Bergen", "Córdoba", "Dublin", "Évora", "Fürth", "Gdańsk", "Huesca")
SHARES = (
    (0.20, "gmail.com"),
    (0.15, "googlemail.com"),
    (0.12, "outlook.com"),
    (0.08, "hotmail.com"),
    (0.10, "yahoo.com"),
    (0.05, "aol.com"),
)


def domain(chance: random.Random) -> str:
    """A recipient domain by the shares above."""
    value = chance.random()
    for share, name in SHARES:
        if value < share:
            return name
        value -= share
    return f"garden{chance.randrange(40)}.example"


def write(count: int, seed: int = 1) -> None:
    """Write ``count`` rows to standard output; the same seed gives the same rows."""
    chance = random.Random(seed)
    out = csv.writer(sys.stdout)
    out.writerow(("email", "first_name", "city", "code"))
    for number in range(count):
        name = chance.choice(FIRST)
        out.writerow(
            (
                f"user{number}@{domain(chance)}",
                name,
                chance.choice(CITIES),
                f"AUTUMN-{chance.randrange(10**6):06d}",
            )
        )


if __name__ == "__main__":
    write(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
