"""When versions that nobody has tried are expected not to fit."""

from service.serving.misfits import Misfits


def test_a_few_misfits_say_nothing_of_the_others() -> None:
    misfits = Misfits()
    for _ in range(2):
        misfits.note(100)
        assert not misfits.expects(0)
    misfits.note(100)
    assert misfits.expects(0)


def test_the_smallest_misfit_tells_what_room_is_too_little() -> None:
    misfits = Misfits()
    for size_bytes in (200, 100, 300, 400):
        misfits.note(size_bytes)
    assert misfits.expects(99)
    assert not misfits.expects(100)
