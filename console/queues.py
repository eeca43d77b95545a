"""Which bucket queues there are now: by the policy in force, and those an earlier one left chunks in."""

from __future__ import annotations

from mailweir.contracts.policy import Policy
from mailweir.plumbing import keys, policies
from mailweir.plumbing.database import Database
from mailweir.plumbing.settings import Settings
from mailweir.spool.store import Spool
from router.policy.compiled import in_region


def queues_now(settings: Settings, database: Database, spool: Spool) -> tuple[str, ...]:
    """Every bucket queue a router may fill or a worker may still have to empty, in a fixed order.

    Raises :class:`mailweir.plumbing.database.DatabaseUnavailable`."""
    try:
        policy = policies.current(database)
    except policies.NoPolicy:
        policy = Policy()
    regions = in_region(policy, settings.region).regions
    own = () if settings.region is None else (settings.region,)
    named = keys.bucket_queues(tuple(dict.fromkeys((*own, *regions))))
    return tuple(dict.fromkeys((*named, *sorted(spool.window().queues))))
