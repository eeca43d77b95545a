"""Fixtures every suite shares. Servers are private, on free ports, started by the suite itself."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from hypothesis import HealthCheck, settings

# real seconds say nothing of a law: a busy machine is no failure
settings.register_profile("laws", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("laws")

_HERE = Path(__file__).parent / "services"

# one file per real server, each bringing fixtures of its own
pytest_plugins = [
    f"tests.services.{name}"
    for name in ("redis", "postgres", "rabbitmq", "postfix", "exim", "opensmtpd", "opendkim")
    if importlib.util.find_spec(f"tests.services.{name}") is not None
]
