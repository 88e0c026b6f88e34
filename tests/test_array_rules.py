"""Rules of arrays: each is broken alone, and only that is named."""

from typing import Any

import numpy as np
import pytest

from diffusion_var.array_rules import ArrayRule, require_arrays
from diffusion_var.errors import InputError

RULES = {
    "levels": ArrayRule("float64", ("N",), least=0.0, most=9.0),
    "indices": ArrayRule("int64", ("I",), least=1, rising=True),
    "means": ArrayRule("float32", ("I", 2), finite=False),
    "square": ArrayRule("float64", ("N", "N"), optional=True),
}


def arrays(**changes: Any) -> dict[str, Any]:
    right = {"levels": np.zeros(3), "indices": np.array([1, 4]), "means": np.full((2, 2), np.nan, np.float32)}
    return {name: array for name, array in {**right, **changes}.items() if array is not None}


def test_what_keeps_the_rules_passes() -> None:
    require_arrays(arrays(), RULES)
    require_arrays(arrays(square=np.eye(3)), RULES)
    require_arrays(arrays(indices=np.zeros(0, np.int64), means=np.zeros((0, 2), np.float32)), RULES)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"other": np.zeros(1)}, r"arrays that do not belong there \(other\)"),
        ({"levels": None}, "array levels is missing"),
        ({"levels": np.zeros(3, np.float32)}, "levels is float32, but float64 is expected"),
        ({"levels": np.zeros((3, 1))}, r"levels has shape \(3, 1\), but"),
        ({"levels": np.array([0.0, np.nan])}, "levels holds NaN or infinity"),
        ({"levels": np.array([0.0, -np.inf])}, "levels holds NaN or infinity"),
        ({"levels": np.array([0.0, -1.0])}, "levels holds -1.0, but at least 0 is expected"),
        ({"levels": np.array([0.0, 9.5])}, "levels holds 9.5, but at most 9 is expected"),
        ({"indices": np.array([4, 1])}, "indices does not rise"),
        ({"indices": np.array([4, 4])}, "indices does not rise"),
        ({"means": np.zeros((3, 2), np.float32)}, r"means has shape \(3, 2\), but \(2, 2\) is expected"),
        ({"square": np.eye(2)}, r"square has shape \(2, 2\), but \(3, 3\) is expected"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_breaks_one_is_named(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        require_arrays(arrays(**changes), RULES)
