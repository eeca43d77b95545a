"""Skip with the reason where a real server is missing; in CI nothing may be skipped for that."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def missing(name: str, how: str) -> NoReturn:
    """Skip this test because a server is missing; fail instead where CI is set."""
    lacking(f"{name} is not installed; {how}")


def lacking(message: str) -> NoReturn:
    """Skip this test because this machine lacks what the message says; fail instead where CI is set."""
    if os.environ.get("CI"):
        pytest.fail(f"CI must run this: {message}", pytrace=False)
    pytest.skip(message)
