"""A chunk says how many jobs of each lane it holds."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this revision."""
    op.add_column("chunks", sa.Column("lanes", sa.Text(), nullable=True))


def downgrade() -> None:
    """Take it back."""
    op.drop_column("chunks", "lanes")
