"""What other services install: the wheel alone in an empty environment submits a job that arrives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.acceptance.house import house

CHECK = Path(__file__).parents[2] / "deploy" / "client" / "check.py"


def test_the_client_wheel(tmp_path: Path) -> None:
    with house(tmp_path) as home:
        done = subprocess.run(
            [sys.executable, str(CHECK), f"http://127.0.0.1:{home.port}", "--out", str(tmp_path)],
            env={**home.env, "MAILWEIR_API_KEY": home.api_key},
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        home.wait("the wheel's mail", lambda: len(home.witness()) >= 1)
