"""Scores in one table: like with like, the best in bold, and a sentence where they are not alike."""

import math

import pytest

from diffusion_var.errors import InputError
from diffusion_var.metrics import Score, require_same_protocol, score_table
from diffusion_var.metrics.score import COMPARED

PROTOCOL = {
    "metric": "fid",
    "parameters": {},
    "features": "digits",
    "features_sha256": "ab",
    "resize": "none",
    "colour": "as given",
    "number_format": "uint8, round half to even",
    "images": 1000,
    "reference": 500,
    "reference_sha256": "cd",
    "reference_name": "there",
    "images_name": "here",
    "versions": {"torch": "2"},
}


def score(value, **different):
    return Score(value, {**PROTOCOL, **different})


def test_a_score_is_a_number_that_says_its_error():
    assert float(Score(2.5)) == 2.5
    assert str(Score(12.3456789)) == "12.346"
    assert str(Score(0.012345, {}, 0.00012)) == "0.012345 ± 0.00012"
    assert str(Score(2.5, {}, None, (2.25, 3.0))) == "2.5 (2.25 to 3)"


def test_equal_protocols_are_given_back_and_names_do_not_matter():
    others = [score(2, reference_name="b"), score(3, images_name="c", versions={"torch": "3"}), score(3, interval=1)]
    shared = require_same_protocol({"a": score(1), **{str(n): other for n, other in enumerate(others)}})
    assert shared == {name: PROTOCOL[name] for name in COMPARED}


@pytest.mark.parametrize("field", COMPARED)
def test_every_field_that_differs_is_named_with_both_values(field):
    assert field in PROTOCOL  # the test's own
    with pytest.raises(InputError, match=rf"scores of b and c .*: {field} is .* in one and 'another'"):
        require_same_protocol({"b": score(1), "again": score(2), "c": score(1, **{field: "another"})})
    missing = {key: value for key, value in PROTOCOL.items() if key != field}
    with pytest.raises(InputError, match=f"{field} is .*None"):
        require_same_protocol({"b": score(1), "c": Score(1.0, missing)})


def test_no_scores_cannot_be_compared():
    with pytest.raises(InputError, match="no scores"):
        require_same_protocol({})
    with pytest.raises(InputError, match="no scores"):
        score_table({})


def test_a_table_marks_the_best_of_each_column():
    table = score_table(
        {
            "a": {"FID": score(2.5), "recall": score(0.25, metric="recall", parameters={"neighbours": 3})},
            "b": {"FID": score(1.5), "recall": score(0.75, metric="recall", parameters={"neighbours": 3})},
            "c|d": {"FID": score(1.5)},
        }
    )
    assert table.splitlines() == [
        "|  | FID | recall |",
        "| --- | ---: | ---: |",
        "| a | 2.5 | 0.25 |",
        "| b | **1.5** | **0.75** |",
        "| c\\|d | **1.5** | – |",
    ]


@pytest.mark.parametrize("metric", ["fid", "fid_infinity", "kid"])
def test_distances_are_best_small(metric):
    assert "**1**" in score_table({"a": {"x": score(1.0, metric=metric)}, "b": {"x": score(2.0, metric=metric)}})


@pytest.mark.parametrize("metric", ["precision", "recall", "density", "coverage"])
def test_shares_are_best_large(metric):
    assert "**2**" in score_table({"a": {"x": score(1.0, metric=metric)}, "b": {"x": score(2.0, metric=metric)}})


def test_nan_is_never_the_best():
    table = score_table({"a": {"x": score(math.nan)}, "b": {"x": score(2.0)}, "c": {"x": score(3.0)}})
    assert "**2**" in table
    assert table.count("**") == 2


def test_a_table_refuses_what_is_not_alike():
    with pytest.raises(InputError, match=r"a, x and b, x .* metric is 'fid' in one and 'kid'"):
        score_table({"a": {"x": score(1)}, "b": {"x": score(1, metric="kid")}})
    with pytest.raises(InputError, match=r"a, x and b, x .* parameters"):
        score_table({"a": {"x": score(1)}, "b": {"x": score(1, parameters={"k": 2})}})
    for field in ("images", "reference_sha256", "features_sha256"):
        with pytest.raises(InputError, match=rf"a, x and b, y .* {field} is"):
            score_table({"a": {"x": score(1)}, "b": {"y": score(1, **{field: "another"})}})
