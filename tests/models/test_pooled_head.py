"""A head of averages over the image: what it sees, what it is standardised by, and what it refuses."""

import pytest
import torch

import diffusion_var as dv
from diffusion_var.models.pooled_head import PooledHead
from diffusion_var.randomness import generator


def drawn(*shape, name="features"):
    return torch.from_numpy(generator(0, name).standard_normal(shape)).float()


def awake(features, shape, count=5):
    """A head whose last layer says something."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = PooledHead(features, shape, count)
        torch.nn.init.normal_(made.out.weight)
    return made.requires_grad_(False)


LAYOUTS = [((6, 8, 8), (3, 8, 8)), ((6, 4, 4), (3, 8, 8)), ((16, 6), (3, 8, 8)), ((6, 8), (2, 8)), ((6,), (4,))]


@pytest.mark.parametrize(("features", "shape"), LAYOUTS)
def test_it_says_so_many_numbers_of_an_image(features, shape):
    made = PooledHead(features, shape, 5)
    x = drawn(3, *features)
    assert made(x, torch.zeros(3)).tolist() == [[0.0] * 5] * 3  # until it is trained
    said = awake(features, shape)(x, torch.zeros(3))
    assert said.shape == (3, 5)
    assert float(said.std(0).min()) > 1e-3
    assert float((awake(features, shape)(x[1:2], torch.zeros(1)) - said[1:2]).abs().max()) < 1e-6


def test_averages_of_maps_and_of_tokens_are_the_same():
    maps = drawn(2, 6, 4, 4)
    tokens = maps.flatten(2).transpose(1, 2)
    of_maps, of_tokens = (awake(f, (3, 8, 8)) for f in [(6, 4, 4), (16, 6)])
    torch.testing.assert_close(of_maps.pooled(maps), maps.mean((2, 3)))
    torch.testing.assert_close(of_maps(maps, torch.zeros(2)), of_tokens(tokens, torch.zeros(2)))


def test_every_feature_counts_alike_and_constants_for_nothing():
    """However large a feature is, and wherever it lies, it is the same to a head that is standardised by it."""
    made, other = awake((6, 4, 4), (1, 8, 8)), awake((6, 4, 4), (1, 8, 8))
    x = drawn(64, 6, 4, 4)
    scale, shift = torch.tensor([1e-3, 1.0, 7.0, 1e3, 0.1, 0.0]), torch.tensor([0.0, 5.0, -2.0, 30.0, 0.1, 3.0])
    moved = x * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)  # the last of them is constant
    still = x.clone()
    still[:, 5] = 0.0
    for each, features in ((made, still), (other, moved)):
        each.standardise(each.pooled(features))
    assert float(other.scale[5]) == 1.0
    torch.testing.assert_close(made(still, torch.zeros(64)), other(moved, torch.zeros(64)), atol=1e-3, rtol=1e-3)
    pooled = (other.pooled(moved) - other.centre) / other.scale
    torch.testing.assert_close(pooled[:, :5].std(0), torch.ones(5), atol=1e-3, rtol=0)


def test_it_knows_the_time():
    made, x = awake((6, 4, 4), (1, 8, 8)), drawn(2, 6, 4, 4)
    said = torch.stack([made(x, torch.full((2,), time)) for time in (0.0, 0.1, 0.5, 0.9, 1.0)])
    assert float(torch.cdist(said[:, 0], said[:, 0]).fill_diagonal_(1.0).min()) > 1e-2


def test_it_is_the_formula_written_out():
    """W₂ silu(W₁ [z; cos kπt, sin kπt, k = 1 … 4] + b₁) + b₂, z standardised averages."""
    made, x, time = awake((6, 4, 4), (1, 8, 8)), drawn(3, 6, 4, 4), torch.tensor([0.0, 0.3, 0.95])
    made.standardise(drawn(40, 6, name="others"))
    others = drawn(40, 6, name="others")
    z = (x.mean((2, 3)) - others.mean(0)) / others.std(0)
    waves = [wave(torch.pi * k * time) for wave in (torch.cos, torch.sin) for k in (1, 2, 3, 4)]
    inner = torch.cat([z, torch.stack(waves, 1)], 1) @ made.hidden.weight.mT + made.hidden.bias
    expected = (inner * torch.sigmoid(inner)) @ made.out.weight.mT + made.out.bias
    torch.testing.assert_close(made(x, time), expected, rtol=1e-4, atol=1e-5)


def test_features_that_do_not_fit():
    with pytest.raises(dv.InputError, match="square patches"):
        PooledHead((8, 3, 8), (1, 8, 8), 4)
