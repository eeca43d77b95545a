"""The client wheel alone in an empty environment, beside decoys of our package names."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import tests
from tests.services.door import running_door

CHECK = Path(tests.__file__).parents[1] / "deploy" / "client" / "check.py"


def test_the_wheel_submits_and_nothing_else_is_imported(tmp_path: Path) -> None:
    with running_door(tmp_path / "door") as door:
        done = subprocess.run(
            [sys.executable, CHECK, door.url, "--offline"],
            env=os.environ | {"MAILWEIR_API_KEY": door.key},
            capture_output=True,
            text=True,
            timeout=90,
        )
        assert done.returncode == 0, done.stderr
        assert "accepted" in done.stdout
        assert door.spool.counts() == {"transactional": {"accepted": 1}}
