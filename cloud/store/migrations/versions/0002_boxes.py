"""What detectors found travels with a sample, and which variant of its backbone embedded it."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Samples of before have none."""
    op.add_column("samples", sa.Column("boxes", sa.JSON, nullable=True))
    op.add_column("samples", sa.Column("variant", sa.String(64), nullable=True))
