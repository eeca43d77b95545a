"""The private Redis or Valkey server of the embedded stack: its configuration, start and stop.

One server per data directory, held by a lock that the server process itself carries: it is free exactly
when no server runs, however its parent died. The socket lies in a directory of mode 700; there is no
TCP port. With ``appendfsync everysec`` a killed server loses nothing (the system's page cache
survives it); a crash of the machine costs up to a second, which the spool makes good.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import redis

from mailweir.plumbing.redis import find_server, server_directory, socket_path
from mailweir.plumbing.settings import Settings

_PR_SET_PDEATHSIG = 1


class ServerStartFailed(Exception):
    """The private server did not come up; the message names its log and the last line there."""


class ServerRunning(ServerStartFailed):
    """Another server already runs in this data directory."""


def die_with_parent() -> None:
    """Ask the kernel for SIGTERM when the thread that started this process ends (Linux only)."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _private(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    if directory.stat().st_uid != os.getuid():
        raise ServerStartFailed(f"{directory} belongs to another user")
    directory.chmod(0o700)
    return directory


def _configuration(directory: Path, socket: Path) -> str:
    def quoted(path: Path) -> str:
        return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'

    return "\n".join(
        (
            "# written at every start; change nothing here",
            "port 0",
            f"unixsocket {quoted(socket)}",
            "unixsocketperm 700",
            f"dir {quoted(directory)}",
            f"pidfile {quoted(directory / 'server.pid')}",
            f"logfile {quoted(directory / 'server.log')}",
            "daemonize no",
            "appendonly yes",
            "appendfsync everysec",
            'save ""',
            "maxmemory-policy noeviction",
            "databases 2",
            "",
        )
    )


class Server:
    """A started server. ``process`` is its child process; ``stop`` ends it."""

    def __init__(self, process: subprocess.Popen[bytes], socket: Path, log: Path) -> None:
        self.process = process
        self.socket = socket
        self.log = log

    @property
    def url(self) -> str:
        """URL of its database 0."""
        return f"unix://{self.socket}?db=0"

    def stop(self, timeout: float = 10.0) -> int:
        """End the server cleanly (its append-only file is complete) and return its exit code.

        Killed when it has not ended after ``timeout`` real seconds.
        """
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        return self.process.returncode

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _prepare(settings: Settings, timeout: float) -> tuple[list[str], int, Path, Path]:
    """Command line, held lock, socket and log of the server of this data directory."""
    binary = find_server(settings)
    directory = _private(server_directory(settings.data).absolute())
    socket = socket_path(settings.data)
    _private(socket.parent)
    lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        _take(lock, directory, timeout)
        conf = directory / "server.conf"
        conf.write_text(_configuration(directory, socket))
    except BaseException:
        os.close(lock)
        raise
    return [str(binary), str(conf)], lock, socket, directory / "server.log"


def become(settings: Settings, *, timeout: float = 20.0) -> NoReturn:
    """Replace this process by the private server, lock and all: what a supervisor runs.

    Raises as :func:`start` does, before anything is replaced.
    """
    command, lock, _, _ = _prepare(settings, timeout)
    os.set_inheritable(lock, True)
    os.execv(command[0], command)  # noqa: S606 - no shell, our own arguments


def start(settings: Settings, *, timeout: float = 20.0) -> Server:
    """Start the private server and wait until it answers.

    Raises :class:`mailweir.plumbing.redis.ServerMissing`, :class:`ServerRunning`,
    :class:`ServerStartFailed`. The server dies with the thread that called this.
    """
    command, lock, socket, log = _prepare(settings, timeout)
    before_exec: Callable[[], None] | None = die_with_parent if sys.platform == "linux" else None
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(lock,),
            start_new_session=True,  # Ctrl-C reaches the supervisor, which stops the server last
            preexec_fn=before_exec,
        )
    finally:
        os.close(lock)
    server = Server(process, socket, log)
    try:
        _wait_ready(server, timeout)
    except BaseException:
        server.stop()
        raise
    return server


def _take(lock: int, directory: Path, timeout: float) -> None:
    """Hold the directory's lock; a server that is about to die gets a moment to do so."""
    end = time.monotonic() + min(timeout, 5.0)
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > end:
                raise ServerRunning(
                    f"a server already runs in {directory}; stop it or use another data directory"
                ) from None
            time.sleep(0.05)


def _wait_ready(server: Server, timeout: float) -> None:
    end = time.monotonic() + timeout
    with redis.Redis(unix_socket_path=str(server.socket), socket_timeout=1.0) as client:
        while True:
            if server.process.poll() is not None:
                raise ServerStartFailed(
                    f"the server ended with code {server.process.returncode}: {_last_line(server.log)}"
                )
            try:
                client.ping()
                return
            except redis.RedisError:  # not listening yet, or loading its append-only file
                if time.monotonic() > end:
                    raise ServerStartFailed(
                        f"the server does not answer after {timeout:g} s; see {server.log}"
                    ) from None
                time.sleep(0.02)


def _last_line(log: Path) -> str:
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return f"it wrote no log ({log})"
    return lines[-1] if lines else f"its log {log} is empty"
