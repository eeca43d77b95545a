"""The projection is built in pages while others change the list; what it says is what SQL says."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
import redis

from mailweir.plumbing import keys
from mailweir.plumbing.database import Database
from mailweir.plumbing.install import derive, keyed_hash
from mailweir.plumbing.redis import begin_epoch
from suppression import projection as module
from suppression import store
from suppression.entries import Entry, Reason, Scope, encode
from suppression.guard import Ask, Guard
from suppression.projection import Projection
from tests.contract.suppression.rows import SECRET, sqlite

pytestmark = pytest.mark.needs("redis")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    yield from sqlite(tmp_path)


@pytest.fixture
def client(redis_clean: redis.Redis) -> redis.Redis:
    begin_epoch(redis_clean, "e1")
    return redis_clean


def entry(number: int) -> Entry:
    return Entry(f"u{number:06d}@example.com", Scope.GLOBAL, Reason.HARD_BOUNCE, 1.0)


def fill(database: Database, count: int) -> None:
    with database.write() as conn:
        store.add(conn, [entry(i) for i in range(0, count * 2, 2)])


def finish(building: Generator[int, None, int | None]) -> int | None:
    """The rest of a build; what it returned."""

    def rest() -> Generator[int, None, int | None]:
        return (yield from building)

    whole = rest()
    while True:
        try:
            next(whole)
        except StopIteration as done:
            count: int | None = done.value
            return count


def agrees(client: redis.Redis, database: Database) -> bool:
    """Whether the projection holds exactly what the table does."""
    key = derive(SECRET, "suppression")
    with database.read() as conn:
        wanted = {
            keyed_hash(key, e.key).encode(): encode([store.as_held(e)])
            for page in store.every(conn)
            for e in page
            if not e.pending
        }
    return bool(client.hgetall(keys.SUPPRESSION) == wanted)


def test_changes_between_pages_are_in_the_new_one(
    client: redis.Redis, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAGE", 20)
    fill(database, 200)
    p, chance = Projection(client, database, SECRET), random.Random(1)
    steps = 0
    for _ in p.build():
        steps += 1
        for _ in range(3):  # behind and before the page that is read next
            some = entry(chance.randrange(400))
            if chance.random() < 0.5:
                with p.adding([some.key]) as conn:
                    store.add(conn, [some])
            else:
                with p.removing([some.key]) as conn:
                    store.remove(conn, [some.key])
    assert steps >= 10
    assert agrees(client, database)
    assert p.ready()
    assert client.exists(keys.SUPPRESSION_BUILDING, keys.SUPPRESSION_DRAFT) == 0
    assert client.exists(keys.SUPPRESSION_CHANGES) == 0


def test_writers_go_on_while_it_is_built(
    client: redis.Redis, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAGE", 50)
    fill(database, 5000)
    stop, slowest, failed = threading.Event(), [0.0], []

    def write(seed: int) -> None:
        p, chance = Projection(client, database, SECRET), random.Random(seed)
        try:
            while not stop.is_set():
                some, begin = entry(chance.randrange(10_000)), time.monotonic()
                if chance.random() < 0.5:
                    with p.adding([some.key]) as conn:
                        store.add(conn, [some])
                else:
                    with p.removing([some.key]) as conn:
                        store.remove(conn, [some.key])
                slowest[0] = max(slowest[0], time.monotonic() - begin)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            assert Projection(client, database, SECRET).rebuild() is not None
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failed
    assert agrees(client, database)


def test_one_builds_at_a_time_and_a_broken_one_is_begun_again(
    client: redis.Redis, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAGE", 20)
    fill(database, 100)
    p = Projection(client, database, SECRET)
    first = p.build()
    next(first)
    assert p.rebuild() is None
    first.close()  # its process ends
    assert not p.ready()
    assert Guard(client, database, SECRET).check([Ask(entry(0).key, "t", "bulk")]) == [
        "hard_bounce"
    ]
    second = p.build()
    next(second)
    client.flushall()  # all is lost in the middle
    begin_epoch(client, "e2")
    assert finish(second) is None
    assert not p.ready()
    third = p.build()
    next(third)
    client.delete(keys.SUPPRESSION_BUILDING)  # it was slow, its claim ran out
    assert finish(third) is None
    assert p.rebuild() == 100
    assert agrees(client, database)


def test_a_change_redis_did_not_take_is_not_lost(
    client: redis.Redis, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAGE", 20)
    fill(database, 100)
    p = Projection(client, database, SECRET)
    building = p.build()
    next(building)
    away = redis.Redis(unix_socket_path="/nonexistent/redis.sock")
    with Projection(away, database, SECRET).adding([entry(1).key]) as conn:
        store.add(conn, [entry(1)])
    assert finish(building) is None
    assert not p.renew()
    assert p.rebuild() == 101
    assert p.renew()
    assert agrees(client, database)
