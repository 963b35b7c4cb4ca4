"""One way to write an 8-bit model: which variant of the model, which thresholds, which weights, what stays floating."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

from engines import resources
from engines.calibration.magnitudes import with_magnitudes
from engines.calibration.moments import observe_moments, within_memory
from engines.calibration.observer import BATCH_ROWS
from engines.calibration.thresholds import threshold
from engines.model.model import Model
from engines.options import CalibrationMethod, Precision
from engines.phases.calibrating import Observed
from engines.quantization.placement import Placement, place
from engines.quantization.qdq import quantize_model
from engines.quantization.reconstruction import LayerWeights, reconstruct, reconstructible
from engines.quantization.scales import settle
from engines.quantization.scheme import scheme_of
from engines.runtimes.base import Runtime
from engines.samples.importing import SampleView


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be quantized, how, and for which engine."""

    observed: Observed
    method: CalibrationMethod
    # The 8-bit type.
    precision: Precision
    runtime: Runtime
    placement: Placement
    # Clipping threshold of each quantized activation.
    thresholds: Mapping[str, float]
    # The same where no Concat asks for a common scale.
    own_thresholds: Mapping[str, float]
    # By node, weights that were fitted to their inputs; others are rounded to the nearest.
    weights: Mapping[str, LayerWeights] | None = None
    # Whether the products of queries and keys are quantized as well.
    attention: bool = False

    @classmethod
    def of(
        cls, observed: Observed, method: CalibrationMethod, *, precision: Precision, runtime: Runtime
    ) -> Self:
        """The plan that quantizes all that can be, with weights rounded to the nearest."""
        own = {
            name: threshold(histogram, method, precision) for name, histogram in observed.histograms.items()
        }
        placement, thresholds = settle(place(observed.model, precision=precision), own)
        return cls(
            observed=observed,
            method=method,
            precision=precision,
            runtime=runtime,
            placement=placement,
            thresholds=thresholds,
            own_thresholds=own,
        )

    def fitted(self, rows: SampleView) -> Self:
        """The same with weights fitted to what the quantizers leave of their inputs on `rows`.

        Raises:
            EngineRunError: the model fails on the samples.
        """
        model = self.observed.model
        layers = reconstructible(
            model,
            self.placement,
            self.thresholds,
            unsigned=self.runtime.unsigned_activations,
            precision=self.precision,
        )
        if not layers:
            return self
        size = model.fixed_rows or BATCH_ROWS
        scheme = scheme_of(self.precision, weight_bits=self.runtime.weight_bits())
        weights: dict[str, LayerWeights] = {}
        for part in within_memory(layers):
            moments = observe_moments(
                model,
                part,
                rows.batches(size, whole=model.fixed_rows is not None),
                batch_count=len(rows.batch_rows(size)),
                threads=resources.current().threads,
                progress=_unwatched,
            )
            weights |= reconstruct(model, part, moments, scheme.weights)
        return replace(self, weights=weights)

    def with_attention(self) -> Self:
        """The same with the products of queries and keys quantized, where the model has any."""
        return replace(self, attention=True).leaving(frozenset())

    def leaving(self, nodes: frozenset[str]) -> Self:
        """The same with the nodes of these names floating."""
        left = place(self.observed.model, exclude=nodes, precision=self.precision, attention=self.attention)
        placement, thresholds = settle(left, self.own_thresholds)
        return replace(self, placement=placement, thresholds=thresholds)

    def write(self) -> Model:
        """The 8-bit model."""
        quantized = quantize_model(
            self.observed.model,
            self.placement,
            self.thresholds,
            weight_bits=self.runtime.weight_bits(),
            weights=self.weights,
            precision=self.precision,
        )
        magnitudes = self.observed.magnitudes
        return with_magnitudes(quantized, magnitudes) if magnitudes else quantized


def _unwatched(rows: int) -> None:
    """Progress that nobody is told: the phase counts models."""
