"""A limit on how often something may be done."""


class TokenBucket:
    """Lets through `per_s` a second on average, and what was not used in the last second at once.

    https://en.wikipedia.org/wiki/Token_bucket
    """

    __slots__ = ("_at_s", "_most", "_tokens", "per_s")

    def __init__(self, per_s: float, *, now_s: float) -> None:
        """`per_s` is more than 0; times are of a clock that never goes back."""
        self.per_s = per_s
        # Less than one would never let anything through.
        self._most = max(1.0, per_s)
        self._tokens = self._most
        self._at_s = now_s

    def take(self, now_s: float) -> float:
        """Takes a token; returns 0, or, where there is none, the seconds until there is one."""
        tokens = min(self._most, self._tokens + (now_s - self._at_s) * self.per_s)
        self._at_s = now_s
        if tokens >= 1.0:
            self._tokens = tokens - 1.0
            return 0.0
        self._tokens = tokens
        return (1.0 - tokens) / self.per_s
