"""A body may be in a file; its row says where."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_COLUMNS = ("body_file", "body_at", "body_size")


def upgrade() -> None:
    """Apply this revision."""
    for name in _COLUMNS:
        op.add_column("contents", sa.Column(name, sa.BigInteger()))
    named = sa.text("body_file IS NOT NULL")
    op.create_index(
        "contents_file", "contents", ["body_file"], sqlite_where=named, postgresql_where=named
    )


def downgrade() -> None:
    """Take it back. Raises RuntimeError while a body is in a file: the release before would send it empty."""
    if op.get_bind().dialect.name == "postgresql":
        op.execute("LOCK TABLE contents")  # no door adds one between this look and the end
    query = sa.text("SELECT count(*) FROM contents WHERE body_file IS NOT NULL")
    inside = op.get_bind().execute(query).scalar_one()
    if inside:
        raise RuntimeError(f"{inside} bodies are in files; let their mail end and be pruned first")
    op.drop_index("contents_file", "contents")
    for name in _COLUMNS:
        op.drop_column("contents", name)
