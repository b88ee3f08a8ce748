"""What detectors found travels with a sample."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Samples of before have none."""
    op.add_column("samples", sa.Column("boxes", sa.JSON, nullable=True))
