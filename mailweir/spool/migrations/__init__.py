"""Alembic migrations of every table (``mailweir.spool.schema``), run by ``database.migrate``."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection

HEAD = "0005"
"""The newest revision; a test compares it with the scripts. Spares every start the import of Alembic."""


def upgrade(conn: Connection) -> None:
    """Run the missing revisions inside the caller's transaction."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = conn
    command.upgrade(config, "head")
