"""Counts that add up over batches and processes, and are reported once."""

import pytest
import torch

from diffusion_var.covariance.tally import Tally


def test_what_is_counted_adds_up_and_is_reported_once() -> None:
    one, other = Tally("cut", "values"), Tally("cut", "values")
    assert one.total == one.new == [0, 0]
    one.count(cut=torch.tensor([True, True, False]).sum(), values=3)
    other.count(values=5)
    one.add(other.new)
    assert one.total == one.new == [2, 8]
    assert one.report() == [2, 8]
    one.count(cut=1)
    assert (one.total, one.new, one.report(), one.new) == ([3, 8], [1, 0], [1, 0], [0, 0])


def test_counts_of_inference_go_on_outside_of_it() -> None:
    tally = Tally("cut")
    with torch.inference_mode():
        tally.count(cut=torch.ones(3).sum())
    tally.count(cut=1)
    assert tally.total == [4]


def test_a_name_that_it_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match="not in tuple"):
        Tally("cut").count(cuts=1)
    with pytest.raises(ValueError, match="zip"):
        Tally("cut").add([1, 2])
