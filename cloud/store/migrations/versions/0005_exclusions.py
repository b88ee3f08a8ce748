"""Sites and gateways that were unlearned."""

import sqlalchemy as sa
from alembic import op

revision = "0005_exclusions"
down_revision = "0004_trust"


def upgrade() -> None:
    """Nobody is, to begin with."""
    op.create_table(
        "exclusions",
        sa.Column("name", sa.String(63), primary_key=True),
        sa.Column("author", sa.String(120), nullable=False),
        sa.Column("at_ns", sa.BigInteger(), nullable=False),
    )
