"""The versions that the catalog had when a server last looked, and what requests mean by their names."""

from collections.abc import Iterable, Iterator, Mapping

from service.catalog.catalog import Version
from service.errors import NotFoundError
from service.serving.residency import Key


class Published(Mapping[Key, Version]):
    """Versions by model and number."""

    def __init__(self, versions: Iterable[Version] = ()) -> None:
        self._versions = {(version.model, version.number): version for version in versions}

    def __getitem__(self, key: Key) -> Version:
        return self._versions[key]

    def __iter__(self) -> Iterator[Key]:
        return iter(self._versions)

    def __len__(self) -> int:
        return len(self._versions)

    def defaults(self) -> set[Key]:
        """The default of every model that has one."""
        return {key for key, version in self._versions.items() if version.default}

    def of_model(self, model: str) -> list[Version]:
        """The versions of a model, by number.

        Raises:
            NotFoundError: it has none.
        """
        numbers = sorted(number for name, number in self._versions if name == model)
        if not numbers:
            raise NotFoundError(f"there is no model '{model[:80]}'; GET /v1/models lists all.")
        return [self._versions[model, number] for number in numbers]

    def named(self, model: str, version: str | None) -> Version:
        """What a request names: a version, or a model's default, or its newest where it has no default.

        Raises:
            NotFoundError: no such model or version.
        """
        versions = self.of_model(model)
        if version is None:
            return next((known for known in versions if known.default), versions[-1])
        found = self._versions.get((model, number_of(version)))
        if found is None:
            numbers = ", ".join(str(known.number) for known in versions)
            raise NotFoundError(f"model '{model}' has no version '{version[:80]}'; it has {numbers}.")
        return found


def number_of(version: str) -> int:
    """The number that a client means, or -1, which no version has."""
    # No version was ever longer, and Python refuses to read numbers without end.
    return int(version) if version.isascii() and version.isdecimal() and len(version) < 10 else -1
