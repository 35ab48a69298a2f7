"""The checks around prunekit's functions in tests: types, shapes, and names of dimensions that are one number."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jaxtyping
import pytest
import torch
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import Float
from support.shapes import checked
from torch import Tensor

import prunekit.losses

if TYPE_CHECKING:
    from somewhere import Thing


def check(definition: Any) -> Any:
    return checked(definition, typechecker=None)


@check
def product(left: Float[Tensor, "rows inner"], right: Float[Tensor, "inner columns"]) -> Float[Tensor, "rows columns"]:
    return left @ right if len(left) != 5 else left


@check
def rows(matrix: Float[Tensor, "rows columns"]) -> Iterator[Float[Tensor, "columns"]]:
    yield from matrix


@check
@dataclass
class Pair:
    first: Float[Tensor, "size"]
    second: Float[Tensor, "size"]


@check
def doubled(number: int) -> int:
    return number * 2 if number < 9 else str(number)


@check
def whatever(thing: Thing, number: int) -> Thing:
    return thing


def test_a_named_dimension_is_one_number_within_a_call_and_free_in_the_next():
    assert product(torch.ones(2, 3), torch.ones(3, 4)).shape == (2, 4)
    assert product(torch.ones(4, 1), torch.ones(1, 2)).shape == (4, 2)
    with pytest.raises(BeartypeCallHintViolation, match="right"):
        product(torch.ones(2, 3), torch.ones(2, 3))
    with pytest.raises(BeartypeCallHintViolation, match="return"):
        product(torch.ones(5, 3), torch.ones(3, 4))


def test_a_call_within_a_call_has_names_of_its_own():
    @check
    def outer(matrix: Float[Tensor, "rows inner"]) -> Float[Tensor, "rows rows"]:
        return product(matrix, matrix.T)

    assert outer(torch.ones(2, 3)).shape == (2, 2)


def test_what_a_generator_yields_is_handed_on():
    assert [len(row) for row in rows(torch.ones(2, 3))] == [3, 3]
    with pytest.raises(BeartypeCallHintViolation, match="matrix"):
        next(rows(torch.ones(2)))


def test_the_fields_of_a_dataclass_are_compared():
    Pair(torch.ones(2), torch.ones(2))
    with pytest.raises(BeartypeCallHintViolation, match="second"):
        Pair(torch.ones(2), torch.ones(3))


def test_other_types_are_checked_where_they_are_known():
    assert doubled(2) == 4
    with pytest.raises(BeartypeCallHintViolation, match="number"):
        doubled("2")
    with pytest.raises(BeartypeCallHintViolation, match="return"):
        doubled(9)
    assert whatever("any", 1) == "any"
    with pytest.raises(BeartypeCallHintViolation, match="number"):
        whatever("any", "1")


def test_nothing_is_checked_while_jaxtyping_is_switched_off():
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        assert whatever("any", "1") == "any"
        assert product(torch.ones(5, 3), torch.ones(2)).shape == (5, 3)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def test_annotations_stay_as_they_were_written():
    assert whatever.__annotations__ == {"thing": "Thing", "number": "int", "return": "Thing"}
    assert product.__annotations__["left"] == "Float[Tensor, 'rows inner']"
    assert str(inspect.signature(doubled)) == "(number: 'int') -> 'int'"


def test_functions_of_prunekit_are_checked(request):
    if not request.config.getoption("--jaxtyping-packages"):
        pytest.skip("switched off by --jaxtyping-packages=")
    with pytest.raises(BeartypeCallHintViolation):
        prunekit.losses.value_loss(torch.ones(2, 1), torch.ones(3))
