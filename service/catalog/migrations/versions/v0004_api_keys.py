"""API keys, and whose a build is.

The new column may be null: octet from before goes on with these tables.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Adds the keys."""
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("scopes", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double()),
        sa.Column("revoked_at", sa.Double()),
        sa.Column("requests_per_s", sa.Double()),
        sa.Column("max_builds", sa.Integer()),
        sa.Column("max_bytes", sa.BigInteger()),
    )
    op.add_column("builds", sa.Column("key_id", sa.String()))
    op.create_index("ix_builds_key_id", "builds", ["key_id"])
