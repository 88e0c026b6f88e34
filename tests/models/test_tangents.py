"""Layers propagate tangents as PyTorch does, and convolutions are not evaluated for tangents that are zero."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

import diffusion_var as dv
from diffusion_var.models.tangents import CheapTangents


@pytest.fixture(autouse=True)
def no_graph() -> Iterator[None]:
    """As products are made: with a graph, all is left to PyTorch, and there were nothing to test."""
    with torch.no_grad():
        yield


DOUBLE: dict[str, Any] = {"dtype": torch.float64}


def numbers(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), **DOUBLE)


def layer(make: Callable[[], nn.Module]) -> nn.Module:
    """A layer with random parameters, gains and biases among them."""
    made = make().double()
    for k, parameter in enumerate(made.parameters()):
        parameter.data = numbers(k, *parameter.shape)
    return made


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(6, 5), (3, 6)),
    "linear without bias": (lambda: nn.Linear(6, 5, bias=False), (3, 4, 6)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, padding=1), (3, 4, 9)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (3, 4, 8, 8)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 3), (2, 2, 4, 5, 4)),
    "padded by mirroring": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), (2, 2, 5, 5)),
    "group norm": (lambda: nn.GroupNorm(2, 6), (3, 6, 5, 4)),
    "group norm of vectors": (lambda: nn.GroupNorm(2, 6), (3, 6)),
    "group norm without gains": (lambda: nn.GroupNorm(3, 6, affine=False), (3, 6, 5)),
    "group norm of a large eps": (lambda: nn.GroupNorm(2, 6, eps=3.0), (3, 6, 5, 4)),
    "layer norm": (lambda: nn.LayerNorm(6), (3, 4, 6)),
    "layer norm of two axes": (lambda: nn.LayerNorm((4, 6), elementwise_affine=False), (3, 4, 6)),
    "layer norm of a large eps": (lambda: nn.LayerNorm(6, eps=3.0), (3, 4, 6)),
    "silu": (nn.SiLU, (3, 7)),
    "silu in place": (lambda: nn.Sequential(nn.Linear(7, 7), nn.SiLU(inplace=True)), (3, 7)),
}


@pytest.mark.parametrize(("make", "shape"), LAYERS.values(), ids=LAYERS)
def test_a_layer_is_as_pytorch_has_it(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    of, x, v = layer(make), 3.0 + numbers(100, *shape), numbers(101, *shape)
    expected = torch.func.jvp(of, (x,), (v,))
    with CheapTangents():
        found = torch.func.jvp(of, (x,), (v,))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_silu_in_place_changes_what_it_is_given() -> None:
    """For those who do not take what it returns."""

    def of(x: torch.Tensor) -> torch.Tensor:
        found = 1.0 * x
        F.silu(found, inplace=True)
        return found

    x, v = numbers(0, 3, 7), numbers(1, 3, 7)
    with CheapTangents():
        found = torch.func.jvp(of, (x,), (v,))
    for ours, theirs in zip(found, torch.func.jvp(F.silu, (x,), (v,)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("of", [nn.GroupNorm(2, 6), nn.LayerNorm((6, 5, 4))], ids=["group", "layer"])
def test_tangents_may_lie_in_memory_otherwise_than_images(of: nn.Module) -> None:
    of = layer(lambda: of)
    x, v = numbers(0, 3, 6, 5, 4), numbers(1, 3, 6, 5, 4)
    expected = torch.func.jvp(of, (x,), (v,))
    last = torch.channels_last
    for places in ((x, v.to(memory_format=last)), (x.to(memory_format=last), v)):
        with CheapTangents():
            found = torch.func.jvp(of, *((place,) for place in places))
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


OF_TWO: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "a sum": lambda x, z: x + z,
    "a sum with another shape": lambda x, z: x + z[:1, :, :1] + z.mean(),
    "a sum of a wider shape": lambda x, z: x[:, :1] + z,
    "a sum with what is constant": lambda x, z: z + (x + x.detach()[:1]),
    "a sum of a multiple": lambda x, z: torch.add(x, z, alpha=2.5),
    "a sum with a number": lambda x, z: (1.5 + x + 2) * z,
    "a sum of two precisions": lambda x, z: x.float() + z,
    "scaled": lambda x, z: x / 3.0 * 0.5 + 2 * (z / 2),
    "by keyword": lambda x, z: torch.mul(x, other=3.0) + x.div(other=2.0) + torch.add(x, other=z),
    "by a truth value": lambda x, z: (x * True + z) / True,
    "complex": lambda x, z: ((x * 2j + z).conj() * 3.0 + 1.0).imag,
    "divided by a tensor": lambda x, z: x / z,
    "a rounded quotient": lambda x, z: torch.div(x, 2.0, rounding_mode="floor") + z,
    "a sum that is changed afterwards": lambda x, z: (x + 1.0).mul_(z) * x,
}


@pytest.mark.parametrize("of", OF_TWO.values(), ids=OF_TWO)
def test_sums_and_multiples_are_as_pytorch_has_them(of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
    x, z, v, moved = (numbers(k, 3, 4, 5) for k in range(4))
    for places, moves in (((x, z), (v, moved)), ((x, z), (v, torch.zeros_like(v)))):
        expected = torch.func.jvp(of, places, moves)
        with CheapTangents():
            found = torch.func.jvp(of, places, moves)
        for ours, theirs in zip(found, expected, strict=True):
            assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.filterwarnings("ignore:This overload of add is deprecated")
def test_a_sum_in_the_words_of_old_is_pytorchs() -> None:
    x, v = numbers(0, 3, 4), numbers(1, 3, 4)
    old: Any = torch.add
    with CheapTangents():
        _, moved = torch.func.jvp(lambda place: old(place, 2, place), (x,), (v,))
    torch.testing.assert_close(moved, 3.0 * v)


@pytest.mark.parametrize(
    "options",
    [{}, {"scale": 0.3}, {"is_causal": True}, {"attn_mask": torch.ones(5, 5).tril().bool()}],
    ids=["plain", "scale", "causal", "mask"],
)
@pytest.mark.parametrize("constant", [False, True], ids=["", "keys and values are constant"])
def test_attention_is_as_pytorch_has_it(options: dict[str, Any], constant: bool) -> None:
    q, k, v = (numbers(place, 2, 3, 5, 4) for place in range(3))
    moves = tuple(numbers(10 + place, 2, 3, 5, 4) for place in range(3))

    def of(*places: torch.Tensor) -> torch.Tensor:
        key, value = (k, v) if constant else places[1:]
        return F.scaled_dot_product_attention(places[0], key, value, **options)

    with sdpa_kernel(SDPBackend.MATH):
        expected = torch.func.jvp(of, (q, k, v), moves)
        with CheapTangents():
            found = torch.func.jvp(of, (q, k, v), moves)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def unet() -> UNet2DModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = UNet2DModel(
            sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8, 16),
            norm_num_groups=4, attention_head_dim=4,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        )  # fmt: skip
    return made.eval().double()


def test_a_network_is_as_pytorch_has_it_for_channels_last_too() -> None:
    network, v = unet(), numbers(1, 2, 1, 8, 8)
    for x in (numbers(0, 2, 1, 8, 8), numbers(0, 2, 1, 8, 8).to(memory_format=torch.channels_last)):
        with sdpa_kernel(SDPBackend.MATH):
            expected = torch.func.jvp(lambda place: network(place, 500).sample, (x,), (v,))
            with CheapTangents():
                found = torch.func.jvp(lambda place: network(place, 500).sample, (x,), (v,))
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


# ---- derivatives within derivatives --------------------------------------------------------------------------------


WEIGHT = numbers(7, 6, 6)


def normed(x: torch.Tensor) -> torch.Tensor:
    """Of (B, 4, 6): what has rules of its own, less SiLU, whose second derivative PyTorch lacks too."""
    heights = F.layer_norm(F.group_norm(x, 2), (6,))
    return x / 3.0 + F.scaled_dot_product_attention(heights, heights * 2.0, F.linear(heights, WEIGHT))


def along(direction: int) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: torch.func.jvp(normed, (x,), (numbers(direction, *x.shape),))[1]


WITHIN: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "vmap in a network": lambda x: torch.func.vmap(lambda image: normed(image[None])[0])(x),
    "an ensemble": lambda x: torch.func.vmap(lambda gain: F.group_norm(x, 2, gain))(numbers(8, 5, 4)).mean(0),
    "a derivative in a network": along(9),
    "a gradient in a network": torch.func.grad(lambda x: normed(x).square().sum()),
}


@pytest.mark.parametrize("of", WITHIN.values(), ids=WITHIN)
def test_networks_may_use_transforms_of_their_own(of: Callable[[torch.Tensor], torch.Tensor]) -> None:
    x, v = numbers(0, 3, 4, 6), numbers(1, 3, 4, 6)
    with sdpa_kernel(SDPBackend.MATH):
        expected = torch.func.jvp(of, (x,), (v,))
        with CheapTangents():
            found = torch.func.jvp(of, (x,), (v,))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_a_product_with_a_graph_has_a_derivative_of_its_own() -> None:
    x, v = numbers(0, 3, 4, 6), numbers(1, 3, 4, 6)

    def gradient() -> torch.Tensor:
        place = x.clone().requires_grad_()
        return torch.autograd.grad(along(9)(place), place, v)[0]

    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        expected, (_, back) = gradient(), torch.func.vjp(along(9), x)
        with CheapTangents():
            found, (_, ours) = gradient(), torch.func.vjp(along(9), x)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(ours(v)[0], back(v)[0], rtol=1e-10, atol=1e-12)


# ---- what is evaluated ---------------------------------------------------------------------------------------------


class Normalised(TorchDispatchMode):
    """Whether what the kernel of group norms is given lies in memory as it should: older versions take nothing else."""

    dense = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.native_group_norm.default:
            self.dense &= args[0].is_contiguous(memory_format=torch.channels_last if args[0].ndim == 4 else DENSE)
        return func(*args, **(kwargs or {}))


DENSE = torch.contiguous_format


@pytest.mark.parametrize(
    "of",
    [
        lambda x: F.group_norm(x.transpose(1, 2), 2),
        lambda x: F.group_norm(x[:, ::2], 2),
        lambda x: F.group_norm(x[:1].expand(3, -1, -1), 2),
        lambda x: F.group_norm(x.to(torch.float64).view(3, 4, 2, 4).permute(0, 3, 1, 2), 2),  # channels last
    ],
    ids=["transposed", "every other", "expanded", "channels last"],
)
def test_a_group_norm_may_be_of_a_part_or_of_what_is_turned(of: Callable[[torch.Tensor], torch.Tensor]) -> None:
    x, v = numbers(0, 3, 4, 8), numbers(1, 3, 4, 8)
    expected = torch.func.jvp(of, (x,), (v,))
    with Normalised() as seen, CheapTangents():
        found = torch.func.jvp(of, (x,), (v,))
    assert seen.dense
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_of_no_images_there_are_no_tangents() -> None:
    x = numbers(0, 0, 4, 6)
    with CheapTangents():
        found = torch.func.jvp(lambda place: F.layer_norm(F.group_norm(place, 2), (6,)), (x,), (x,))
    assert [t.shape for t in found] == [x.shape, x.shape]


class Convolutions(TorchDispatchMode):
    """Counts those that are evaluated."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += "convolution" in func.name()
        return func(*args, **(kwargs or {}))


