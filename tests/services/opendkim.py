"""OpenDKIM as a verifier of single messages, with keys from a file in place of DNS."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.services.unpacked import environment, program

Verify = Callable[[bytes, Mapping[str, bytes]], dict[str, str]]
"""(message, DNS name -> key record) -> selector -> verdict (pass, fail...)."""


@pytest.fixture
def opendkim(tmp_path: Path) -> Verify:
    """What OpenDKIM says of each signature of a message."""
    binary = program("usr/sbin/opendkim", "OpenDKIM")

    def verify(message: bytes, records: Mapping[str, bytes]) -> dict[str, str]:
        keys, conf, mail = (tmp_path / name for name in ("keys", "conf", "message"))
        keys.write_text(
            "".join(f"{name.rstrip('.')} {text.decode()}\n" for name, text in records.items())
        )
        conf.write_text(f"Mode v\nTestPublicKeys {keys}\n")
        mail.write_bytes(message)
        # -vv prints the Authentication-Results header it would add
        done = subprocess.run(
            [binary, "-x", conf, "-vv", "-t", mail],
            env=environment(),
            capture_output=True,
            text=True,
            timeout=30,
        )
        said = done.stdout + done.stderr
        found = re.findall(r"dkim=(\w+).*?header\.s=(\w+)", said)
        assert found, f"OpenDKIM said nothing of a signature: {said[-2000:]}"
        return {selector: verdict for verdict, selector in found}

    return verify
