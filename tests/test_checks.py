"""The vocabulary of refusals: what passes, in which type it comes back, and the sentence for what does not."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from diffusion_var import InputError, checks

BOOLS = [True, False, np.bool_(True), torch.tensor(True)]
THREES = [3, 3.0, np.int64(3), np.float32(3.0), np.array(3), torch.tensor(3)]


@pytest.mark.parametrize("value", THREES, ids=repr)
def test_a_whole_number_of_any_type_comes_back_as_an_int(value: Any) -> None:
    found = checks.whole("steps", value, least=1)
    assert found == 3
    assert type(found) is int


@pytest.mark.parametrize("value", [*BOOLS, 2.5, math.nan, math.inf, "3", None, [3], np.array([3]), torch.tensor([3])])
def test_no_whole_number(value: Any) -> None:
    assert not checks.is_whole(value)
    with pytest.raises(InputError, match=r"^steps=.* must be a whole number of at least 1\.$"):
        checks.whole("steps", value, least=1)


def test_whole_numbers_out_of_range_are_told_the_range() -> None:
    for options, said in (
        ({"least": 4}, "steps=3 must be a whole number of at least 4."),
        ({"least": 1, "most": 2}, "steps=3 must be a whole number from 1 to 2."),
        ({"least": 4, "hint": "take more"}, "steps=3 must be a whole number of at least 4; take more."),
    ):
        with pytest.raises(InputError) as error:
            checks.whole("steps", 3, **options)
        assert str(error.value) == said
    assert checks.whole("n", -3) == -3


@pytest.mark.parametrize("value", BOOLS, ids=repr)
@pytest.mark.parametrize(
    "check",
    [
        lambda value: checks.whole("x", value),
        lambda value: checks.number("x", value),
        lambda value: checks.positive("x", value),
        lambda value: checks.interval("x", value, 0, 1, "choose another"),
        lambda value: checks.seed(value),
    ],
    ids=["whole", "number", "positive", "interval", "seed"],
)
def test_booleans_are_no_numbers_anywhere(check: Callable[[Any], Any], value: Any) -> None:
    with pytest.raises(InputError, match="="):
        check(value)


def test_numbers() -> None:
    assert checks.number("x", torch.tensor(0.5)) == 0.5
    assert checks.number("x", -2, least=-2.0) == -2.0
    assert checks.positive("x", np.float32(0.25)) == 0.25
    assert checks.interval("eta", 1, 0.0, 1.0, "use 1") == 1.0
    for value in (math.nan, math.inf, "0.5", None, [0.5], np.array([0.5])):
        with pytest.raises(InputError, match=r"^x=.* must be a finite number\.$"):
            checks.number("x", value)
        with pytest.raises(InputError, match=r"^x=.* must be a positive number\.$"):
            checks.positive("x", value)
    with pytest.raises(InputError, match=r"^x=0 must be a positive number\.$"):
        checks.positive("x", 0)
    with pytest.raises(InputError, match=r"^eta=1\.5 is outside \[0, 1\]; use 1\.$"):
        checks.interval("eta", 1.5, 0.0, 1.0, "use 1")
    with pytest.raises(InputError, match="outside"):
        checks.interval("eta", math.nan, 0.0, 1.0, "use 1")


def test_names_and_classes() -> None:
    assert checks.one_of("kind", "a", ("a", "b")) == "a"
    for value in ("c", None, 3, ["a"]):
        with pytest.raises(InputError, match=r"^kind=.* is not known; use one of a, b\.$"):
            checks.one_of("kind", value, ("a", "b"))
    assert checks.instance("x", 3, int, "a number") == 3
    with pytest.raises(InputError, match=r"^x must be a number, but got str\.$"):
        checks.instance("x", "3", int, "a number")
    with pytest.raises(InputError, match=r"^x must be a number, but got the class int\.$"):
        checks.instance("x", int, int, "a number")


@pytest.mark.parametrize("value", [(5,), (3, 4), [1, 2, 3], (1, 2, 3, 4), torch.Size([3, 4, 4]), np.array([2, 2])])
def test_shapes_of_zero_to_three_spatial_axes(value: Any) -> None:
    found = checks.shape("shape", value)
    assert found == tuple(int(n) for n in value)
    assert all(type(n) is int for n in found)


@pytest.mark.parametrize("value", [(), (1, 2, 3, 4, 5), (0, 4), (-1, 4), (2.5, 4), (True, 4), 3, None, "ab"])
def test_what_is_no_shape(value: Any) -> None:
    with pytest.raises(InputError, match=r"^shape must be \(C, \*spatial\) .*at most 3 spatial axes, but it is"):
        checks.shape("shape", value)


def test_bounds_seeds_and_indices() -> None:
    assert checks.bounds("clip", None) is None
    assert checks.bounds("clip", [-1, 1]) == (-1.0, 1.0)
    for value in ((1, -1), (1, 1), (0, math.inf), (0,), "ab", 1.0, (math.nan, 1)):
        with pytest.raises(InputError, match=r"^clip=.* must be a pair of finite numbers, low < high, or None\.$"):
            checks.bounds("clip", value)
    assert checks.seed(np.int64(-5)) == -5
    assert checks.index("image", torch.tensor(4)) == 4
    with pytest.raises(InputError, match=r"^image 3\.0 is not an integer; give indices such as range\(64\)\.$"):
        checks.index("image", 3.0)


def test_values_in_messages_are_short() -> None:
    assert checks.brief([1, 2, 3]) == "[1, 2, 3]"
    assert checks.brief(list(range(20))) == "[0, 1, 2, 3, 4, 5, 6, 7, …]"
    assert checks.brief(()) == "()"
    assert checks.brief((1,)) == "(1,)"
    assert len(checks.brief("x" * 3000)) < 210
    assert checks.brief([["a", "b"], "c"]) == "[['a', 'b'], 'c']"
    assert checks.listing(range(3)) == "0, 1, 2"
    assert checks.listing([*"abcdefghij"]) == "a, b, c, d, e, f, g, h, … (2 more)"


def test_refuse_and_given() -> None:
    checks.refuse(False, "never said")
    with pytest.raises(InputError, match=r"^said$"):
        checks.refuse(True, "said")
    assert checks.given(0, "missing") == 0
    with pytest.raises(InputError, match=r"^missing$"):
        checks.given(None, "missing")
