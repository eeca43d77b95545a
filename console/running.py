"""A running embedded stack: started in order, ready when it says so, stopped cleanly."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx

from console.process import Spec
from console.stack import (
    STATE_SERVER,
    Prepared,
    embedded_settings,
    prepare,
    processes,
    state_server,
)
from console.supervisor import Supervisor
from mailweir.plumbing.settings import Settings

READY_WITHIN = 60.0  # real seconds until every process must have started once


def typed() -> str:
    """How the reader called this command, and may again from the same directory."""
    called = sys.argv[0]
    if called.endswith("__main__.py"):
        return f"{shlex.quote(sys.executable)} -m {Path(called).parent.name}"
    return "mailweir" if shutil.which("mailweir") == os.path.abspath(called) else called


class StackError(Exception):
    """The stack could not start; the message says which part and where to look."""


class Stack:
    """The embedded stack of one data directory."""

    def __init__(
        self,
        data: Path,
        *,
        port: int | None = None,
        flower_port: int | None = None,
        smtp_port: int | None = None,
        say: Callable[[str], None],
        first: Sequence[Spec] = (),
        before: Callable[[], None] = lambda: None,
    ) -> None:
        """``first`` is started before anything else, then ``before()`` is called (the demo's providers)."""
        self.data = data
        self._ports = {"port": port, "flower_port": flower_port, "smtp_port": smtp_port}
        self._say = say
        self._first = tuple(first)
        self._before = before
        self.supervisor = Supervisor(data, say)
        self.prepared: Prepared

    @property
    def settings(self) -> Settings:
        """The settings in force."""
        return self.prepared.settings

    @property
    def url(self) -> str:
        """Base URL of API and console."""
        web = self.settings.web
        return f"http://{web.host}:{web.port}"

    def start(self, cancelled: Callable[[], bool] = lambda: False) -> None:
        """Start everything and wait until the door answers. Raises :class:`StackError`."""
        from mailweir.plumbing.redis import RedisUnfit, ServerMissing

        self.supervisor.lock()
        self.supervisor.start(self._first)
        self._before()
        settings = embedded_settings(self.data, **self._ports)
        self._refuse_taken_ports(settings)
        self.prepared = prepare(settings)
        try:
            server = state_server(settings, self.prepared.env)
            if server is not None:
                self.supervisor.start([server])
            self._wait_for_state(cancelled)
        except (RedisUnfit, ServerMissing) as error:
            self.stop()
            raise StackError(str(error)) from error
        self.supervisor.start(processes(self.prepared.env))
        self._wait_for_door(cancelled)
        (self.data / "url").write_text(self.url + "\n")  # where `mailweir send` finds it

    def stop(self) -> list[str]:
        """Stop everything, the state server last; names of processes that had to be killed."""
        (self.data / "url").unlink(missing_ok=True)
        return self.supervisor.stop(last=(STATE_SERVER,))

    def where_to_look(self, recipient: str = "someone@example.net") -> str:
        """What a person who just started it wants to know; ``recipient`` is named in the example."""
        flower = self.settings.flower
        command = typed()
        elsewhere = self.data != Path("data").resolve()
        return "\n".join(
            (
                "",
                f"  Mailweir is up.      data: {self.data}",
                f"  console and API      {self.url}",
                f"  SMTP submission      {self.settings.submission.host}:"
                f"{self.settings.submission.port}  user any, password an API key",
                f"  queues in Flower     http://{flower.host}:{flower.port}  "
                f"user {flower.user}, password in {self.data / 'flower.password'}",
                f"  console password     in {self.data / 'console.password'}",
                f"  API key              in {self.data / 'api.key'}",
                f"  logs                 {self.data / 'logs'}",
                "",
                "  try, in another terminal:",
                *([f"    export MAILWEIR_DATA={shlex.quote(str(self.data))}"] if elsewhere else []),
                f"    {command} send -f you@example.com -t {recipient} -s Hello --text hi",
                f"    {command} trace JOB    # an id that send printed",
                f"    {command} status; {command} queues",
                "  Ctrl-C stops it.",
                "",
            )
        )

    def _refuse_taken_ports(self, settings: Settings) -> None:
        import socket

        for option, part in (
            ("--port", settings.web),
            ("--smtp-port", settings.submission),
            ("--flower-port", settings.flower),
        ):
            host, port = part.host, part.port
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((host, port))
                except OSError as error:
                    raise StackError(
                        f"{host}:{port} cannot be used ({error.strerror}); "
                        f"stop what listens there, or give {option}"
                    ) from error

    def _wait_for_state(self, cancelled: Callable[[], bool]) -> None:
        from redis.exceptions import BusyLoadingError
        from redis.exceptions import ConnectionError as RedisGone
        from redis.exceptions import TimeoutError as RedisSlow

        from mailweir.plumbing.redis import check_server, connect

        deadline = time.monotonic() + READY_WITHIN
        while not cancelled():
            self.supervisor.look()
            try:
                client = connect(self.settings)
                try:
                    check_server(client)
                finally:
                    client.close()
                return
            except (RedisGone, RedisSlow, BusyLoadingError) as error:
                if time.monotonic() > deadline:
                    raise StackError(
                        f"the state server did not answer: {error}; see {self.data / 'logs'}"
                    ) from error
                time.sleep(0.05)

    def _wait_for_door(self, cancelled: Callable[[], bool]) -> None:
        deadline = time.monotonic() + READY_WITHIN
        while not cancelled():
            self.supervisor.look()
            try:
                if httpx.get(f"{self.url}/health/ready", timeout=2).status_code == 200:
                    return
            except httpx.TransportError:
                pass  # not listening yet; the deadline below ends this
            if time.monotonic() > deadline:
                raise StackError(f"the web process did not become ready; see {self.data / 'logs'}")
            time.sleep(0.05)
