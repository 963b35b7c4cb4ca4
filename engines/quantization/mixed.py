"""Mixed precision: the fewest layers to leave in floating point, so that the others keep the contract.

A few layers hold most of the error of a model that 8 bits break, so they are ranked by what leaving each one floating
wins, and the shortest run of the ranking that keeps the contract is found by bisection. (H. Wu et al., "Integer
Quantization for Deep Learning Inference", 2020, arXiv:2004.09602, section 6.1, leave layers floating in order of their
sensitivity until the accuracy is met.) The search sees a model only through an `evaluate` that it calls a bounded
number of times.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from engines.quantization.placement import Placement

Evaluate = Callable[[frozenset[str]], float]
"""Takes the names of the nodes that stay floating and gives a measure of the contract, larger is better; minus infinity
where there is no such engine."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Nodes that stay floating together or not at all, because they read the same quantizer."""

    # The activation that they share.
    tensor: str
    # Names of the layers, and of the residual Adds, that read it.
    nodes: frozenset[str]
    # A guess of what its quantization costs, in any unit: larger groups are tried first.
    estimate: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Point:
    """One measurement of the search."""

    # Names of the nodes that were floating.
    excluded: frozenset[str]
    # How many groups these are.
    groups: int
    value: float


@dataclass(frozen=True, kw_only=True)
class MixedPrecision:
    """What a search found."""

    # The groups to leave floating, in the order they were given in. Where nothing met the contract, those of the
    # best value.
    floating: tuple[Group, ...]
    # What was measured with them floating.
    value: float
    # Whether that meets the contract and its margin.
    meets: bool
    # Everything that was measured, in order; none twice.
    points: tuple[Point, ...]

    @property
    def excluded(self) -> frozenset[str]:
        """Names of the nodes to leave floating: what `place` takes."""
        return _nodes(self.floating)

    @property
    def evaluations(self) -> int:
        """How often `evaluate` was called."""
        return len(self.points)


def groups_of(placement: Placement, estimates: Mapping[str, float] | None = None) -> tuple[Group, ...]:
    """One group per quantized activation: the layers and residual sums that read it. No node is in two of them.

    A product of two activations brings both into one group. Concats are in none: they stay 8 bits wide for as long
    as everything behind them is.

    Args:
        placement: everything that may be quantized.
        estimates: by tensor, a guess of what its group costs, for example `calibration.error.noise_to_signal`.
    """
    known = estimates or {}
    concats = frozenset(name for scale in placement.shared for name in scale.nodes)
    groups: dict[str, Group] = {}
    for activation in placement.activations:
        tensor, estimate = activation.tensor, known.get(activation.tensor, 0.0)
        nodes = frozenset(use.node for use in activation.uses) - concats
        met = [group for group in groups.values() if group.nodes & nodes]
        if met:
            # What came first names the group.
            tensor, estimate = met[0].tensor, estimate + sum(group.estimate for group in met)
            nodes = nodes.union(*(groups.pop(group.tensor).nodes for group in met))
        if nodes:
            groups[tensor] = Group(tensor=tensor, nodes=nodes, estimate=estimate)
    return tuple(groups.values())


def search(groups: Sequence[Group], evaluate: Evaluate, *, least: float, budget: int) -> MixedPrecision:
    """Finds the fewest groups that have to stay floating for `evaluate` to reach `least`.

    First nothing stays floating, then each group alone; where the budget is too small for all of them, those of the
    largest estimates, and the estimates rank the others. Then the ranking is bisected, and last every group that
    is floating is tried in 8 bits again, the least important first. One evaluation is kept back for everything
    floating, so a contract that can be kept is kept with any budget of at least 2. Where the error is the sum of
    the groups' errors and the budget covers the ranking, no fewer groups would do.

    Args:
        groups: of which no node is in two.
        evaluate: measures on rows that neither calibrate nor prove.
        least: the value that must be reached.
        budget: the most evaluations, at least 1. Two per group and a few more cover all of it.

    Raises:
        ValueError: the budget is less than 1.
    """
    if budget < 1:
        raise ValueError(f"the budget is {budget} evaluations; give at least 1.")
    run = _Search(groups, evaluate, least, budget)
    if not run.reaches(frozenset()):
        ranking = run.ranking()
        if not run.met:
            run.bisect(ranking)
        run.give_back(ranking)
    return run.result()


