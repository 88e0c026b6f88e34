"""What a restoration's cells say: means with errors, paired differences, and who is told apart from whom."""

import math
from typing import Any

import numpy as np
import pytest

from diffusion_var.app.restore import tables
from diffusion_var.app.restore.calibration import Calibration
from diffusion_var.app.restore.cells import Cell

NONE = np.zeros((4, 1, 2, 2), dtype=np.float32)


def cell(name: str, psnr: Any, steps: int = 5, **more: Any) -> Cell:
    """A cell with PSNRs (B, R) of its draws."""
    values = np.array(psnr, dtype=np.float64)
    draws = np.zeros((*values.shape, 1, 2, 2), dtype=np.uint8)
    own: dict[str, Any] = {"mean": NONE, "std": NONE, **more}
    return Cell(name, "II", steps, draws=draws, scores={"psnr": values}, of_mean={"psnr": values.mean(1)}, **own)


LOW = cell("low", [[10, 12], [20, 22], [30, 32], [40, 42]])
HIGH = cell("high", [[11, 13.2], [21, 23], [31, 33.1], [41, 43]])  # always by about 1
CROSSED = cell("crossed", [[41, 43], [31, 33], [21, 23], [11, 13]])


def test_a_mean_and_its_error() -> None:
    mean = tables.score(LOW, "psnr")
    assert mean.value == 26.0
    assert mean.error == pytest.approx(np.std([11, 21, 31, 41], ddof=1) / 2)
    assert mean.text("psnr") == "26.00 ± 6.45"
    one = tables.Mean.of(np.array([3.0]))
    assert math.isnan(one.error)
    assert (one.text("psnr"), one.is_told, one.plain) == ("3.00", False, {"value": 3.0, "error": None})


def test_differences_are_paired() -> None:
    apart = tables.difference(HIGH, LOW, "psnr")
    assert apart.value == pytest.approx(np.mean([1.1, 1.0, 1.05, 1.0]))
    assert apart.is_told  # though both vary by tens over images
    assert not tables.difference(CROSSED, LOW, "psnr").is_told
    assert tables.difference(LOW, HIGH, "psnr").text("psnr", True).startswith("-1.04 ± 0.0")


def test_the_best_and_what_is_not_told_apart_from_it() -> None:
    assert tables.best([LOW, HIGH], "psnr") == [HIGH]
    assert tables.best([LOW, HIGH, CROSSED], "psnr") == [HIGH, CROSSED]
    rows = tables.rows([LOW, HIGH, CROSSED], ["psnr"])
    assert [row["best"] for row in rows] == [[], ["PSNR (dB)"], ["PSNR (dB)"]]
    assert rows[0]["texts"]["against the first"] == "–"
    assert rows[1]["texts"]["against the first"].startswith("+1.04")


def test_sentences_say_who_is_best() -> None:
    (line,) = tables.opening([LOW, HIGH], [5])
    assert line.startswith("At 5 steps high, II has the best PSNR of single draws, 27.04 ± ")
    assert "dB, +1.04 ± 0.02 dB against low, II." in line
    (line,) = tables.opening([HIGH, LOW], [5])
    assert "against" not in line
    (line,) = tables.opening([LOW, cell("same", LOW.scores["psnr"] + [[3, 3], [-3, -3], [2, 2], [-1, -1]])], [5])
    assert "which the images do not tell apart" in line
    assert tables.opening([LOW], [5]) == []


def test_the_error_of_the_first_kind_is_five_percent() -> None:
    stream = np.random.default_rng(0)
    values = stream.standard_normal((2000, 6))
    wrong = np.mean([tables.Mean.of(row).is_told for row in values])
    assert 0.035 < wrong < 0.065


def test_the_spread_is_one_where_draws_are_like_the_truth() -> None:
    """Truth and draws from one distribution, (B, R) = (2000, 3): the ratio's own error is 0.006."""
    stream = np.random.default_rng(0)
    x = stream.standard_normal((2000, 4, 1, 6, 6)) * 0.3
    truth, draws = x[:, 0], x[:, 1:]
    mean = draws.mean(1)
    own = {"mean": mean.astype(np.float32), "std": draws.std(1, ddof=1).astype(np.float32)}
    found = Cell("a", "I", 5, draws=np.zeros((2000, 3, 1, 6, 6), np.uint8), **own)
    assert tables.spread(found) is None
    found.of_mean["squared error"] = np.square(mean - truth).reshape(2000, -1).mean(1)
    assert tables.spread(found) == pytest.approx(1.0, abs=0.03)


def test_what_is_nearest_to_one() -> None:
    residuals = {"near": [[1.1, 0.9], [1.3, 1.1]], "far": [[4.0, 6.0], [0.1, 0.3]]}
    found = [Calibration(name, [1, 9], np.array([0.1, 2.0]), np.array(values)) for name, values in residuals.items()]
    (line,) = tables.calibrated(found)
    assert "near 1.10, far 5.00" in line  # exp of the mean |log| over levels: √1.2, 5
    rows = tables.calibration_rows(found)
    assert [row["best"] for row in rows] == [0, 0]
    assert [row["texts"][0] for row in rows] == ["1.00 ± 0.10", "1.20 ± 0.10"]
    assert tables.calibrated([]) == []
