"""What a release is based on, which gateway was assigned which, and where each layer comes from."""

import sqlalchemy as sa
from alembic import op

revision = "0004_trust"
down_revision = "0003_rollout"


def upgrade() -> None:
    """Releases of before were signed whole; layers of before have no known origin."""
    op.add_column("releases", sa.Column("base", sa.String(80), nullable=True))
    op.create_table(
        "assignments",
        sa.Column("gateway_id", sa.String(63), primary_key=True),
        sa.Column("release_id", sa.String(80), nullable=False),
        sa.Column("sequence", sa.Integer, nullable=False),
        sa.Column("renew_at_ns", sa.BigInteger, nullable=False),
        sa.Column("signed", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "layers",
        sa.Column("layer", sa.String(64), primary_key=True),
        sa.Column("kind", sa.String(20), nullable=False),
        sa.Column("scenario", sa.String(63), nullable=False),
        sa.Column("parent", sa.String(64), nullable=False),
        sa.Column("samples", sa.String(64), nullable=False, index=True),
        sa.Column("record", sa.JSON, nullable=False),
        sa.Column("at_ns", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "sample_sets",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("ids", sa.LargeBinary, nullable=False),
    )
