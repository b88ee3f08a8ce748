"""The newest samples, and the most valuable of each site, by an index of their own; fewer indexes in all.

Each index costs a page or more for every sample of a batch, once the fleet is large and the store has grown.
"""

import sqlalchemy as sa
from alembic import op

revision = "0007_arrival"
down_revision = "0006_delivery"


def upgrade() -> None:
    """A gateway's samples are found by the index of its numbers."""
    for name in ("gateway_id", "site_id", "value"):
        op.drop_index(f"ix_samples_{name}", "samples")
    op.create_index("samples_by_arrival", "samples", [sa.text("received_at_ns DESC"), "sample_id"])
    op.create_index("samples_by_value", "samples", ["site_id", sa.text("value DESC"), "sample_id"])
