"""Who does what of a round: nobody more than a fair share of whole indices, and the rest in small batches."""

from hypothesis import given
from hypothesis import strategies as st

from diffusion_var.variance.shares import batch_of_rest, whole_shares


@given(st.lists(st.integers(0, 50), max_size=40), st.integers(1, 9))
def test_whole_shares_are_disjoint_and_nobody_has_more_than_fair(costs: list[int], count: int) -> None:
    shares, rest = whole_shares(costs, count)
    assert sorted([*(i for share in shares for i in share), *rest]) == list(range(len(costs)))
    loads = [sum(costs[i] for i in share) for share in shares]
    fair = -(-sum(costs) // count)
    assert max(loads) <= fair
    # What is left would have made even the smallest share more than fair.
    assert all(min(loads) + costs[i] > fair for i in rest)
    assert count > 1 or not rest


def test_equal_units_that_divide_are_all_whole_and_a_dear_one_is_everybodys() -> None:
    assert whole_shares([4] * 64, 32)[1] == []
    assert whole_shares([100, 3, 2, 2, 1], 4) == ([[1], [2], [3], [4]], [0])


def test_batches_of_the_rest_are_small_where_it_is_little() -> None:
    assert [batch_of_rest(cost, 32, 4) for cost in (0, 5, 255, 256, 400, 10_000)] == [1, 1, 1, 2, 3, 4]
