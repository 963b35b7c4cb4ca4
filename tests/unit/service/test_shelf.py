from service.serving.shelf import Shelf

A, B, C = ("a", 1), ("b", 1), ("c", 1)


def test_wants_what_is_kept_and_first_what_was_called() -> None:
    shelf = Shelf()
    assert shelf.wanted([A, B]) == [A, B]
    assert shelf.call(C)
    assert not shelf.call(C)
    shelf.call(B)
    assert shelf.wanted([A, B]) == [C, B, A]


def test_who_sleeps_is_not_wanted_until_it_is_called() -> None:
    shelf = Shelf()
    shelf.call(A)
    shelf.sleep(A, "memory is full")
    assert (shelf.wanted([A, B]), shelf.reason(A), shelf.is_called(A)) == ([B], "memory is full", False)
    shelf.call(A)
    assert (shelf.wanted([A, B]), shelf.reason(A)) == ([A, B], None)


def test_a_call_does_not_bring_back_what_was_put_away() -> None:
    shelf = Shelf()
    shelf.call(A)
    shelf.put_away("a")
    shelf.call(A)
    assert shelf.wanted([A, B]) == [B]
    assert "unloaded on request" in str(shelf.reason(A))
    shelf.bring_back("a")
    assert shelf.wanted([A, B]) == [A, B]


def test_a_call_ends_where_the_version_is_kept_anyway() -> None:
    shelf = Shelf()
    for key in (A, B, C):
        shelf.call(key)
    shelf.settle(published={A, B, C}, kept={A, B}, loaded={A, C})
    assert [key for key in (A, B, C) if shelf.is_called(key)] == [B, C]


def test_versions_that_are_gone_are_forgotten() -> None:
    shelf = Shelf()
    shelf.call(A)
    shelf.sleep(B, "idle")
    shelf.settle(published=set(), kept=set(), loaded=set())
    assert (shelf.is_called(A), shelf.reason(B)) == (False, None)
