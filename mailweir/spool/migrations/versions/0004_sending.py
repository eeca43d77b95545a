"""That a job is being sent is said by its chunk's row alone."""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this revision."""
    op.execute("UPDATE jobs SET state = 'dispatched' WHERE state = 'sending'")


def downgrade() -> None:
    """Take it back."""
    op.execute(
        "UPDATE jobs SET state = 'sending' WHERE state = 'dispatched' "
        "AND chunk_id IN (SELECT id FROM chunks WHERE taken_real IS NOT NULL)"
    )
