"""The four providers everybody gets, a relay, and the domains each serves.

Figures are small on purpose (a demo must meet limits within a minute); their proportions follow what
the real ones publish: Gmail's tolerant size and strict rate, Outlook's smaller one, Yahoo's twenty
messages a connection, a generic host that greylists.
"""

from __future__ import annotations

from simulator.behaviour import Behaviour

PROFILES: dict[str, Behaviour] = {
    "gmail": Behaviour(connections=50, per_connection=0, unknown=0.01, full=0.002),
    "outlook": Behaviour(connections=50, per_connection=0, unknown=0.01, full=0.002),
    "yahoo": Behaviour(connections=50, per_connection=20, unknown=0.01, full=0.002),
    "generic": Behaviour(connections=100, unknown=0.005, greylist=20.0),
    # a smarthost: takes mail for everybody, the way out when a provider's own hosts fail
    "relay": Behaviour(connections=200),
}

DOMAINS: dict[str, tuple[str, ...]] = {
    "gmail": ("gmail.com", "googlemail.com"),
    "outlook": ("outlook.com", "hotmail.com", "live.com"),
    "yahoo": ("yahoo.com", "aol.com"),
    "generic": ("*",),
    "relay": ("relay.example",),
}

HOSTS: dict[str, int] = {"gmail": 2, "outlook": 2, "yahoo": 2, "generic": 1}
"""MX hosts a provider shows, so that one can fail while another delivers (S80)."""
