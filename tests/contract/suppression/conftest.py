"""The list over SQLite (and PostgreSQL where its fixture is), beside a real Redis with an epoch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mailweir.plumbing.database import Database
from tests.contract.suppression import rows


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """A migrated database of its own."""
    yield from rows.sqlite(tmp_path)
