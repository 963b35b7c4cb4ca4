import pytest

from engines.errors import InvalidOptionsError
from engines.options import BuildOptions, OnMiss


def test_a_missed_contract_is_mixed_by_default() -> None:
    assert BuildOptions().on_miss is OnMiss.MIX


@pytest.mark.parametrize("choice", list(OnMiss))
def test_every_choice_is_read_from_json(choice: OnMiss) -> None:
    assert BuildOptions.parse(f'{{"on_miss": "{choice.value}"}}').on_miss is choice


def test_unknown_choice_is_refused_by_name_with_those_there_are() -> None:
    with pytest.raises(InvalidOptionsError, match=r"option 'on_miss' cannot be 'ignore'.*mix.*fail.*publish"):
        BuildOptions.parse({"on_miss": "ignore"})
