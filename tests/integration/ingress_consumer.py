"""A real consumer process for the tests: its ``accept`` appends the ids to a fsynced witness file.

An id that is there already is skipped, as the spool skips an idempotency key it knows.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import msgspec

from mailweir.plumbing.settings import load
from producer.doors.ingress import run


def main(folder: Path) -> None:
    witness, graves, broken = folder / "accepted", folder / "buried", folder / "database-is-down"
    stopped = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopped
        stopped = True

    def write(path: Path, lines: Sequence[str]) -> None:
        with path.open("a") as file:
            file.write("".join(f"{line}\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())

    def accept(payloads: Sequence[bytes]) -> list[str | None]:
        ids = [str(msgspec.json.decode(payload)["id"]) for payload in payloads]
        if "poison" in ids:
            raise ValueError("this one cannot be stored")
        if broken.exists():
            raise OSError("no database")
        known = set(witness.read_text().split()) if witness.exists() else set()
        write(witness, [id for id in ids if id not in known and id != "forged"])
        return ["the mac is wrong" if id == "forged" else None for id in ids]

    def bury(payload: bytes, reason: str) -> None:
        write(graves, [f"{len(payload)} {reason}"])

    signal.signal(signal.SIGTERM, stop)
    write(folder / "started", [str(os.getpid())])
    run(load(), accept, bury, lambda: stopped)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