def test_a_convolution_is_evaluated_twice_and_not_three_times() -> None:
    network, x, v = unet(), numbers(0, 2, 1, 8, 8), numbers(1, 2, 1, 8, 8)
    with torch.no_grad(), Convolutions() as plain:
        network(x, 500)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), Convolutions() as ours, CheapTangents():
        torch.func.jvp(lambda place: network(place, 500).sample, (x,), (v,))
    assert ours.count == 2 * plain.count > 0


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_products_are_made_so_in_every_mode(mode: Callable[[], Any]) -> None:
    """With a graph the mean is evaluated for itself, and once more with its product."""
    schedule, of = dv.NoiseSchedule.linear(100, 1e-3, 0.1), layer(lambda: nn.Conv2d(1, 1, 3, padding=1))
    denoiser = dv.Denoiser(lambda x, _: of(x), schedule, "sample", shape=(1, 4, 4))
    probed = denoiser.with_jacobian(lambda _level, like: torch.ones_like(like[:1]))
    x_t = numbers(0, 2, 1, 4, 4)
    with mode(), Convolutions() as seen:
        found = probed(x_t, 50).jacobian
    assert found is not None
    assert seen.count == (3 if mode is torch.enable_grad else 2)
    with mode(), Convolutions() as seen:
        found.times(x_t)
    assert seen.count == 2


