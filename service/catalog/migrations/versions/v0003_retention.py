"""What a sweep has to know: wishes about samples, when versions and engines were used, and blobs on their way.

New columns may be null: octet from before goes on with these tables.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Adds the columns and tables of retention."""
    op.add_column("builds", sa.Column("samples", sa.String()))
    op.add_column("builds", sa.Column("samples_removed_at", sa.Double()))
    op.add_column("versions", sa.Column("used_at", sa.Double()))
    op.add_column("engines", sa.Column("used_at", sa.Double()))
    op.create_table(
        "holds",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("digests", sa.JSON(), nullable=False),
        sa.Column("held_at", sa.Double(), nullable=False),
    )
    sweeps = op.create_table(
        "sweeps",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("holder", sa.String()),
        sa.Column("beat_at", sa.Double(), nullable=False),
        sa.Column("begun_at", sa.Double(), nullable=False),
    )
    op.bulk_insert(sweeps, [{"id": 1, "holder": None, "beat_at": 0.0, "begun_at": 0.0}])
