"""Which jobs travel together."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from mailweir.contracts.route import Orders, Routed
from router.policy.chunks import Member, parts
from tests.unit.router.build import job

MOST, BYTES = 4, 100


def member(
    number: int, size: int, domain: str = "a.example", priority: int | None = None
) -> Member:
    one = job(number, "bulk", f"u{number}@{domain}", lane="~00", size=size)
    return one, Routed("bulk", "news", "s1", "other", Orders(priority=priority), 1.0)


@given(st.lists(st.tuples(st.integers(0, 250), st.sampled_from("abc")), max_size=40))
def test_nobody_is_lost_and_no_chunk_is_too_large(jobs: list[tuple[int, str]]) -> None:
    members = [member(n, size, f"{name}.example") for n, (size, name) in enumerate(jobs)]
    made = list(parts(list(members), MOST, BYTES))
    assert sorted(m[0].id for part in made for m in part) == list(range(len(jobs)))
    for part in made:
        assert 1 <= len(part) <= MOST
        assert len(part) == 1 or sum(m[0].size for m in part) <= BYTES
    for one, other in itertools.pairwise(made):
        full = len(one) == MOST or sum(m[0].size for m in one) + other[0][0].size > BYTES
        assert full, "no chunk is smaller than it must be"


def test_the_urgent_first_and_domains_side_by_side() -> None:
    members = [
        member(1, 1, "b.example"),
        member(2, 1),
        member(3, 1, "b.example"),
        member(4, 1, priority=1),
    ]
    [part] = parts(members, MOST, BYTES)
    assert [m[0].id for m in part] == [4, 2, 1, 3]


def test_a_larger_mail_is_a_chunk_of_its_own() -> None:
    made = parts([member(1, 10), member(2, 500), member(3, 10)], MOST, BYTES)
    assert [[m[0].id for m in part] for part in made] == [[1], [2], [3]]