def test_tangents_of_weights_are_pytorchs() -> None:
    x, v, weight, moved = (numbers(k, 4, 4) for k in range(4))
    for of in (
        lambda a, w: F.linear(a, w),
        lambda a, w: F.layer_norm(a, (4,), w[0], w[1]),
        lambda a, w: F.group_norm(a, 2, w[0], w[1]),
    ):
        expected = torch.func.jvp(of, (x, weight), (v, moved))
        with CheapTangents():
            found = torch.func.jvp(of, (x, weight), (v, moved))
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_autocast_decides_the_precision_as_ever() -> None:
    of = nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.SiLU(), nn.Flatten(), nn.LayerNorm(36))
    x, v = numbers(0, 2, 2, 5, 5).float(), numbers(1, 2, 2, 5, 5).float()
    with torch.autocast("cpu", torch.bfloat16):
        expected = torch.func.jvp(of, (x,), (v,))
        with CheapTangents():
            found = torch.func.jvp(of, (x,), (v,))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.05)


def test_what_has_no_tangent_is_left_alone() -> None:
    of, x = layer(lambda: nn.Conv2d(4, 6, 3)), numbers(0, 3, 4, 8, 8)
    with CheapTangents(), torch.autograd.forward_ad.dual_level():
        assert torch.autograd.forward_ad.unpack_dual(of(x)).tangent is None
    with CheapTangents():
        assert torch.equal(of(x), of(x))
    with torch.enable_grad(), CheapTangents():
        (gradient,) = torch.autograd.grad(of(x.requires_grad_()).sum(), x)
    assert gradient.shape == x.shape
