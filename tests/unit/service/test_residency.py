from engines.options import BuildOptions
from service.catalog import Version
from service.residency import KEPT_VERSIONS, Key, wanted


def version(model: str, number: int, *, default: bool = False) -> Version:
    return Version(
        model=model,
        number=number,
        build_id=f"{model}{number}",
        files={},
        options=BuildOptions(),
        summary={},
        created_at=0.0,
        default=default,
    )


def none_failed(_: Key) -> bool:
    return False


def all_failed(_: Key) -> bool:
    return True


def test_nothing_published_wants_nothing() -> None:
    assert wanted([], {"m": 1}, none_failed) == []


def test_defaults_load_before_all_others() -> None:
    versions = [version("a", 1), version("a", 2, default=True), version("b", 1, default=True)]
    order = wanted(versions, {}, none_failed)
    assert set(order[:2]) == {("a", 2), ("b", 1)}
    assert order[2:] == [("a", 1)]


def test_keeps_the_newest_versions_besides_an_old_default() -> None:
    versions = [version("m", number, default=number == 1) for number in range(1, 9)]
    assert wanted(versions, {"m": 1}, none_failed) == [
        ("m", 1),
        *(("m", number) for number in range(8, 8 - KEPT_VERSIONS, -1)),
    ]


def test_what_answers_stays_until_the_new_default_can() -> None:
    versions = [version("m", number, default=number == 9) for number in range(1, 10)]
    assert ("m", 1) in wanted(versions, {"m": 1}, none_failed)
    assert ("m", 1) not in wanted(versions, {"m": 9}, none_failed)


def test_a_deleted_version_stands_in_until_the_default_loads_or_fails() -> None:
    versions = [version("m", 2, default=True)]
    assert wanted(versions, {"m": 1}, none_failed) == [("m", 2), ("m", 1)]
    assert wanted(versions, {"m": 1}, all_failed) == [("m", 2)]
    assert wanted(versions, {"m": 2}, none_failed) == [("m", 2)]


def test_a_published_version_stands_in_for_a_default_that_failed() -> None:
    versions = [version("m", number, default=number == 9) for number in range(1, 10)]
    assert ("m", 1) in wanted(versions, {"m": 1}, all_failed)


def test_a_model_without_versions_answers_no_more() -> None:
    assert wanted([version("other", 1, default=True)], {"m": 1}, none_failed) == [("other", 1)]
