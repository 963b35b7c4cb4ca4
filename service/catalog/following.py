"""The published versions for who has looked before: every server asks after each change, and catalogs may be large."""

import dataclasses
from collections.abc import Collection

import sqlalchemy as sa

from service.catalog import rows
from service.catalog.catalog import Catalog, Version
from service.catalog.schema import ModelRow, VersionRow

_MOST_NEWS = 100
"""Versions that are asked for by name; where more are new, all are read."""


def versions_beside(catalog: Catalog, known: Collection[Version]) -> list[Version]:
    """All published versions by model and number, as `Catalog.versions` gives them.

    What is `known` of an earlier look is not read again: a version changes in nothing but being the default.

    Raises:
        CatalogUnavailableError: the database does not answer.
    """
    by_build = {version.build_id: version for version in known}
    query = sa.select(VersionRow.build_id, VersionRow.number, ModelRow.default_version).join(ModelRow)
    with catalog.look() as session:
        found = session.execute(query.order_by(VersionRow.model, VersionRow.number)).all()
        news = [build_id for build_id, _, _ in found if build_id not in by_build]
        if 0 < len(news) <= _MOST_NEWS:
            for row in session.scalars(sa.select(VersionRow).where(VersionRow.build_id.in_(news))):
                by_build[row.build_id] = rows.to_version(row, None)
    if len(news) > _MOST_NEWS:
        return catalog.versions()
    return [
        dataclasses.replace(by_build[build_id], default=number == default)
        for build_id, number, default in found
        # One may have been deleted between the two questions.
        if build_id in by_build
    ]
