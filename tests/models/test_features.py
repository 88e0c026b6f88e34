"""The trunk's features: found, read once, and no trace left; and the small networks that take them."""

import pytest
import torch
from small_heads import SHAPE, denoiser
from small_pipelines import STEPS, save_dit, small_unet

import diffusion_var as dv
from diffusion_var.models.features import FeatureTap
from diffusion_var.models.heads import HeadNetwork, groups_of


def hooks(network):
    return sum(len(module._forward_hooks) for module in network.modules())


def test_what_enters_the_last_layers_of_a_unet():
    model = denoiser()
    x = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0))
    calls = []
    handle = model.network.register_forward_pre_hook(lambda *_: calls.append(1))
    posterior = model.with_features()(x, 7)
    handle.remove()
    assert len(calls) == 1
    assert posterior.features.shape == (3, 8, 8, 8)
    network = model.network
    out = network.conv_out(network.conv_act(network.conv_norm_out(posterior.features)))
    torch.testing.assert_close(out, posterior.eps)
    assert hooks(network) == 0
    assert model(x, 7).features is None  # the denoiser itself is as it was


def test_no_hook_is_left_after_an_error():
    model = denoiser()
    tapped = model.with_features()
    model.network.conv_out.forward = lambda *_: 1 / 0
    with pytest.raises(dv.NetworkError, match="ZeroDivisionError"):
        tapped(torch.zeros(1, *SHAPE), 7)
    assert hooks(model.network) == 0


def test_tokens_of_a_transformer_with_guidance(tmp_path):
    """The conditional half, which this package evaluates first."""
    model = dv.Denoiser.from_pretrained(save_dit(tmp_path / "dit"))
    x = torch.randn(2, *model.shape, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([1, 2])
    plain = model.with_features()(x, STEPS, labels).features
    assert plain.ndim == 3
    guided = model.with_guidance(3.0, torch.tensor(1000)).with_features()(x, STEPS, labels).features
    torch.testing.assert_close(guided, plain)
    head = HeadNetwork("simple", plain.shape[1:], model.shape)
    assert head(plain, torch.zeros(2)).shape == x.shape


def test_tokens_go_to_their_patches():
    """Token (i, j) of a 2 × 3 grid speaks of pixels 2i…2i+1, 2j…2j+1."""
    head = HeadNetwork("simple", (6, 4), (1, 4, 6))
    head.norm = torch.nn.Identity()
    head.out.weight.data.zero_()
    head.out.weight.data[:, 0, 1, 1] = 1.0  # every pixel of a patch says the token's first number
    tokens = torch.zeros(1, 6, 4)
    tokens[0, 4, 0] = 1.0  # row 1, column 1
    said = head(tokens, torch.zeros(1))[0, 0]
    expected = torch.zeros(4, 6)
    expected[2:4, 2:4] = torch.nn.functional.silu(torch.tensor(1.0))
    torch.testing.assert_close(said, expected)


def test_kinds_of_heads():
    simple = HeadNetwork("simple", (24, 8, 8), (3, 8, 8))
    residual = HeadNetwork("residual", (24, 8, 8), (3, 8, 8), zero=False)
    assert sum(p.numel() for p in simple.parameters()) == 2 * 24 + 24 * 3 * 9 + 3
    x = torch.randn(2, 24, 8, 8, generator=torch.Generator().manual_seed(0))
    assert float(simple(x, torch.zeros(2)).abs().max()) == 0.0
    early, late = (residual(x, torch.full((2,), time)) for time in (0.1, 0.9))
    assert float((early - late).abs().max()) > 1e-4


@pytest.mark.parametrize("width", [4, 8, 24, 32, 64, 96, 128, 320])
@pytest.mark.parametrize("grid", [(8, 8), (8,), ()])
def test_a_head_sees_the_time_and_the_level_of_a_feature(width, grid):
    """Whatever the number of features: in groups of one channel both are normalised away."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = HeadNetwork("residual", (width, *grid), (1, *grid), zero=False)
    x = torch.randn(3, width, *grid, generator=torch.Generator().manual_seed(0))
    early, late = (head(x, torch.full((3,), time)) for time in (0.1, 0.9))
    assert float((early - late).abs().mean()) > 3e-4  # below 4e-6 in groups of one
    head.block = None  # as a simple one
    raised = x + torch.linspace(-1, 1, width).view(-1, *(1,) * len(grid))
    assert float((head(x, torch.zeros(3)) - head(raised, torch.zeros(3))).abs().mean()) > 3e-4


def test_groups_of_features():
    """Three channels a group or more, and 32 groups of four in the published networks' 128."""
    found = {width: groups_of(width) for width in (1, 2, 3, 6, 7, 8, 24, 32, 48, 64, 96, 100, 128, 320)}
    assert found == {1: 1, 2: 1, 3: 1, 6: 2, 7: 1, 8: 2, 24: 8, 32: 8, 48: 16, 64: 16, 96: 32, 100: 4, 128: 32, 320: 32}
    with pytest.raises(dv.InputError, match="24 features can't be normalised in 5 equal groups"):
        HeadNetwork("simple", (24, 8, 8), (3, 8, 8), groups=5)


@pytest.mark.parametrize("features", [(8, 3, 8), (8, 16, 16), (7, 8), (8, 4, 8)])
def test_features_that_do_not_fit(features):
    with pytest.raises(dv.InputError, match="square patches"):
        HeadNetwork("simple", features, (1, 8, 8))


class Plain(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.unused = torch.nn.Conv2d(1, 1, 1), torch.nn.Conv2d(1, 1, 1)
        self.pooled = torch.nn.Linear(1, 1)

    def forward(self, x, t):
        self.pooled(x.mean((-3, -2, -1), keepdim=False)[:, None])
        return self.first(x)


def test_a_module_by_name_and_what_is_said_of_others():
    model = dv.Denoiser(Plain(), dv.NoiseSchedule.linear(10, 0.01, 0.3), shape=(1, 4, 4))
    x = torch.ones(2, 1, 4, 4)
    torch.testing.assert_close(model.with_features("first")(x, 3).features, x)
    with pytest.raises(dv.InputError, match="one of its last being first, unused, pooled"):
        model.with_features()
    with pytest.raises(dv.InputError, match="it has no module 'frist'"):
        model.with_features("frist")
    with pytest.raises(dv.InputError, match="was not called"):
        model.with_features("unused")(x, 3)
    with pytest.raises(dv.InputError, match=r"a tensor of shape \(2, 1\)"):
        model.with_features("pooled")(x, 3)
    with pytest.raises(dv.InputError, match="a torch module, but the network is a function"):
        FeatureTap(lambda x, t: x)


def test_known_names():
    assert FeatureTap(small_unet()).name == "conv_norm_out"
