"""The ledger of rollouts."""

import sqlalchemy as sa
from alembic import op

revision = "0003_rollout"
down_revision = "0002"


def upgrade() -> None:
    """Lines are numbered without a gap: who adds one names the last that was known to it."""
    op.create_table(
        "rollout_lines",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("rollout_id", sa.String(40), nullable=False, index=True),
        sa.Column("kind", sa.String(20), nullable=False),
        sa.Column("actor", sa.String(120), nullable=False),
        sa.Column("at_ns", sa.BigInteger, nullable=False),
        sa.Column("line", sa.LargeBinary, nullable=False),
    )


def downgrade() -> None:
    """Remove the table."""
    op.drop_table("rollout_lines")
