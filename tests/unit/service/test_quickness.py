from service.batching.quickness import LEAST_RUNS, QUICK_S, Quickness

ALONE = ((1, 2),)
FULL = ((32, 2),)


def learned(*took_s: float) -> Quickness:
    quickness = Quickness()
    for each_s in took_s:
        quickness.learn(ALONE, each_s)
    return quickness


def test_batches_that_were_quick_often_enough_fit_the_loop() -> None:
    assert not learned(*[QUICK_S / 2] * (LEAST_RUNS - 1)).fits_the_loop(ALONE)
    assert learned(*[QUICK_S / 2] * LEAST_RUNS).fits_the_loop(ALONE)


def test_batches_that_take_longer_never_do() -> None:
    assert not learned(*[QUICK_S * 2] * 100).fits_the_loop(ALONE)


def test_each_shape_is_known_by_itself() -> None:
    quickness = learned(*[QUICK_S / 2] * LEAST_RUNS)
    assert not quickness.fits_the_loop(FULL)


def test_a_run_that_was_held_up_once_is_no_reason() -> None:
    assert learned(*[QUICK_S / 2] * LEAST_RUNS, 1.0).fits_the_loop(ALONE)


def test_an_engine_that_has_become_slow_leaves_the_loop() -> None:
    assert not learned(*[QUICK_S / 2] * LEAST_RUNS, *[1.0] * 5).fits_the_loop(ALONE)


def test_an_engine_that_was_held_up_at_first_comes_to_the_loop_at_once() -> None:
    assert learned(*[1.0] * LEAST_RUNS, QUICK_S / 2).fits_the_loop(ALONE)
