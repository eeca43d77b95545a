"""How a conversation must be encrypted (S33): the strictest of what policy, provider and rule say."""

from __future__ import annotations

from mailweir.contracts.policy import Policy, Provider, Source
from mailweir.contracts.route import Orders

ORDER = ("none", "opportunistic", "required", "verified")


def tls_mode(policy: Policy, source: Source, provider: Provider, orders: Orders) -> str:
    """A rule's own wish, else the source's, else the strictest default.

    Relays carry credentials: encrypted unless the source says otherwise. ``none`` of a source or rule
    loses against ``tls.default: required``, which refuses plain text everywhere.
    """
    wish = orders.tls or (source.tls.mode if source.tls else None)
    if wish is None:
        if source.kind != "mx":
            return _strictest("required", policy.tls_default)
        return _strictest(provider.tls, policy.tls_default)
    if ORDER.index(policy.tls_default) >= ORDER.index("required"):
        return _strictest(wish, policy.tls_default)
    return wish


def _strictest(*modes: str) -> str:
    return max(modes, key=ORDER.index)
