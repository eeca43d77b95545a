"""A private PostgreSQL with durable commits, and a private Redis, for the length of a row."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import redis

from benchmarks.sinks import Missing

POSTGRES = (
    "-c listen_addresses= -c fsync=on -c synchronous_commit=on -c shared_buffers=512MB "
    "-c max_wal_size=4GB -c min_wal_size=1GB -c jit=off -c max_connections=100"
)

USED = (
    "CREATE TABLE used (body text)",
    "INSERT INTO used SELECT repeat('x', 1900) FROM generate_series(1, 250000)",
    "DROP TABLE used",
    "CHECKPOINT",
)
"""Half a gigabyte through buffers and log: a server that has run for a while gets no memory from the kernel
page by page and fills no new log files with zeros (about 7 % of its CPU time in a run)."""


class Server(NamedTuple):
    """Its URL and the process whose tree is measured."""

    url: str
    pid: int


def _programs() -> Path:
    found = shutil.which("initdb")
    if found:
        return Path(found).resolve().parent
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: p.parts[-3])
    if not folders:
        raise Missing("PostgreSQL (Debian: postgresql)")
    return folders[-1].parent


def _user() -> str | None:
    """PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in ("postgres", "nobody") if name in known)


@contextmanager
def postgres() -> Iterator[Server]:
    """A server that was used before, with an empty database ``mailweir``. Raises :class:`Missing`."""
    programs, user = _programs(), _user()
    home = Path(tempfile.mkdtemp(prefix="mw-bench-pg-"))
    home.chmod(0o755)
    if user is not None:
        shutil.chown(home, user)
    data = home / "data"

    def run(program: str, *arguments: str) -> None:
        subprocess.run(
            [str(programs / program), *arguments],
            user=user, cwd=home, check=True, stdout=subprocess.DEVNULL, timeout=120,
        )  # fmt: skip

    try:
        run("initdb", "-D", str(data), "-U", "mailweir", "-A", "trust", "-E", "UTF8", "--locale=C")
        options = f"{POSTGRES} -c unix_socket_directories={home}"
        log = str(home / "log")
        run("pg_ctl", "-D", str(data), "-l", log, "-w", "-t", "60", "-o", options, "start")
        try:
            run("createdb", "-h", str(home), "-U", "mailweir", "mailweir")
            for statement in USED:
                run("psql", "-h", str(home), "-U", "mailweir", "-q", "-c", statement, "mailweir")
            pid = int((data / "postmaster.pid").read_text().split()[0])
            yield Server(f"postgresql+psycopg://mailweir@/mailweir?host={home}", pid)
        finally:
            run("pg_ctl", "-D", str(data), "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(home, ignore_errors=True)


@contextmanager
def redis_server(folder: Path) -> Iterator[Server]:
    """A peer's Redis: unix socket, append-only file every second, as the embedded stack's."""
    program = shutil.which("valkey-server") or shutil.which("redis-server")
    if program is None:
        raise Missing("redis-server or valkey-server")
    where = folder / "peer-redis"
    where.mkdir()
    path = where / "s"
    process = subprocess.Popen(
        [program, "--port", "0", "--unixsocket", str(path), "--dir", str(where), "--save", "",
         "--appendonly", "yes", "--appendfsync", "everysec", "--maxmemory-policy", "noeviction"],
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        with redis.Redis(unix_socket_path=str(path)) as client:
            end = time.monotonic() + 10
            while True:
                try:
                    client.ping()
                    break
                except redis.RedisError:
                    if time.monotonic() > end:
                        raise
                    time.sleep(0.02)
        yield Server(str(path), process.pid)
    finally:
        process.terminate()
        process.wait(20)
