"""Versions that are out of memory although they would be kept there, and those that requests have called for."""

from collections.abc import Container, Iterable

from service.serving.residency import Key

PUT_AWAY = "it was unloaded on request; POST /v2/repository/models/{name}/load brings it back"


class Shelf:
    """Who sleeps until a request comes, who was called, and who was put away by an administrator."""

    def __init__(self) -> None:
        # Models that someone had unloaded, until someone has them loaded again or the server ends.
        self._put_away: set[str] = set()
        self._asleep: dict[Key, str] = {}
        # In the order in which they were called, with whether more than their call keeps them.
        self._called: dict[Key, None] = {}

    def call(self, key: Key) -> bool:
        """A request wants this version in memory; whether that is news."""
        self._asleep.pop(key, None)
        news = key not in self._called
        self._called[key] = None
        return news

    def sleep(self, key: Key, reason: str) -> None:
        """The version leaves memory until it is called."""
        self._called.pop(key, None)
        self._asleep[key] = reason

    def put_away(self, model: str) -> None:
        """The model leaves memory until it is brought back."""
        self._put_away.add(model)
        self._called = {key: None for key in self._called if key[0] != model}

    def bring_back(self, model: str) -> None:
        """The model may be loaded again."""
        self._put_away.discard(model)

    def is_put_away(self, model: str) -> bool:
        """Whether requests do not bring the model back."""
        return model in self._put_away

    def is_called(self, key: Key) -> bool:
        """Whether a request has called for the version."""
        return key in self._called

    def wanted(self, kept: Iterable[Key]) -> list[Key]:
        """Whom to have in memory: those called, then those of `kept` that do not sleep."""
        return [
            key
            for key in dict.fromkeys([*self._called, *kept])
            if key not in self._asleep and not self.is_put_away(key[0])
        ]

    def reason(self, key: Key) -> str | None:
        """Why a version is not in memory."""
        return PUT_AWAY if self.is_put_away(key[0]) else self._asleep.get(key)

    def settle(self, published: Container[Key], kept: Container[Key], loaded: Container[Key]) -> None:
        """Forgets versions that are gone, and the calls of those that are loaded and kept anyway."""
        self._asleep = {key: reason for key, reason in self._asleep.items() if key in published}
        self._called = {
            key: None for key in self._called if key in published and not (key in kept and key in loaded)
        }
