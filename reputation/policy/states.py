"""The states of a path and the moves between them, as one table; docs/reputation.md is drawn from it.

``warm`` is the active state: full share, no cap.
"""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """How a path stands; the words of the routing snapshot."""

    COLD = "cold"  # a new source, or one idle for weeks: the first day's cap
    WARMING = "warming"  # its daily cap grows
    WARM = "warm"  # active
    SLOWED = "slowed"  # score below 0.7, or a CUSUM alarm: less of the traffic, throttled queues
    SUSPENDED = "suspended"  # out of rotation until a time
    PROBATION = "probation"  # in rotation with minimal volume (S52)
    RECOVERING = "recovering"  # 10 % of its traffic after 4 h clean (S52)
    PAUSED = "paused"  # stopped by an operator


_S = State
MOVES: dict[State, dict[State, str]] = {
    _S.COLD: {
        _S.WARMING: "first job",
        _S.SUSPENDED: "S52, blocklisted",
        _S.PAUSED: "operator",
    },
    _S.WARMING: {
        _S.WARM: "cap above target",
        _S.COLD: "30 idle days",
        _S.SLOWED: "score below 0.7",
        _S.SUSPENDED: "S52, score below 0.4, blocklisted",
        _S.PAUSED: "operator",
    },
    _S.WARM: {
        _S.SLOWED: "score below 0.7, CUSUM above 5",
        _S.SUSPENDED: "S52, score below 0.4, CUSUM above 8, blocklisted",
        _S.COLD: "30 idle days (a source that was warmed)",
        _S.WARMING: "its cap was halved below the target",
        _S.PAUSED: "operator",
    },
    _S.SLOWED: {
        _S.WARM: "score above 0.75 for 30 min",
        _S.WARMING: "the same, while its cap still grows",
        _S.SUSPENDED: "S52, score below 0.4, CUSUM above 8, blocklisted",
        _S.COLD: "30 idle days",
        _S.PAUSED: "operator",
    },
    _S.SUSPENDED: {_S.PROBATION: "its time is over", _S.PAUSED: "operator"},
    _S.PROBATION: {
        _S.RECOVERING: "4 h clean",
        _S.SUSPENDED: "not clean: longer each time",
        _S.PAUSED: "operator",
    },
    _S.RECOVERING: {
        _S.WARM: "24 h since probation began, soft bounces below 1 %",
        _S.WARMING: "the same, while its cap still grows",
        _S.SUSPENDED: "S52",
        _S.PAUSED: "operator",
    },
    _S.PAUSED: {state: "operator resumes" for state in _S if state is not _S.PAUSED},
}


class IllegalMove(ValueError):
    """The table does not allow this move; a defect of ours."""


def check_move(old: State, new: State) -> None:
    """Raise :class:`IllegalMove` unless the table allows ``old -> new``."""
    if new is not old and new not in MOVES[old]:
        raise IllegalMove(f"a {old} path cannot become {new}")


def mermaid() -> str:
    """The table as a mermaid state diagram (pauses left out: every state can be paused and resumed)."""
    lines = ["stateDiagram-v2", "    [*] --> cold: warm: false", "    [*] --> warm: warm: true"]
    for old, moves in MOVES.items():
        if old is State.PAUSED:
            continue
        lines += [
            f"    {old} --> {new}: {why}" for new, why in moves.items() if new is not State.PAUSED
        ]
    return "\n".join(lines)
