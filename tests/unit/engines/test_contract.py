"""The default contract: what it refuses, what it lets pass, and how far from it an engine is."""

import numpy as np
import pytest
from numpy.typing import NDArray

from engines.errors import InvalidOptionsError
from engines.fidelity.accuracy import BEST_DB, Accuracy, Comparison
from engines.fidelity.class_scores import probabilities
from engines.fidelity.contract import clauses, contract_margin, contract_miss, contract_value, doubts
from engines.model.tensors import Array
from engines.options import Contract, Metric

DEFAULT = Contract()


def compare(**outputs: tuple[Array, Array]) -> Accuracy:
    comparison = Comparison()
    comparison.add(
        {name: right for name, (right, _) in outputs.items()},
        {name: found for name, (_, found) in outputs.items()},
    )
    return comparison.result()


def normal(*shape: int, seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(size=shape)


def noisy(values: NDArray[np.float64], sqnr_db: float) -> NDArray[np.float64]:
    """The values with noise of exactly this SQNR."""
    noise = normal(*values.shape, seed=9)
    shaken: NDArray[np.float64] = values + noise * np.sqrt((values**2).sum() / (noise**2).sum()) * 10 ** (
        -sqnr_db / 20
    )
    return shaken


def missed(accuracy: Accuracy, contract: Contract = DEFAULT) -> list[str]:
    return [f"{c.output}.{c.measure}" for c in clauses(accuracy, contract) if not c.holds]


def test_twenty_decibels_on_every_floating_output_are_asked_for() -> None:
    maps = normal(64, 3, 4, 4)
    assert missed(compare(maps=(maps, noisy(maps, 20.1)))) == []
    assert missed(compare(maps=(maps, noisy(maps, 19.9)))) == ["maps.sqnr_db"]
    both = compare(good=(maps, maps), bad=(maps, noisy(maps, 15.0)))
    assert missed(both) == ["bad.sqnr_db"]
    assert contract_margin(both, DEFAULT) == pytest.approx(-5.0)
    assert missed(both, Contract(min=14)) == []


def test_a_refusal_names_output_figure_rows_and_what_is_asked_for() -> None:
    maps = normal(64, 3, 4, 4)
    assert contract_miss(compare(maps=(maps, noisy(maps, 18.2))), DEFAULT) == (
        "the 8-bit engine misses its contract: output 'maps': SQNR 18.2 dB over 64 rows, and its contract asks for 20"
    )
    broken = str(contract_miss(compare(maps=(maps, 0 * maps)), DEFAULT))
    assert broken.startswith(
        "the 8-bit engine misses its contract (2 more of its clauses are missed): output 'maps'"
    )
    assert contract_miss(compare(maps=(maps, maps)), DEFAULT) is None
    # The SQNR is named first, also where another clause is missed by more.
    kelvin = 290 + normal(64, 1)
    assert ": output 'kelvin': SQNR 12.0 dB over" in str(
        contract_miss(compare(kelvin=(kelvin, 0.75 * kelvin)), DEFAULT)
    )


def test_a_tenth_of_the_rows_must_not_be_broken_although_the_mean_is_good() -> None:
    maps = normal(100, 300)
    maps[:10] *= 0.3
    candidate = maps.copy()
    candidate[:10] = 0
    accuracy = compare(maps=(maps[:, :, None], candidate[:, :, None]))
    assert accuracy.value(Metric.SQNR_DB) > 20
    assert missed(accuracy) == ["maps.row_sqnr_p5_db"]


def test_a_constant_answer_misses_the_contract_also_where_most_of_the_output_is_an_offset() -> None:
    kelvin = 290 + 5 * normal(64, 1)
    assert missed(compare(kelvin=(kelvin, np.full_like(kelvin, 290)))) == ["kelvin.variation_sqnr_db"]
    assert missed(compare(kelvin=(kelvin, kelvin + normal(64, 1, seed=1)))) == []


def test_flips_that_give_away_more_than_a_point_of_accuracy_are_refused() -> None:
    scores = 0.1 * normal(64, 10)
    scores[np.arange(64), np.arange(64) % 10] += 9.0
    candidate = scores.copy()
    # Two rows in which the second class overtakes a sure first one.
    candidate[:2] = np.roll(candidate[:2], 1, axis=1)
    accuracy = compare(scores=(scores, candidate))
    (clause,) = (c for c in clauses(accuracy, DEFAULT) if c.measure == "top1_weighted")
    assert clause.value == pytest.approx(62 / 64, abs=0.003)
    assert not clause.holds
    assert clause.lower is not None
    assert clause.lower < clause.value


def test_scores_whose_offset_hides_the_noise_are_refused() -> None:
    scores = 100 + 2 * normal(128, 10)
    accuracy = compare(scores=(scores, scores + 1.2 * normal(128, 10, seed=1)))
    assert accuracy.value(Metric.SQNR_DB) > 35
    assert missed(accuracy) == ["scores.top1_weighted"]


def test_near_ties_may_flip() -> None:
    scores = 2 * normal(200, 1000)
    accuracy = compare(scores=(scores, noisy(scores, 24.0)))
    assert accuracy.outputs[0].top1_agreement is not None
    assert accuracy.outputs[0].top1_agreement < 0.97
    assert missed(accuracy) == []


def test_a_good_embedding_is_not_refused_for_its_highest_component() -> None:
    embedding = normal(128, 384)
    embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
    accuracy = compare(embedding=(embedding, noisy(embedding, 21.0)))
    assert accuracy.outputs[0].top1_agreement is not None
    assert accuracy.outputs[0].top1_agreement < 0.95
    assert missed(accuracy) == []


def test_probabilities_are_taken_as_they_are() -> None:
    shares = probabilities(3 * normal(128, 5))
    close = probabilities(noisy(3 * normal(128, 5), 30.0))
    assert missed(compare(shares=(shares, close))) == []
    assert "shares.top1_weighted" in missed(compare(shares=(shares, np.roll(shares, 1, axis=1))))
    # Near-uniform: a constant answer has any SQNR.
    flat = probabilities(0.03 * normal(128, 5))
    assert missed(compare(shares=(flat, np.full_like(flat, 0.2)))) == ["shares.variation_sqnr_db"]


@pytest.mark.parametrize(
    ("error", "holds"), [(0.0, True), (1e-9, True), (9e-4, True), (2e-3, False), (1.0, False)]
)
def test_an_output_of_zeros_may_be_off_by_a_thousandth(error: float, *, holds: bool) -> None:
    zeros = np.zeros((64, 3))
    accuracy = compare(alarm=(zeros, zeros + error))
    (clause,) = clauses(accuracy, DEFAULT)
    assert (clause.measure, clause.holds) == ("max_abs_error", holds)
    assert doubts(accuracy, DEFAULT) == ("output 'alarm' is zero on all 64 rows, so nothing is proven of it",)
    if error == 1.0:
        assert str(contract_miss(accuracy, DEFAULT)).endswith(
            "output 'alarm': largest error of an output that is zero throughout 1 over 64 rows, and its contract "
            "allows 0.001"
        )


def test_what_is_not_finite_fails_every_clause_of_its_output() -> None:
    scores = normal(64, 10)
    candidate = scores.copy()
    candidate[3, 3] = np.nan
    assert len(missed(compare(scores=(scores, candidate)))) == 4
    zeros = np.zeros((64, 3))
    assert missed(compare(alarm=(zeros, np.full_like(zeros, np.inf))))[0] == "alarm.sqnr_db"


def test_integers_alone_must_be_equal_but_for_a_hundredth_or_one() -> None:
    labels = np.arange(1000)

    def off(count: int, of: int) -> list[str]:
        return missed(compare(label=(labels[:of], np.where(labels < count, -1, labels)[:of])))

    assert off(10, 1000) == []
    assert off(11, 1000) == ["label.equal_share"]
    assert off(1, 16) == []
    assert off(2, 16) == ["label.equal_share"]
    assert off(1, 15) == ["label.equal_share"]
    assert off(0, 3) == []


def test_integers_beside_floats_need_to_be_half_right() -> None:
    scores, ids = normal(64, 10), np.arange(64)
    some, most = np.where(ids < 30, -1, ids), np.where(ids < 40, -1, ids)
    assert missed(compare(scores=(scores, scores), ids=(ids, some))) == []
    assert missed(compare(scores=(scores, scores), ids=(ids, most))) == ["ids.equal_share"]


def test_an_explicit_contract_is_its_metric_of_each_output_and_nothing_else() -> None:
    scores = 290 + normal(64, 10)
    accuracy = compare(scores=(scores, noisy(scores, 25.0)), ids=(np.arange(64), np.zeros(64, np.int64)))
    (clause,) = clauses(accuracy, Contract(metric=Metric.SQNR_DB, min=24))
    assert (clause.output, clause.measure, clause.limit, clause.holds) == ("scores", "sqnr_db", 24, True)
    assert clause.value == contract_value(accuracy, Contract(metric=Metric.SQNR_DB, min=24))
    assert clause.margin_db == pytest.approx(1.0)
    assert missed(accuracy, Contract(metric=Metric.SQNR_DB, min=26)) == ["scores.sqnr_db"]
    assert missed(accuracy, Contract(metric=Metric.EQUAL_SHARE, min=0.9)) == ["ids.equal_share"]
    with pytest.raises(InvalidOptionsError):
        clauses(compare(maps=(normal(64, 3, 4), normal(64, 3, 4))), Contract(metric=Metric.TOP1_AGREEMENT))


@pytest.mark.parametrize("metric", [Metric.COSINE, Metric.TOP1_AGREEMENT])
def test_the_margin_has_the_sign_of_the_contract_and_grows_with_what_is_measured(metric: Metric) -> None:
    scores = normal(400, 10)
    accuracies = [compare(scores=(scores, noisy(scores, sqnr_db))) for sqnr_db in (0, 10, 20, 30)]
    contract = Contract(metric=metric, min=accuracies[2].value(metric))
    margins = [contract_margin(accuracy, contract) for accuracy in accuracies]
    assert margins == sorted(margins)
    assert margins[1] < 0 == margins[2]
    assert margins[3] > 3
    assert (
        contract_margin(compare(scores=(scores, noisy(scores, 10.0))), Contract(metric=metric, min=1.0)) < 0
    )


def test_what_is_perfect_has_room_to_spare_also_where_nothing_less_was_asked_for() -> None:
    labels = np.arange(40)
    contract = Contract(metric=Metric.EQUAL_SHARE, min=1.0)
    assert contract_margin(compare(label=(labels, labels)), contract) == BEST_DB
    assert contract_margin(compare(label=(labels, np.where(labels == 3, 0, labels))), contract) < 0


def test_the_margin_is_finite_for_the_best_and_the_worst() -> None:
    maps = normal(64, 3, 4)
    assert contract_margin(compare(maps=(maps, maps)), DEFAULT) == BEST_DB - 20
    assert contract_margin(compare(maps=(maps, maps * np.nan)), DEFAULT) == -BEST_DB - 20


def test_the_value_of_the_default_contract_is_the_sqnr_or_the_equal_share() -> None:
    maps, ids = normal(64, 3, 4), np.arange(64)
    both = compare(maps=(maps, noisy(maps, 27.0)), ids=(ids, ids))
    assert contract_value(both, DEFAULT) == pytest.approx(27.0)
    assert contract_value(compare(ids=(ids, np.where(ids < 16, -1, ids))), DEFAULT) == 0.75


def test_a_bound_under_the_contract_is_a_doubt_and_no_miss() -> None:
    maps = normal(40, 3, 4, 4)
    accuracy = compare(maps=(maps, noisy(maps, 20.05)))
    assert contract_miss(accuracy, DEFAULT) is None
    (doubt,) = doubts(accuracy, DEFAULT)
    assert doubt.startswith(
        "output 'maps' may miss its contract on other rows: with 95% confidence its SQNR is 19."
    )
    assert doubts(compare(maps=(maps, noisy(maps, 25.0))), DEFAULT) == ()
    # What is missed is a reason to refuse, not to doubt.
    assert doubts(compare(maps=(maps, noisy(maps, 15.0))), DEFAULT) == ()
    # Agreement needs more rows than most builds have, so it raises no doubt.
    assert doubts(compare(scores=(normal(40, 4), normal(40, 4))), DEFAULT) == ()
