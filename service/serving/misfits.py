"""Versions that were loaded for nothing: only in memory is it known what one takes, and for these there was no room."""

_ENOUGH = 3
"""So many say of those that nobody has tried that they would not fit either."""


class Misfits:
    """What a server has learnt from them: one with many more models than memory would else load each at its start."""

    def __init__(self) -> None:
        self._count = 0
        self._least_bytes = 0

    def note(self, size_bytes: int) -> None:
        """A version of this size had to leave at once."""
        self._least_bytes = min(self._least_bytes, size_bytes) if self._count else size_bytes
        self._count += 1

    def expects(self, free_bytes: int) -> bool:
        """Whether a version of unknown size is expected not to fit into what is free."""
        return self._count >= _ENOUGH and self._least_bytes > free_bytes
