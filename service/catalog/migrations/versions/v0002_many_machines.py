"""Workers with leases, claims on builds, and an engine for each kind of hardware.

New columns may be null or have defaults: octet from before goes on with these tables.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Adds what several machines need to share the work."""
    op.create_table(
        "workers",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("hardware", sa.String(), nullable=False),
        sa.Column("started_at", sa.Double(), nullable=False),
        sa.Column("beat_at", sa.Double(), nullable=False),
    )
    op.add_column("builds", sa.Column("hardware", sa.String()))
    op.add_column("builds", sa.Column("run", sa.String()))
    op.add_column("builds", sa.Column("worker", sa.String()))
    op.add_column("builds", sa.Column("claim", sa.Integer(), nullable=False, server_default="0"))
    op.create_table(
        "engines",
        sa.Column("model", sa.String(), primary_key=True),
        sa.Column("number", sa.Integer(), primary_key=True),
        sa.Column("hardware", sa.String(), primary_key=True),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("reason", sa.String()),
        sa.Column("files", sa.JSON(), nullable=False),
        sa.Column("holder", sa.String()),
        sa.Column("changed_at", sa.Double(), nullable=False),
    )
