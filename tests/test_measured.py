"""Measured numbers agree within their tolerance, and no further."""

from typing import Any

import pytest

from diffusion_var.measured import agree, is_measured, measured


def numbers(off: float = 0.0, within: float = 0.01, of: str = "x") -> dict[str, Any]:
    return measured([3.0 + off, -4.0], within, of)


@pytest.mark.parametrize(
    ("off", "within", "same"), [(0.0, 0.01, True), (0.03, 0.01, True), (0.04, 0.01, False), (0.04, 0.02, True)]
)
def test_the_larger_tolerance_counts_relative_to_the_root_mean_square(off: float, within: float, same: bool) -> None:
    assert agree(numbers(), numbers(off, within)) is same  # the root-mean-square of 3 and 4 is 3.54
    assert agree(numbers(off, within), numbers()) is same


def test_what_is_not_known_or_of_something_else_is_not_compared() -> None:
    assert agree(numbers(), None)
    assert agree(numbers(), numbers(9.0, of="y"))
    assert not agree(numbers(), 5)
    assert agree(5, 5)
    assert not agree(5, 6)


@pytest.mark.parametrize(
    "change", [{"of": ""}, {"of": 5}, {"values": []}, {"values": ["x"]}, {"values": [float("nan")]}, {"within": 5.0}]
)
def test_what_is_no_measurement(change: dict[str, Any]) -> None:
    assert is_measured(numbers())
    assert not is_measured({**numbers(), **change})
