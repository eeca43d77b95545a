"""Alembic's entry: runs in the transaction and on the connection that ``migrate`` hands over."""

from __future__ import annotations

from alembic import context

from mailweir.spool.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,  # SQLite has no ALTER COLUMN
)
with context.begin_transaction():
    context.run_migrations()
