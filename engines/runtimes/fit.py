"""What suits an engine on one machine."""

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt


class Fit(BaseModel):
    """Found by trying one thing after the other, which takes longer than to compile the engine; so it is kept."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    threads: PositiveInt
    """Processors that it runs on: one where more would be no faster, see `engines.runtimes.enough_threads`."""
    gains: Mapping[PositiveInt, PositiveFloat]
    """How many times as fast it runs batches of the sizes that it is compiled for by themselves, see
    `engines.runtimes.specialising`."""