class _Search:
    """Groups are numbers here, as their positions in `groups`."""

    def __init__(self, groups: Sequence[Group], evaluate: Evaluate, least: float, budget: int) -> None:
        self._groups = tuple(groups)
        self._evaluate = evaluate
        self._least = least
        self._budget = budget
        self._all = frozenset(range(len(self._groups)))
        # By the groups that were floating, in the order of measuring.
        self._values: dict[frozenset[int], float] = {}

    @property
    def met(self) -> bool:
        return any(value >= self._least for value in self._values.values())

    def reaches(self, floating: frozenset[int]) -> bool | None:
        """Whether it does, by measuring it at most once; None where that is beyond the budget."""
        if floating not in self._values:
            if self._left(floating) < 1:
                return None
            value = self._evaluate(_nodes(self._groups[index] for index in floating))
            self._values[floating] = -math.inf if math.isnan(value) else value
        return self._values[floating] >= self._least

    def ranking(self) -> list[int]:
        """All groups, the one whose floating wins most first. Stops early at one that is enough alone."""
        guessed = sorted(self._all, key=lambda index: -self._groups[index].estimate)
        bisections = math.ceil(math.log2(max(1, len(guessed))))
        affordable = max(0, self._left(frozenset()) - bisections)
        gains: dict[int, float] = {}
        for index in guessed[:affordable]:
            reached = self.reaches(frozenset({index}))
            if reached is None:
                break
            # Plainly better, where nothing in 8 bits can run at all; no better, where this cannot run either.
            alone = self._values[frozenset({index})]
            gains[index] = alone - self._values[frozenset()] if alone > -math.inf else -math.inf
            if reached:
                break

        def order(index: int) -> tuple[int, float]:
            """Those that were seen to win something, then those that were not looked at, then the useless."""
            gain = gains.get(index)
            if gain is None:
                return 1, 0.0
            return (0, -gain) if gain > 0 else (2, -gain)

        return sorted(guessed, key=order)

    def bisect(self, ranking: Sequence[int]) -> None:
        """The shortest run of the ranking that is enough; everything, where no shorter one was."""
        too_short, enough = 0, len(ranking)
        while enough - too_short > 1:
            middle = (too_short + enough) // 2
            reached = self.reaches(frozenset(ranking[:middle]))
            if reached is None:
                break
            if reached:
                enough = middle
            else:
                too_short = middle
        if not self.met:
            self.reaches(self._all)

    def give_back(self, ranking: Sequence[int]) -> None:
        """Tries each group of the best set in 8 bits again."""
        if not self.met:
            return
        floating = self._best()
        for index in reversed(ranking):
            if index in floating and self.reaches(floating - {index}):
                floating -= {index}

    def result(self) -> MixedPrecision:
        best = self._best()
        return MixedPrecision(
            floating=tuple(self._groups[index] for index in sorted(best)),
            value=self._values[best],
            meets=self.met,
            points=tuple(
                Point(
                    excluded=_nodes(self._groups[index] for index in floating),
                    groups=len(floating),
                    value=value,
                )
                for floating, value in self._values.items()
            ),
        )

    def _best(self) -> frozenset[int]:
        """The fewest that are enough, of the best value; where nothing is, the best value with the fewest."""
        enough = [floating for floating, value in self._values.items() if value >= self._least]
        if enough:
            return min(enough, key=lambda floating: (len(floating), -self._values[floating]))
        return min(self._values, key=lambda floating: (-self._values[floating], len(floating)))

    def _left(self, floating: frozenset[int]) -> int:
        """Evaluations that may be spent on it: one is kept back for everything floating."""
        kept_back = (
            not self.met and self._all not in self._values and floating not in (frozenset(), self._all)
        )
        return self._budget - len(self._values) - int(kept_back)


def _nodes(groups: Iterable[Group]) -> frozenset[str]:
    return frozenset(node for group in groups for node in group.nodes)
