"""Models, builds, versions and the revision: what octet made by itself before it had migrations."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Makes the tables where they are not there already."""
    if sa.inspect(op.get_bind()).has_table("builds"):
        return
    op.create_table(
        "models",
        sa.Column("name", sa.String(), primary_key=True),
        sa.Column("default_version", sa.Integer()),
        sa.Column("next_version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
    )
    op.create_table(
        "builds",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("model", sa.String(), nullable=False, index=True),
        sa.Column("fingerprint", sa.String(), nullable=False, index=True),
        sa.Column("options", sa.JSON(), nullable=False),
        sa.Column("state", sa.String(), nullable=False, index=True),
        sa.Column("phase", sa.String()),
        sa.Column("progress", sa.Double(), nullable=False),
        sa.Column("timings", sa.JSON(), nullable=False),
        sa.Column("files", sa.JSON(), nullable=False),
        sa.Column("error", sa.String()),
        sa.Column("code", sa.String()),
        sa.Column("version", sa.Integer()),
        sa.Column("created_at", sa.Double(), nullable=False, index=True),
        sa.Column("started_at", sa.Double()),
        sa.Column("finished_at", sa.Double()),
    )
    op.create_table(
        "versions",
        sa.Column("model", sa.String(), sa.ForeignKey("models.name"), primary_key=True),
        sa.Column("number", sa.Integer(), primary_key=True),
        sa.Column("build_id", sa.String(), nullable=False, unique=True),
        sa.Column("files", sa.JSON(), nullable=False),
        sa.Column("options", sa.JSON(), nullable=False),
        sa.Column("summary", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
    )
    revision_table = op.create_table(
        "revision",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("value", sa.Integer(), nullable=False),
    )
    op.bulk_insert(revision_table, [{"id": 1, "value": 0}])
