"""Every sample has a number in its spool's epoch; what a spool let go, and how far it was."""

import sqlalchemy as sa
from alembic import op

revision = "0006_delivery"
down_revision = "0005_exclusions"


def upgrade() -> None:
    """Samples of before have no number."""
    name, epoch, big = sa.String(63), sa.String(32), sa.BigInteger()
    op.add_column("samples", sa.Column("epoch", epoch, nullable=True))
    op.add_column("samples", sa.Column("sequence", big, nullable=True))
    op.create_index("samples_by_sequence", "samples", ["gateway_id", "epoch", "sequence"])
    op.create_table(
        "ended",
        sa.Column("gateway_id", name, primary_key=True),
        sa.Column("epoch", epoch, primary_key=True),
        sa.Column("sequence", big, primary_key=True, autoincrement=False),
        sa.Column("sample_id", sa.LargeBinary(16), nullable=False),
        sa.Column("value", sa.Float, nullable=False),
        sa.Column("state", sa.String(20), nullable=False),
        sa.Column("at_ns", big, nullable=False),
    )
    op.create_table(
        "epochs",
        sa.Column("gateway_id", name, primary_key=True),
        sa.Column("epoch", epoch, primary_key=True),
        sa.Column("head", big, nullable=False),
        sa.Column("tail", big, nullable=False),
        sa.Column("waiting", big, nullable=False),
        sa.Column("went_back", sa.Integer, nullable=False),
        sa.Column("at_ns", big, nullable=False),
    )
