"""The reference pages say what the code says."""

from __future__ import annotations

import pytest

from console.docs import DOCS, PAGES


@pytest.mark.parametrize("name", sorted(PAGES))
def test_page_is_current(name: str) -> None:
    assert (DOCS / name).read_text() == PAGES[name](), "stale; run: make docs"
