"""The table of states and moves, as a table: laws, not examples."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailweir.contracts.lifecycle import (
    CANCELLABLE,
    FINAL,
    IN_FLIGHT,
    MOVES,
    WAITING,
    IllegalMove,
    State,
    check_move,
    may_move,
    render_mermaid,
)

STATES = st.sampled_from(list(State))


def test_every_state_has_its_row() -> None:
    assert set(MOVES) == set(State)


def test_groups_are_apart_and_leave_only_the_dead_letter() -> None:
    assert not WAITING & IN_FLIGHT
    assert not WAITING & FINAL
    assert not IN_FLIGHT & FINAL
    assert set(State) - WAITING - IN_FLIGHT - FINAL == {State.DEAD_LETTER}


@given(STATES, STATES)
def test_check_and_ask_agree(old: State, new: State) -> None:
    if may_move(old, new):
        check_move(old, new)
    else:
        with pytest.raises(IllegalMove, match=f"{old} job cannot become {new}"):
            check_move(old, new)


def test_an_end_is_an_end_but_for_a_late_dsn() -> None:
    assert {(o, n) for o in FINAL for n in MOVES[o]} == {(State.SENT, State.BOUNCED)}


def test_every_state_is_reached_and_leads_to_an_end() -> None:
    reached = {State.ACCEPTED}
    while True:
        more = reached | {new for old in reached for new in MOVES[old]}
        if more == reached:
            break
        reached = more
    assert reached == set(State)
    for state in State:
        seen, todo = {state}, [state]
        while todo:
            for new in MOVES[todo.pop()] - seen:
                seen.add(new)
                todo.append(new)
        assert seen & FINAL, f"{state} never ends"


def test_only_a_worker_makes_sent_and_only_a_router_dispatches() -> None:
    assert {old for old in State if State.SENDING in MOVES[old]} == {State.DISPATCHED}
    assert {old for old in State if State.DISPATCHED in MOVES[old]} == WAITING
    assert {old for old in State if State.SENT in MOVES[old]} == {State.SENDING, State.UNCERTAIN}


def test_what_can_be_cancelled_may_become_cancelled() -> None:
    assert all(may_move(state, State.CANCELLED) for state in CANCELLABLE)
    assert not may_move(State.SENDING, State.CANCELLED)


def test_the_drawing_names_every_state_and_move_once() -> None:
    lines = render_mermaid().splitlines()
    assert lines[0] == "stateDiagram-v2"
    arrows = [line.strip() for line in lines if "-->" in line]
    assert len(arrows) == len(set(arrows))
    moves = {f"{old} --> {new}" for old in MOVES for new in MOVES[old]}
    ends = {f"{state} --> [*]" for state in FINAL}
    assert set(arrows) == moves | ends | {"[*] --> accepted"}
