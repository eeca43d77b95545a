"""A private RabbitMQ for the suite, on free ports, with its management API."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from kombu import Connection

from simulator.ports import free_port
from tests.services.needs import missing

# the wrapper in /usr/sbin switches user and drops the environment
_SERVERS = (
    "/usr/lib/rabbitmq/bin/rabbitmq-server",
    "/opt/homebrew/sbin/rabbitmq-server",
    "/usr/local/sbin/rabbitmq-server",
)
_PATIENCE = 100.0


class RabbitMQ(NamedTuple):
    """Where the private server listens."""

    url: str
    management: str
    group: int  # process group, to stop and continue all of it


@pytest.fixture(scope="session")
def rabbitmq() -> Iterator[RabbitMQ]:
    """The server; up in some ten seconds."""
    binary = next((path for path in _SERVERS if Path(path).exists()), None)
    if binary is None:
        missing("RabbitMQ", "apt-get install rabbitmq-server")
    home = Path(tempfile.mkdtemp(prefix="mw-rabbit-"))
    port, dist, management = free_port(), free_port(), free_port()
    (home / "plugins").write_text("[rabbitmq_management].\n")
    (home / "rabbitmq.conf").write_text(
        f"management.tcp.port = {management}\n"
        "management.tcp.ip = 127.0.0.1\n"
        "loopback_users.guest = true\n"
        "disk_free_limit.absolute = 50MB\n"
        "collect_statistics_interval = 1000\n"
    )
    log = (home / "out").open("wb")
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "RABBITMQ_NODENAME": f"mailweir{port}@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_DIST_PORT": str(dist),
        "RABBITMQ_MNESIA_BASE": str(home / "mnesia"),
        "RABBITMQ_LOG_BASE": str(home / "log"),
        "RABBITMQ_PID_FILE": str(home / "pid"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(home / "plugins"),
        "RABBITMQ_CONFIG_FILE": str(home / "rabbitmq.conf"),
        # one scheduler: an idle Erlang machine otherwise spins on every core
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 +sbwt none -kernel inet_dist_use_interface {127,0,0,1}",
        "ERL_EPMD_ADDRESS": "127.0.0.1",
    }
    process = subprocess.Popen(
        [binary], env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
    )
    url = f"amqp://guest:guest@127.0.0.1:{port}//"
    try:
        _wait(process, url, home)
        yield RabbitMQ(url, f"http://guest:guest@127.0.0.1:{management}", process.pid)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()
        log.close()
        shutil.rmtree(home, ignore_errors=True)


def _wait(process: subprocess.Popen[bytes], url: str, home: Path) -> None:
    end = time.monotonic() + _PATIENCE
    while True:
        if process.poll() is not None:
            pytest.fail(f"RabbitMQ ended: {(home / 'out').read_text(errors='replace')[-2000:]}")
        try:
            with Connection(url, connect_timeout=2) as connection:
                connection.connect()
                return
        except OSError:
            if time.monotonic() > end:
                pytest.fail(
                    f"RabbitMQ is not up after {_PATIENCE:g} s: "
                    f"{(home / 'out').read_text(errors='replace')[-2000:]}"
                )
            time.sleep(0.2)


@pytest.fixture(scope="session")
def rabbitmq_url(rabbitmq: RabbitMQ) -> str:
    """``amqp://`` URL of the private server."""
    return rabbitmq.url
