"""The window follows the fleet, between its bounds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mailweir.plumbing.keys import FLEET_SLOT
from router.window import PROBE, PROBE_EVERY, Mix, finished_lately


def test_a_slot_fades_out_as_the_next_fills() -> None:
    start = 50 * FLEET_SLOT
    assert finished_lately({48: 80, 49: 100}, start, 2 * FLEET_SLOT) == 180
    assert finished_lately({48: 80, 49: 100, 50: 30}, start + FLEET_SLOT / 4, 2 * FLEET_SLOT) == 190
    assert finished_lately({48: 80, 49: 100}, start + 2 * FLEET_SLOT, 2 * FLEET_SLOT) == 0


@given(
    st.floats(1e3, 1e6),
    st.floats(0.1, 60),
    st.dictionaries(st.integers(450, 500_010), st.integers(0, 10_000)),
)
def test_never_more_than_the_slots_it_touches(
    now: float, seconds: float, slots: dict[int, int]
) -> None:
    first, last = (now - seconds) // FLEET_SLOT, now // FLEET_SLOT
    touched = sum(jobs for slot, jobs in slots.items() if first <= slot <= last)
    assert 0 <= finished_lately(slots, now, seconds) <= touched * (1 + 1e-9)


@given(st.floats(1e3, 1e6), st.floats(0.1, 60), st.integers(1, 1000))
def test_a_steady_fleet_is_seen_as_what_it_does(now: float, seconds: float, each: int) -> None:
    """But for the slot that is still filling, here counted as full."""
    slots = dict.fromkeys(range(int(now / FLEET_SLOT) - 60, int(now / FLEET_SLOT) + 1), each)
    got = finished_lately(slots, now, seconds)
    steady = each * seconds / FLEET_SLOT
    assert steady - each * 1e-6 <= got <= steady + each * (1 + 1e-6)


def test_a_batch_follows_the_mix_of_the_queues_it_goes_to() -> None:
    mix = Mix()
    assert mix.fits({"bulk": 50, "slow": 100}, {}, 300, 1.0) == 150  # nothing is known yet
    mix.learn({"bulk": 90, "slow": 10})
    assert mix.fits({"bulk": 900, "slow": 5}, {}, 300, 1.0) == 50
    assert mix.fits({"bulk": 900, "slow": 900}, {}, 300, 1.0) == 300
    assert (
        mix.fits({"bulk": 90, "new": 50}, {}, 300, 1.0) == 100
    )  # a queue that is gone binds nobody


def test_a_large_window_is_not_refilled_by_the_spoonful() -> None:
    mix = Mix()
    mix.learn({"bulk": 100})
    sizes = {"bulk": 1000, "slow": 300}
    assert mix.fits({"bulk": 50, "slow": 300}, sizes, 300, 1.0) == 50
    assert mix.fits({"bulk": 49, "slow": 300}, sizes, 300, 1.1) == 0
    assert mix.fits({"bulk": 49, "slow": 300}, {}, 300, 1.2) == 49  # transactional
    assert mix.fits({"bulk": 15}, {"bulk": 300}, 300, 1.3) == 15  # a small window
    # the mix may have changed: a few are looked at now and then
    assert mix.fits({"bulk": 0, "slow": 300}, sizes, 300, 1.4 + PROBE_EVERY) == PROBE
    assert mix.fits({"bulk": 0, "slow": 300}, sizes, 300, 1.5 + PROBE_EVERY) == 0
    assert mix.fits({"bulk": 0, "slow": 3}, sizes, 300, 2.0 + 2 * PROBE_EVERY) == 3
    assert mix.fits({"bulk": 0, "slow": 300}, {}, 300, 3.0 + 3 * PROBE_EVERY) == PROBE
