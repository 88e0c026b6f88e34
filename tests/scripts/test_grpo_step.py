"""`scripts/grpo_step.py`, a few iterations of it: every noise learns, the ratio starts at 1, and pairs are compared as
they should be."""

import importlib

import numpy as np
import pytest
import torch
from places import SCRIPTS
from scipy.stats import ttest_rel


@pytest.fixture(scope="module")
def grpo():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        yield importlib.import_module("grpo_step")


@pytest.fixture(scope="module")
def model(grpo):
    return grpo.trained(300)


def test_the_reward_is_of_lit_pixels(grpo) -> None:
    images = torch.full((2, 1, 8, 8), -1.0)
    images[0, 0, 1, :3] = 0.5
    images[1, 0, 7, :2] = 0.1
    assert grpo.reward(images).tolist() == [3.0, -2.0]


@pytest.mark.parametrize("method", ["flow_grpo", "cps", "isotropic", "dct"])
def test_a_step_is_scored_as_it_was_drawn(grpo, model, method: str) -> None:
    """The log-probability of what was drawn is the same when it is given back, for every step that draws."""
    steps, times = grpo.policy(method, model.table, 4)
    stream, x = torch.Generator().manual_seed(0), torch.randn((3, *grpo.SHAPE), generator=torch.Generator())
    drawn = 0
    with torch.no_grad():
        for k, t in enumerate(times):
            flow = model.network(x, t.expand(3)).sample
            after, log_prob = steps.step(k, flow, x, None, stream)
            if log_prob is not None:
                same, again = steps.step(k, flow, x, after, stream)
                assert torch.equal(log_prob, again)
                assert torch.equal(after, same)
                drawn += 1
            x = after
    assert drawn == (4 if method == "flow_grpo" else 3)
    assert log_prob is None or method == "flow_grpo"


def test_every_noise_learns_and_the_report_says_how_much(grpo, model, capsys) -> None:
    grpo.report(model, 2, grpo.Settings(steps=4, group=48, iterations=4, learning_rate=1e-3))
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line[:1] == "|"]
    found = {cells[0]: cells for cells in rows if len(cells) > 5 and cells[0] in grpo.METHODS}
    assert set(found) == set(grpo.METHODS)
    for cells in found.values():
        first, last = (float(cell.split(" ± ")[0]) for cell in (cells[1], cells[-2]))
        assert last > first + 1
    pairs = [cells for cells in rows if len(cells) == 5 and cells[0] in grpo.METHODS]
    assert len(pairs) == 6
    assert {cells[-1] for cells in pairs} <= {"yes", "no"}


def test_pairs_are_compared_with_holms_correction(grpo) -> None:
    first, *others = np.random.default_rng(0).standard_normal((3, 8))
    b, c = (first + 1 + 0.1 * (noise - noise.mean()) for noise in others)
    found = {(x, y): (apart, error, p) for x, y, apart, error, p in grpo.compared({"a": first, "b": b, "c": c})}
    for pair, values in {("a", "b"): b, ("a", "c"): c}.items():
        assert found[pair][0] == pytest.approx(-1)
        assert found[pair][1] == pytest.approx((first - values).std(ddof=1) / 8**0.5)
    alone = sorted(ttest_rel(first, values).pvalue for values in (b, c))
    expected = [3 * alone[0], max(3 * alone[0], 2 * alone[1])]
    assert sorted([found["a", "b"][2], found["a", "c"][2]]) == pytest.approx(expected, rel=1e-9, abs=0)
    assert found["b", "c"] == (pytest.approx(0, abs=1e-12), found["b", "c"][1], pytest.approx(1))
