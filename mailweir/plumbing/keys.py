"""Every Redis key and every queue name, in one file.

All keys of ours begin with ``mw:``; Celery's own keys carry the prefix of :data:`CELERY_PREFIX`. No key
holds an address: recipients appear as keyed hashes only.
"""

from __future__ import annotations

from collections.abc import Iterable

from mailweir.contracts.job import Bucket
from mailweir.contracts.route import THROTTLED
from mailweir.contracts.route import queue_name as queue_name  # part of this vocabulary

# --- Celery -----------------------------------------------------------------------------------
CELERY_PREFIX = "mwq:"
INGRESS = "ingress"

BASE_QUEUES: tuple[str, ...] = (
    Bucket.TRANSACTIONAL,
    Bucket.MARKETING,
    Bucket.MARKETING + THROTTLED,
    Bucket.BULK,
    Bucket.BULK + THROTTLED,
)


def bucket_queues(regions: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Every bucket queue, without regions or once per region."""
    if not regions:
        return BASE_QUEUES
    return tuple(f"{q}@{r}" for r in regions for q in BASE_QUEUES)


def has_transactional(queues: Iterable[str]) -> bool:
    """Whether transactional mail is among what these queues carry."""
    return any(queue.startswith(Bucket.TRANSACTIONAL) for queue in queues)


def queue_bucket(queue: str) -> Bucket:
    """The bucket a queue serves."""
    return Bucket(queue.partition("@")[0].removesuffix(THROTTLED))


# --- state ------------------------------------------------------------------------------------
EPOCH = "mw:epoch"  # string: id of this Redis' life; another or none means state was lost
SNAPSHOT = "mw:snapshot"  # string: encoded routing snapshot in force
SNAPSHOT_VERSION = "mw:snapshot:version"  # string: its version, cheap to poll
POLICY_VERSION = "mw:policy:version"  # string: version of the policy in force
RINGS = "mw:rings"  # channel: a door committed transactional jobs
EVENTS = "mw:events"  # stream: ids of attempts/feedback just committed
SUPPRESSION = "mw:suppression"  # hash: canonical key -> compact entry (keyed hash of the address)
SUPPRESSION_READY = "mw:suppression:ready"  # string: epoch the projection was built for
SUPPRESSION_BUILDING = "mw:suppression:building"  # string: who builds it anew; expires
SUPPRESSION_DRAFT = "mw:suppression:draft"  # hash: what has been built so far
SUPPRESSION_CHANGES = "mw:suppression:changes"  # list: field, value, ... written meanwhile
COUNTERS_READY = "mw:counters:ready"  # string: epoch the hour/day counters were recounted for
RECIPIENTS_READY = "mw:rcpt:ready"  # string: epoch the per-recipient limits were recounted for
BOUNCE_GUARD = "mw:guard:{provider}"
WORKERS = "mw:workers"  # hash: worker name -> JSON heartbeat (queues, sources, real time)
FLEET = "mw:fleet:{queue}"  # hash: slot of real time -> jobs finished
FLEET_SLOT = 2.0  # real seconds of such a slot: a fleet that slows down is seen in so many
SENT_BACK = (
    "mw:back:{queue}:{slot}"  # hash, expires: lane -> jobs a throttle sent back in that slot
)


def path_state(source: str, provider: str) -> str:
    """Hash: how one path does right now; written by workers/throttle/book.lua only.

    Fields (absent: nothing known, closed, full rate): ``phase`` closed | open | back, ``until`` (open:
    policy time of the next probe; half-open after it), ``back`` (time of the good probe: 180 s of 6
    jobs a minute, then 10 % to 100 % in 900 s), ``rate`` (live rate, jobs/s; absent: the policy's),
    ``hold`` (policy time before which the remote wants nothing), ``day``/``day_n`` and ``hour``/
    ``hour_n`` (slot number, attempts in it), ``shut`` (policy time of the last opening or wish to be
    left alone). The rest is the scripts' own.
    """
    return f"mw:path:{source}|{provider}"


def probe_lease(source: str, provider: str) -> str:
    """String with expiry: who probes a half-open path; one at a time."""
    return f"{PROBE_PREFIX}{source}|{provider}"


TOKENS_SINCE = (
    "mw:tb:since"  # hash: epoch, since (policy time it was first seen: buckets empty then)
)


def in_data(chunk_id: int) -> str:
    """Hash: job id -> policy time at which its body was about to go out; gone when the chunk is done."""
    return f"mw:indata:{chunk_id}"


PATH_PREFIX = "mw:path:"
PROBE_PREFIX = "mw:probe:"
PATH_INDEX = "mw:paths"  # set of "source|provider" seen, so that the router reads them in one go


def path_layer(path: str) -> str:
    """Name of the throttle layer that meters a path (``source|provider``); its bucket is
    ``bucket_tokens`` of it."""
    return f"path:{path}"


def bucket_tokens(layer: str) -> str:
    """Hash: one token bucket (tokens, updated) of a throttle layer."""
    return f"mw:tb:{layer}"


def counted(layer: str, slot: int) -> str:
    """String: count of a limit per hour or day; expires with its slot."""
    return f"mw:n:{layer}:{slot}"


def connection_leases(source: str, site: str) -> str:
    """Sorted set: held connections of a source to a site, by lease end."""
    return f"mw:conn:{source}|{site}"


def connection_wanting(source: str, site: str) -> str:
    """Sorted set: workers that wait for their part of these, by the time until which that counts."""
    return f"{connection_leases(source, site)}:wanting"


def busiest(source: str, day: int) -> str:
    """Sorted set: domains by mails a source carried there on a (real) day; what is prewarmed."""
    return f"mw:busy:{source}:{day}"


CAMPAIGNS_SLOWED = "mw:campaigns:slowed"  # hash: "tenant|campaign" -> jobs a policy second


def campaign(name: str) -> str:
    """Hash: bounces of a tenant's campaign; written by workers/campaigns.lua only."""
    return f"mw:campaign:{name}"


def recipient_limit(keyed_hash: str) -> str:
    """String: reserved times of jobs to one recipient (keyed hash); written by router/recipients.lua."""
    return f"mw:to:{keyed_hash}"


def leader(role: str) -> str:
    """String with expiry: who leads a role that only one process may play."""
    return f"mw:leader:{role}"


def replay_guard(scope: str, token: str) -> str:
    """String with expiry: a webhook id already seen."""
    return f"mw:seen:{scope}:{token}"


INGRESS_CLAIMED = (
    "mw:ingress:claimed:{consumer}"  # list: messages a consumer has claimed, not yet committed
)
INGRESS_CONSUMERS = (
    "mw:ingress:consumers"  # hash: consumer -> lease end (real seconds, Redis' clock)
)

MX_ASKED = "mw:mx:asked"  # set: domains a router needs the MX of


def mx_notes(span: int) -> str:
    """Hash with expiry: domain -> JSON of provider, site and geo zone of its MX (mailweir.plumbing.mx)."""
    return f"mw:mx:{span}"
