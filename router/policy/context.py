"""What a decision may depend on, and what it leaves behind: all of it values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from mailweir.contracts.snapshot import FastState, Snapshot
from router.policy.reach import NOBODY, Unreached
from router.policy.shares import Turn

if TYPE_CHECKING:
    from router.policy.compiled import CompiledPolicy

_NOTHING: Mapping[str, str] = {}
_NO_IDS: Mapping[int, str] = {}


class RecipientRoom(NamedTuple):
    """How a recipient who is over its limit stands (S21); recipients with room are not listed."""

    room_at: float  # policy seconds when the limit has room again
    held: int  # jobs already held for this recipient


_NO_ROOMS: Mapping[int, RecipientRoom] = {}
_NO_TIMES: Mapping[str, float] = {}


class Context(msgspec.Struct, frozen=True):
    """Everything the decisions of one batch may depend on. Frozen: the same context and state give
    the same decisions, today and in a replay."""

    policy: CompiledPolicy
    snapshot: Snapshot
    fast: FastState
    now: float  # policy seconds
    suppressed: Mapping[int, str] = _NO_IDS  # job id -> reason
    providers: Mapping[str, str] = _NOTHING  # domain -> provider, where the MX is known
    zones: Mapping[str, str] = _NOTHING  # domain -> geo zone of its MX ("europe/de")
    unplaced: frozenset[str] = frozenset()  # domains whose zone is being found out
    recipients: Mapping[int, RecipientRoom] = _NO_ROOMS  # jobs whose recipient is over its limit
    unreached: Unreached = NOBODY  # queue -> sources none of its live workers reaches
    paused: Mapping[str, float] = _NO_TIMES  # operator: "pool:x", "source:x" ... -> until
    busy_domains: frozenset[str] = frozenset()  # high-volume domains beside the known providers


class Ramp(msgspec.Struct, frozen=True):
    """Failover load of a backup path: 10 % of its rate in the first minute, 10 % more each minute."""

    began: float
    minute: int  # of the ramp
    used: int  # jobs in that minute
    last: float  # last job given to it


class RouterState(msgspec.Struct, frozen=True):
    """What a decision hands to the next one. Encodable (msgpack, JSON)."""

    fast_version: int = -1
    turns: dict[str, Turn] = msgspec.field(default_factory=dict)  # weighted shares over pools
    credits: dict[str, dict[str, float]] = msgspec.field(default_factory=dict)  # inside pools
    used: dict[str, int] = msgspec.field(default_factory=dict)  # jobs per path since that version
    ramps: dict[str, Ramp] = msgspec.field(default_factory=dict)
