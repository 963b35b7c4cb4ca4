"""What an 8-bit engine must keep to be served, clause by clause.

A contract that names a metric is that metric of the worst output, and nothing else. The default contract names none
and needs no labels. It has to refuse every engine that is broken, in whatever way, and no engine that is sound, so
each of its clauses closes a gap that the others leave:

| output | clause | least | what it is for |
|---|---|---|---|
| floating | SQNR | `min`, 20 dB | the noise has a hundredth of the answers' energy, a tenth of their size |
| | row SQNR, fifth percentile | `min` - 10 dB | nineteen rows in twenty are good, not the mean alone |
| | variation SQNR | 3 dB | the engine follows its input: of what varies from row to row it keeps the most |
| floating, zero throughout | largest error | 0.001 at most | SQNR has no meaning there |
| floating, like class scores | weighted top-1 agreement | 0.99 | flips cost at most one point of accuracy |
| integers, alone | equal share | 0.99 | answers are right or wrong; one element may always differ |
| integers beside floats | equal share | 0.5 | a guard: the floats say how good the engine is |

Rows are pooled, the worst output counts, and what is not finite where FP32 is fails every clause of its output.

* SQNR. Published 8-bit networks that keep their task's accuracy have 20 to 40 dB at their outputs; those that lost it
  are far below. 20 dB is where nobody has to look at labels.
* The tail. A mean hides a kind of input on which the engine fails, such as one row in ten that clipping broke. Single
  rows scatter around the mean, so they get 10 dB less; quiet rows count as a tenth of the mean row (`accuracy`).
* Variation. Where an output is mostly an offset, a constant answer has any SQNR. 0 dB is the best that a constant
  answer can reach, 3 dB says that at least half of what varies is kept. An output that does not vary, or fewer than 8
  rows, leave the clause out.
* Class scores. Plain agreement is reported, and is no clause: good 8-bit networks flip a few near ties in a hundred,
  and an embedding or a regression is no classifier although its shape is the same. The weighted agreement counts what
  a flip gives away, so near ties and outputs that are no scores cost nothing (`class_scores`). Whoever wants
  plain agreement names it: {"metric": "top1_agreement", "min": 0.99}.
* Softmax outputs are floating outputs: on a distribution with one high peak, 20 dB mean that a tenth of the
  probability is misplaced at most, and surer rows are better. What SQNR would miss is covered: near-uniform
  distributions by the variation clause, the undecided rows by the tail, and choices by the weighted agreement, which
  takes the probabilities as they are.
* Outputs of zero energy, at most 1e-6 anywhere. An output may be silent on all verify rows and still be an output (an
  alarm). An engine that is silent too, up to 0.001, is accepted, and the report says that nothing was proven of it.
* Integers alone, such as classes or token ids that the graph itself picks: there are no scores, so nobody can tell a
  near tie from a fault, and 0.99 is asked for. Of few elements a single near tie would be more than a hundredth, so
  one of 16 or more may always differ. Beside floating outputs (detectors, top-k indices) integers follow from values
  that are already held to 20 dB, and near ties reorder them; half of them must agree, which garbage does not.
* Detections. Boxes and scores of fixed shape are floating outputs. Where NonMaxSuppression is in the graph, the number
  of results depends on the data: an engine that gives another number of them is refused in a sentence that says so.

What no clause can see: an output that packs small values beside large ones (scores beside coordinates in pixels) is
judged by the large ones; and nothing is known about inputs unlike the verify rows.

Bounds. Each clause on a mean has a one-sided 95% lower bound (`confidence`). The value must reach the minimum;
that the bound does not is no reason to refuse, but makes the evidence weak, for SQNR and cosine. The bound of a share
needs 270 rows without a flip to reach 0.99, so it is reported and makes no evidence weak by itself.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from engines.fidelity.accuracy import BEST_DB, Accuracy, OutputAccuracy, to_db
from engines.fidelity.confidence import wilson_lower
from engines.options import Contract, Metric

TAIL_SLACK_DB = 10.0
"""How much lower than `min` the fifth percentile of row SQNRs may be."""
LEAST_VARIATION_DB = 3.0
LEAST_WEIGHTED_TOP1 = 0.99
LEAST_EQUAL = 0.99
LEAST_EQUAL_BESIDE_FLOATS = 0.5
LEAST_ELEMENTS_TO_DIFFER = 16
"""Of fewer elements every one must be equal."""
ZERO_ERROR = 1e-3

MEASURES = {
    "sqnr_db": "SQNR",
    "row_sqnr_p5_db": "SQNR of the fifth-percentile row",
    "variation_sqnr_db": "SQNR of what varies over rows",
    "cosine": "cosine",
    "max_abs_error": "largest error of an output that is zero throughout",
    "top1_agreement": "top-1 agreement",
    "top1_weighted": "weighted top-1 agreement",
    "equal_share": "share of equal elements",
}
"""How people call what clauses measure, by the field of OutputAccuracy."""
_TINY = 1e-9


@dataclass(frozen=True, kw_only=True)
class Clause:
    """One thing that a contract asks of one output."""

    output: str
    # The field of OutputAccuracy that is measured; a unit ends it where it has one.
    measure: str
    value: float
    # The least value, or of `max_abs_error` the largest.
    limit: float
    # What the value of more such rows is at least, with 95% confidence; None where there is no such bound.
    lower: float | None
    rows: int

    @property
    def holds(self) -> bool:
        """Whether the value is within the limit."""
        return self.margin_db >= 0

    @property
    def margin_db(self) -> float:
        """How far within the limit the value is: decibels, also of errors and of what shares lack to 1."""
        if self.measure == "max_abs_error":
            return 2 * to_db(self.limit + _TINY, self.value + _TINY)
        if self.measure.endswith("_db"):
            return self.value - self.limit
        if self.value >= 1.0 >= self.limit:
            # Nothing is better, also where nothing less was asked for.
            return BEST_DB
        return to_db(1.0 - self.limit + _TINY, 1.0 - self.value + _TINY)

    @property
    def near(self) -> bool:
        """Whether more rows of the same kind may miss the limit, by a bound that few rows can meet."""
        return self.measure in ("sqnr_db", "cosine") and self.lower is not None and self.lower < self.limit

    def describe(self) -> str:
        """For messages: `output 'logits': SQNR 18.2 dB over 80 rows, and its contract asks for 20`."""
        decibels = self.measure.endswith("_db")
        value = f"{self.value:.1f} dB" if decibels else f"{self.value:.4g}"
        asks = "allows" if self.measure == "max_abs_error" else "asks for"
        measured = f"{MEASURES[self.measure]} {value} over {self.rows} rows"
        return f"output {self.output!r}: {measured}, and its contract {asks} {self.limit:g}"


def clauses(accuracy: Accuracy, contract: Contract) -> tuple[Clause, ...]:
    """What the contract asks of each output, and what was measured, in the order of the outputs.

    Raises:
        InvalidOptionsError: no output has the contract's metric.
    """
    if contract.metric is not None:
        # Raises where no output has it.
        accuracy.value(contract.metric)
        return tuple(
            _named(output, contract.metric, contract.min) for output in _counted(accuracy, contract.metric)
        )
    alone = all(output.equal_share is not None for output in accuracy.outputs)
    return tuple(
        clause for output in accuracy.outputs for clause in _default(output, contract.min, alone=alone)
    )


def worst_clause(found: Iterable[Clause]) -> Clause:
    """The clause of the smallest margin.

    Raises:
        ValueError: there is none.
    """
    return min(found, key=lambda clause: clause.margin_db)


def contract_margin(accuracy: Accuracy, contract: Contract) -> float:
    """How far above its contract an engine is: decibels, the least over all clauses; it holds from 0 on.

    One scalar for searches: larger is better, also where the contract does not hold.

    Raises:
        InvalidOptionsError: no output has the contract's metric.
    """
    return worst_clause(clauses(accuracy, contract)).margin_db


def contract_value(accuracy: Accuracy, contract: Contract) -> float:
    """What is shown as the value of a contract: its metric of the worst output.

    The default contract is shown as SQNR in decibels, or where all outputs are integers as the share that is equal.

    Raises:
        InvalidOptionsError: no output has the contract's metric.
    """
    if contract.metric is not None:
        return accuracy.value(contract.metric)
    floating = any(output.equal_share is None for output in accuracy.outputs)
    return accuracy.value(Metric.SQNR_DB if floating else Metric.EQUAL_SHARE)


def contract_miss(accuracy: Accuracy, contract: Contract, engine: str = "the 8-bit engine") -> str | None:
    """Why the contract does not hold, as part of a sentence: its worst clause. None where it holds.

    Raises:
        InvalidOptionsError: no output has the contract's metric.
    """
    missed = [clause for clause in clauses(accuracy, contract) if not clause.holds]
    if not missed:
        return None
    # Where the SQNR is missed, it is what people know; the other clauses close gaps.
    noisy = [clause for clause in missed if clause.measure == "sqnr_db"]
    more = f" ({len(missed) - 1} more of its clauses are missed)" if len(missed) > 1 else ""
    return f"{engine} misses its contract{more}: {worst_clause(noisy or missed).describe()}"


def doubts(accuracy: Accuracy, contract: Contract) -> tuple[str, ...]:
    """Why the evidence is weak although the contract holds: what was measured says little, or only just enough.

    Raises:
        InvalidOptionsError: no output has the contract's metric.
    """
    silent = [
        f"output {output.name!r} is zero on all {output.rows} rows, so nothing is proven of it"
        for output in accuracy.outputs
        if output.silent
    ]
    near = [
        f"output {clause.output!r} may miss its contract on other rows: with 95% confidence its "
        f"{MEASURES[clause.measure]} is {clause.lower:.4g} or more, and {clause.limit:g} is asked for"
        for clause in clauses(accuracy, contract)
        if clause.holds and clause.near
    ]
    return (*silent, *near)


def _named(output: OutputAccuracy, metric: Metric, least: float) -> Clause:
    lowers = {Metric.SQNR_DB: output.sqnr_lower_db, Metric.COSINE: output.cosine_lower}
    value = output.value(metric)
    if value is None:
        raise ValueError(f"output {output.name!r} has no {metric.value}.")
    share = metric in (Metric.TOP1_AGREEMENT, Metric.EQUAL_SHARE)
    lower = wilson_lower(value, output.rows) if share else lowers[metric]
    return Clause(
        output=output.name,
        measure=metric.value,
        value=value,
        limit=least,
        lower=None if output.nonfinite else lower,
        rows=output.rows,
    )


def _counted(accuracy: Accuracy, metric: Metric) -> Iterable[OutputAccuracy]:
    """The outputs that `Accuracy.value` takes the least of."""
    floating = [output for output in accuracy.outputs if output.equal_share is None]
    candidates = accuracy.outputs if metric is Metric.EQUAL_SHARE else floating or accuracy.outputs
    return [output for output in candidates if output.value(metric) is not None]


def _default(output: OutputAccuracy, min_db: float, *, alone: bool) -> Iterable[Clause]:
    if output.equal_share is not None:
        yield _equal(output, output.equal_share, alone=alone)
        return
    if output.silent and output.max_abs_error is not None and not output.nonfinite:
        yield Clause(
            output=output.name,
            measure="max_abs_error",
            value=output.max_abs_error,
            limit=ZERO_ERROR,
            lower=None,
            rows=output.rows,
        )
        return
    yield _named(output, Metric.SQNR_DB, min_db)
    limits: Mapping[str, tuple[float | None, float]] = {
        "row_sqnr_p5_db": (output.row_sqnr_p5_db, min_db - TAIL_SLACK_DB),
        "variation_sqnr_db": (output.variation_sqnr_db, LEAST_VARIATION_DB),
        "top1_weighted": (output.top1_weighted, LEAST_WEIGHTED_TOP1),
    }
    for measure, (value, limit) in limits.items():
        if value is None:
            continue
        worst = -BEST_DB if measure.endswith("_db") else 0.0
        yield Clause(
            output=output.name,
            measure=measure,
            value=worst if output.nonfinite else value,
            limit=limit,
            lower=wilson_lower(value, output.rows)
            if measure == "top1_weighted" and not output.nonfinite
            else None,
            rows=output.rows,
        )


def _equal(output: OutputAccuracy, share: float, *, alone: bool) -> Clause:
    limit = LEAST_EQUAL if alone else LEAST_EQUAL_BESIDE_FLOATS
    if output.elements >= LEAST_ELEMENTS_TO_DIFFER:
        limit = min(limit, (output.elements - 1) / output.elements)
    return Clause(
        output=output.name,
        measure="equal_share",
        value=share,
        limit=limit,
        lower=wilson_lower(share, output.rows),
        rows=output.rows,
    )
