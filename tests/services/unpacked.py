"""Servers unpacked by ``deploy/services.sh`` into ``.services/`` and run from there.

Mail servers exclude one another as packages and have users and folders compiled in; a root folder of
their own (chroot) gives them both without touching the machine.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.services.needs import lacking, missing

PLACE = Path(__file__).parents[2] / ".services"
HOW = "run deploy/services.sh"
LIBRARIES = [PLACE / "usr/lib" / f"{os.uname().machine}-linux-gnu", PLACE / "usr/lib"]


def program(path: str, name: str) -> Path:
    """A program of ``.services/``; skips the test where it is not there."""
    found = PLACE / path
    if not found.exists():
        missing(name, HOW)
    return found


def environment() -> dict[str, str]:
    """For running a program right out of ``.services/``."""
    return {**os.environ, "LD_LIBRARY_PATH": ":".join(map(str, LIBRARIES))}


def make_root(folder: Path, programs: Sequence[str], users: dict[str, int]) -> None:
    """Make ``folder`` a root folder that holds ``programs`` (absolute paths, from ``.services/`` or
    else the machine) with the libraries they need, and knows ``users``."""
    if os.geteuid() != 0:
        lacking("a root folder of its own needs chroot; run the tests as root")
    for name in programs:
        ours = PLACE / name.lstrip("/")
        source = ours if ours.exists() else Path(name)
        _copy(source, folder / name.lstrip("/"))
        said = subprocess.run(
            ["ldd", source], env=environment(), capture_output=True, text=True, check=True
        ).stdout
        for library in re.findall(r"(?:=> |^\s*)(/\S+)", said, re.M):
            inside = library.removeprefix(str(PLACE))
            _copy(Path(library), folder / inside.lstrip("/"))
    for name in ("etc", "dev", "tmp", "run", "var/run"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "tmp").chmod(0o1777)
    everybody = {"root": 0, "nobody": 65534, **users}
    (folder / "etc/passwd").write_text(
        "".join(f"{name}:x:{uid}:{uid}::/:/bin/sh\n" for name, uid in everybody.items())
    )
    (folder / "etc/group").write_text(
        "".join(f"{name}:x:{uid}:\n" for name, uid in everybody.items())
    )
    # the libraries of .services/ lie in folders the loader looks into anyway, or in /usr/lib
    folder.chmod(0o755)


def _copy(source: Path, target: Path) -> None:
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
        target.chmod(0o755)
