"""What other backbones say of samples."""

import sqlalchemy as sa
from alembic import op

revision = "0009_finetune"
down_revision = "0008_curation"


def upgrade() -> None:
    """Nothing, to begin with."""
    op.create_table(
        "embeddings",
        sa.Column("sample_id", sa.LargeBinary(16), primary_key=True),
        sa.Column("backbone", sa.String(64), primary_key=True),
        sa.Column("embedding", sa.LargeBinary(), nullable=False),
    )
