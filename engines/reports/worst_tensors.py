"""Histograms for the report: of the activations that lose most in 8 bits, in few enough bins to be drawn."""

import json
from collections.abc import Mapping

import numpy as np

from engines.calibration.error import noise_to_signal
from engines.calibration.histogram import Histogram
from engines.fidelity.accuracy import to_db
from engines.options import Precision
from engines.reports.details import HistogramReport
from engines.workspace import CALIBRATION, HISTOGRAMS, Workspace

WORST = 10
DRAWN_BINS = 64


def read_histograms(workspace: Workspace) -> dict[str, Histogram]:
    """The histogram of each activation that was calibrated, by tensor; empty where none was."""
    table, stored = workspace.path(CALIBRATION), workspace.path(HISTOGRAMS)
    if not (table.exists() and stored.exists()):
        return {}
    names = list(json.loads(table.read_bytes())["tensors"])
    fields = Histogram.empty().to_arrays()
    with np.load(stored, allow_pickle=False) as arrays:
        return {
            name: Histogram.from_arrays({field: arrays[f"{number}.{field}"] for field in fields})
            for number, name in enumerate(names)
        }


def worst_histograms(
    histograms: Mapping[str, Histogram], thresholds: Mapping[str, float], precision: Precision
) -> tuple[HistogramReport, ...]:
    """Those of the tensors with the most noise for their signal at their thresholds, the worst first.

    Tensors without a threshold, or without noise, are left out.
    """
    noise = {
        name: noise_to_signal(histogram, thresholds[name], precision)
        for name, histogram in histograms.items()
        if thresholds.get(name, 0.0) > 0
    }
    worst = sorted((name for name in noise if noise[name] > 0), key=lambda name: -noise[name])[:WORST]
    return tuple(_report(name, histograms[name], thresholds[name], noise[name]) for name in worst)


def _report(name: str, histogram: Histogram, threshold: float, noise: float) -> HistogramReport:
    counts, bin_width = coarse(histogram)
    return HistogramReport(
        tensor=name,
        counts=counts,
        bin_width=bin_width,
        zeros=histogram.zeros,
        absmax=histogram.absmax,
        threshold=threshold,
        sqnr_db=round(to_db(1.0, noise), 2),
    )


def coarse(histogram: Histogram) -> tuple[tuple[int, ...], float]:
    """Counts in `DRAWN_BINS` bins at most, up to the last one that holds a value, and their width."""
    filled = np.flatnonzero(histogram.counts)
    used = int(filled[-1]) + 1 if len(filled) else 1
    folded = -(-used // DRAWN_BINS)
    bins = -(-used // folded)
    counts = np.zeros(bins * folded, np.int64)
    counts[:used] = histogram.counts[:used]
    sums = counts.reshape(bins, folded).sum(axis=1)
    return tuple(int(count) for count in sums), histogram.bin_width * folded
