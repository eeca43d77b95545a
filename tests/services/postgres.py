"""A private PostgreSQL server for the suite, reached through a unix socket in a folder of its own."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from tests.services.needs import missing

_NUMBERS = itertools.count(1)


def _programs() -> Path | None:
    """The folder of initdb: on PATH, or where Debian puts the newest version."""
    found = shutil.which("initdb")
    if found:
        return Path(found).resolve().parent
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: p.parts[-3])
    return folders[-1].parent if folders else None


def _user() -> str | None:
    """PostgreSQL refuses to run as root; None where we are not root."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in ("postgres", "nobody") if name in known)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Path]:
    """The socket folder of a running server; superuser ``mailweir``, no password."""
    programs = _programs()
    if programs is None:
        missing("PostgreSQL", "install the package postgresql, or put initdb on PATH")
    user = _user()
    home = Path(tempfile.mkdtemp(prefix="mw-pg-"))  # short: a socket's path is limited
    if user is not None:
        shutil.chown(home, user)
    home.chmod(0o755)

    def run(*command: str) -> None:
        done = subprocess.run(
            command, user=user, cwd=home, capture_output=True, text=True, timeout=60
        )
        if done.returncode:
            log = home / "log"
            pytest.fail(f"{command[0]}: {done.stderr} {log.read_text() if log.exists() else ''}")

    data = str(home / "data")
    control = str(programs / "pg_ctl")
    try:
        run(
            str(programs / "initdb"), "-D", data, "-U", "mailweir", "-A", "trust", "-E", "UTF8",
            "--locale=C", "--no-sync",
        )  # fmt: skip
        options = (
            f"-c listen_addresses= -c unix_socket_directories={home} -c fsync=off "
            "-c max_connections=300 -c shared_buffers=64MB -c deadlock_timeout=200ms"
        )
        run(control, "-D", data, "-l", str(home / "log"), "-w", "-t", "30", "-o", options, "start")
        try:
            yield home
        finally:
            run(control, "-D", data, "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_new(postgres_server: Path) -> Callable[..., str]:
    """Makes an empty database (or a copy of ``template``) and gives its SQLAlchemy URL."""

    def make(template: str = "template0") -> str:
        name = f"mw{next(_NUMBERS)}"
        address = f"host={postgres_server} user=mailweir dbname=postgres"
        with psycopg.connect(address, autocommit=True) as conn:
            conn.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return f"postgresql+psycopg://mailweir@/{name}?host={postgres_server}"

    return make


@pytest.fixture(scope="session")
def postgres_drop(postgres_server: Path) -> Callable[[str], None]:
    """Drops a database by its URL: a copy takes 8 MiB until the server stops."""

    def drop(url: str) -> None:
        name = url.partition("@/")[2].partition("?")[0]
        address = f"host={postgres_server} user=mailweir dbname=postgres"
        with psycopg.connect(address, autocommit=True) as conn:
            conn.execute(f"DROP DATABASE {name} WITH (FORCE)")

    return drop


@pytest.fixture(scope="session")
def postgres_url(postgres_new: Callable[..., str]) -> str:
    """SQLAlchemy URL of one database for the whole session."""
    return postgres_new()
