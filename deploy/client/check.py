"""Builds the client wheel, installs it alone, and submits a message with it.

    python deploy/client/check.py URL [--out DIR]     (MAILWEIR_API_KEY holds the key)

The environment is empty but for the wheel and what it requires; beside the script that submits lie decoy
packages called ``router``, ``workers`` and ``producer``, which the client must never import.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
DECOYS = ("router", "workers", "producer", "suppression", "journal", "console")
SCRIPT = """
import sys
from mailweir import Client, Message

with Client.from_env() as client:
    answer = client.send(Message(from_="check@acme.example", to="jane@gmail.com", subject="wheel",
                                 text="sent by the client wheel alone"))
    assert [job.status for job in answer.jobs] == ["accepted"], answer
    assert client.get(answer.id).jobs[0].recipient == "jane@gmail.com"
heavy = {"fastapi", "starlette", "sqlalchemy", "celery", "kombu", "redis", "aiosmtplib", "pydantic"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
print(answer.id)
"""


def build(out: Path) -> Path:
    """The wheel, built by hatchling of this interpreter: no isolation, no network."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)],
        cwd=HERE,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    (wheel,) = out.glob("mailweir_client-*.whl")
    return wheel


def contents(wheel: Path) -> list[str]:
    """Top-level names of the wheel, without its metadata."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name.split("/")[0] for name in archive.namelist()}
    return sorted(name for name in names if not name.endswith(".dist-info"))


def install(wheel: Path, folder: Path, offline: bool) -> Path:
    """A new environment with the wheel alone; its interpreter.

    ``offline``: what it requires comes from this interpreter's site-packages instead of an index, by
    linking exactly the packages the wheel needs.
    """
    venv.create(folder, with_pip=not offline, symlinks=True)
    python = folder / "bin" / "python"
    if not offline:
        subprocess.run([python, "-m", "pip", "install", "-q", wheel], check=True)
        return python
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = folder / "lib" / version / "site-packages"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    here = Path(sysconfig.get_paths()["purelib"])
    for name in ("httpx", "httpcore", "h11", "anyio", "certifi", "idna", "sniffio", "msgspec"):
        if (here / name).exists():
            (site / name).symlink_to(here / name)
    for single in ("typing_extensions.py",):
        if (here / single).exists():
            (site / single).symlink_to(here / single)
    return python


def submit(python: Path, url: str, folder: Path) -> str:
    """Run the script beside the decoys; the id of the message."""
    for name in DECOYS:
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(f"raise ImportError('decoy {name} imported')\n")
    (folder / "submit.py").write_text(SCRIPT)
    environment = {"PATH": os.environ["PATH"], "MAILWEIR_URL": url}
    environment["MAILWEIR_API_KEY"] = os.environ["MAILWEIR_API_KEY"]
    done = subprocess.run(
        [python, "submit.py"], cwd=folder, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"the wheel cannot submit:\n{done.stderr}")
    return done.stdout.strip()


def main() -> None:
    """Build, install, submit; exit code 0 when all of it worked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", help="a running submission API")
    parser.add_argument("--out", type=Path, help="keep the wheel here")
    parser.add_argument("--offline", action="store_true", help="requirements from this environment")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        wheel = build((arguments.out or work / "dist").resolve())
        if contents(wheel) != ["mailweir"]:
            raise SystemExit(f"the wheel ships more than mailweir: {contents(wheel)}")
        python = install(wheel, work / "venv", arguments.offline)
        message = submit(python, arguments.url, work / "app")
    sys.stdout.write(f"{wheel.name}: message {message} accepted\n")


if __name__ == "__main__":
    main()
