"""The first schema."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make all tables."""
    name, big, blob = sa.String(63), sa.BigInteger(), sa.LargeBinary()
    op.create_table(
        "samples",
        sa.Column("sample_id", sa.LargeBinary(16), primary_key=True),
        sa.Column("gateway_id", name, nullable=False, index=True),
        sa.Column("site_id", name, nullable=False, index=True),
        sa.Column("camera_id", name, nullable=False),
        sa.Column("captured_at_ns", big, nullable=False),
        sa.Column("received_at_ns", big, nullable=False),
        sa.Column("release_id", sa.String(80), nullable=False),
        sa.Column("backbone", sa.String(64), nullable=False),
        sa.Column("width_px", sa.Integer, nullable=False),
        sa.Column("height_px", sa.Integer, nullable=False),
        sa.Column("jpeg", sa.String(64), nullable=False),
        sa.Column("embedding", blob, nullable=False),
        sa.Column("predictions", sa.JSON, nullable=False),
        sa.Column("scores", sa.JSON, nullable=False),
        sa.Column("value", sa.Float, nullable=False, index=True),
        sa.Column("reason", sa.String(20), nullable=False),
        sa.Column("pixel_path", sa.String(120), nullable=False),
    )
    op.create_table(
        "labels",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("sample_id", sa.LargeBinary(16), sa.ForeignKey("samples.sample_id"), nullable=False),
        sa.Column("scenario", name, nullable=False),
        sa.Column("label", sa.String(120), nullable=False),
        sa.Column("author", sa.String(120), nullable=False),
        sa.Column("at_ns", big, nullable=False),
    )
    op.create_index("labels_by_sample", "labels", ["scenario", "sample_id", "number"])
    op.create_table("states", sa.Column("gateway_id", name, primary_key=True), sa.Column("state", blob, nullable=False))
    op.create_table(
        "quarantine",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("gateway_id", name, nullable=False),
        sa.Column("topic", sa.String(200), nullable=False),
        sa.Column("reason", sa.String(500), nullable=False),
        sa.Column("payload", blob, nullable=False),
        sa.Column("at_ns", big, nullable=False),
    )
    op.create_table(
        "contributions",
        sa.Column("scenario", name, primary_key=True),
        sa.Column("backbone", sa.String(64), primary_key=True),
        sa.Column("client", name, primary_key=True),
        sa.Column("arrays", blob, nullable=False),
        sa.Column("meta", sa.JSON, nullable=False),
        sa.Column("at_ns", big, nullable=False),
    )
    op.create_table(
        "runs",
        sa.Column("run_id", sa.String(40), primary_key=True),
        sa.Column("started_ns", big, nullable=False, index=True),
        sa.Column("finished_ns", big),
        sa.Column("status", sa.String(40), nullable=False),
        sa.Column("record", sa.JSON, nullable=False),
    )
    op.create_table(
        "releases",
        sa.Column("release_id", sa.String(80), primary_key=True),
        sa.Column("sequence", sa.Integer, nullable=False, unique=True),
        sa.Column("manifest", blob, nullable=False),
        sa.Column("signature", blob, nullable=False),
        sa.Column("gate", sa.JSON, nullable=False),
        sa.Column("status", sa.String(20), nullable=False),
        sa.Column("created_at_ns", big, nullable=False),
    )
    op.create_table(
        "audits",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("actor", sa.String(120), nullable=False),
        sa.Column("action", sa.String(120), nullable=False),
        sa.Column("detail", sa.JSON, nullable=False),
        sa.Column("at_ns", big, nullable=False),
    )


def downgrade() -> None:
    """Remove all tables."""
    for table in ("labels", "samples", "states", "quarantine", "contributions", "runs", "releases", "audits"):
        op.drop_table(table)
