"""Versions of datasets, and what people decided about labels in conflict."""

import sqlalchemy as sa
from alembic import op

revision = "0008_curation"
down_revision = "0007_arrival"


def upgrade() -> None:
    """There are none of before."""
    name, big = sa.String(63), sa.BigInteger()
    op.create_table(
        "dataset_versions",
        sa.Column("scenario", name, primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("at_ns", big, nullable=False),
        sa.Column("summary", sa.JSON, nullable=False),
        sa.Column("conflicts", sa.JSON, nullable=False),
        sa.Column("content", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "label_decisions",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("scenario", name, nullable=False),
        sa.Column("picture_id", sa.LargeBinary(16), nullable=False),
        sa.Column("label", sa.String(120), nullable=False),
        sa.Column("author", sa.String(120), nullable=False),
        sa.Column("at_ns", big, nullable=False),
    )
    op.create_index("label_decisions_by_scenario", "label_decisions", ["scenario", "picture_id", "number"])
