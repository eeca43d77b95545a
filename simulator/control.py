"""The running simulator: its listeners, its static MX map, and commands while it runs.

Commands are JSON lines over a unix socket: ``{"do": "set", "provider": "gmail", "behaviour":
{"outage": 0.9}}`` changes only the named settings, ``{"do": "reset", "provider": ...}`` restores the
profile, ``{"do": "drop", "provider": ...}`` cuts open sessions, ``{"do": "status"}`` counts. The
answer is one JSON line, ``{"ok": true, ...}`` or ``{"ok": false, "error": "..."}``.
"""

from __future__ import annotations

import asyncio
import signal
import socket
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from mailweir.plumbing.clock import Clock
from simulator.behaviour import Behaviour
from simulator.certificate import server_context
from simulator.profiles import DOMAINS, HOSTS, PROFILES
from simulator.smtp import Provider, Session
from simulator.witness import Witness


class SimulatorError(Exception):
    """A command was refused by the simulator, or nobody listens on its socket."""


class Simulator:
    """All providers in one event loop; ``mx_map`` is what ``settings.dns.mx_map`` wants."""

    def __init__(
        self,
        folder: Path,
        clock: Clock,
        *,
        profiles: dict[str, Behaviour] | None = None,
        keep: bool = False,
    ) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        tls = server_context(folder)
        self.witness = Witness(folder / "witness.jsonl", keep=folder / "mail" if keep else None)
        self._profiles = profiles or PROFILES
        self.providers = {
            name: Provider(name, msgspec.structs.replace(behaviour), self.witness, clock, tls=tls)
            for name, behaviour in self._profiles.items()
        }
        self._servers: list[asyncio.Server] = []
        self.mx_map: dict[str, list[str]] = {}

    async def start(self, ports: dict[str, list[int]] | None = None) -> None:
        """Listen, on given or free ports of loopback, and write ``mx_map.json`` and the control socket."""
        loop = asyncio.get_running_loop()
        for name, provider in self.providers.items():
            hosts: list[str] = []
            wanted = (ports or {}).get(name) or [0] * HOSTS.get(name, 1)
            for index, port in enumerate(wanted):
                server = await loop.create_server(
                    partial(Session, provider, index), "127.0.0.1", port, backlog=512
                )
                self._servers.append(server)
                hosts.append(f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
            for domain in DOMAINS.get(name, (f"{name}.example",)):
                self.mx_map[domain] = hosts
        control = self._folder / "control.sock"
        control.unlink(missing_ok=True)
        self._servers.append(await asyncio.start_unix_server(self._serve, control))
        draft = self._folder / "mx_map.json.new"
        draft.write_bytes(msgspec.json.encode(self.mx_map))
        draft.rename(self._folder / "mx_map.json")

    async def stop(self) -> None:
        """Close listeners and sessions."""
        for server in self._servers:
            server.close()
        for provider in self.providers.values():
            for session in tuple(provider.sessions):
                session.drop()
        self.witness.close()

    def command(self, order: dict[str, Any]) -> dict[str, Any]:
        """Carry out one command. Raises :class:`SimulatorError`."""
        what = order.get("do")
        if what == "status":
            return {
                name: {
                    "received": self.witness.counts[name],
                    "refused": provider.refusals,
                    "open": sum(provider.memory.open.values()),
                    "behaviour": msgspec.to_builtins(provider.behaviour),
                }
                for name, provider in self.providers.items()
            }
        name = order.get("provider")
        if name not in self.providers:
            raise SimulatorError(f"no provider {name!r}; there are: {', '.join(self.providers)}")
        provider = self.providers[name]
        if what == "set":
            merged = msgspec.to_builtins(provider.behaviour) | dict(order.get("behaviour") or {})
            try:
                provider.behaviour = msgspec.convert(merged, Behaviour)
            except msgspec.ValidationError as error:
                raise SimulatorError(f"behaviour refused: {error}") from None
        elif what == "reset":
            provider.behaviour = msgspec.structs.replace(self._profiles[name])
        elif what == "drop":
            for session in tuple(provider.sessions):
                session.drop()
        else:
            raise SimulatorError(f"no command {what!r}; there are: set, reset, drop, status")
        return {}

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                try:
                    answer: dict[str, Any] = {"ok": True, **self.command(msgspec.json.decode(line))}
                except (SimulatorError, msgspec.DecodeError, AttributeError) as error:
                    answer = {"ok": False, "error": str(error)}
                writer.write(msgspec.json.encode(answer) + b"\n")
                await writer.drain()
        finally:
            writer.close()


def send_command(folder: Path, order: dict[str, Any], timeout: float = 5.0) -> dict[str, Any]:
    """Send one command to the simulator running in ``folder``. Raises :class:`SimulatorError`."""
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(timeout)
            sock.connect(str(folder / "control.sock"))
            sock.sendall(msgspec.json.encode(order) + b"\n")
            with sock.makefile("rb") as file:
                answer: dict[str, Any] = msgspec.json.decode(file.readline())
    except (OSError, msgspec.DecodeError) as error:
        raise SimulatorError(
            f"no simulator answers in {folder} ({error}); start one with: mailweir simulator run"
        ) from error
    if not answer.pop("ok"):
        raise SimulatorError(str(answer.get("error")))
    return answer


def run(folder: Path, clock: Clock, *, keep: bool = False) -> None:
    """Run until SIGTERM or SIGINT."""

    async def main() -> None:
        simulator = Simulator(folder, clock, keep=keep)
        await simulator.start()
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        await stop.wait()
        await simulator.stop()

    asyncio.run(main())
