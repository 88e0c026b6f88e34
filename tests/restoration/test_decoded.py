"""A measurement through a decoder: closed forms, derivatives of real autoencoders, a whole run, and what is refused."""

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, VQModel
from small_pipelines import CODEC, save_dit, seeded

import diffusion_var as dv
from diffusion_var.models.pretrained.latents import LatentCodec
from diffusion_var.restoration import ConjugateGradients
from diffusion_var.restoration.decoded import Decoded

SCHEDULE = dv.NoiseSchedule.linear(100)
SHAPE, d, STD = (2, 2, 2), 8, 0.3
EYE = torch.eye(d, dtype=torch.float64)
CLOSE = ConjugateGradients(1e-12, 100)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).to(dtype)


MAP, SEEN = normal(12, d, seed=1), normal(5, 12, seed=2)  # of a decoder to (3, 2, 2), and of what is measured there
ROOT = normal(d, d, seed=5)
COVARIANCE = ROOT @ ROOT.T / d + 0.05 * EYE
X_T, Y = normal(3, *SHAPE, seed=3), normal(3, 5, seed=4)


def linear(z: torch.Tensor) -> torch.Tensor:
    return (z.flatten(1) @ MAP.to(z).T).view(-1, 3, 2, 2)


def bent(z: torch.Tensor) -> torch.Tensor:
    """A decoder that is linear nowhere."""
    return torch.tanh(linear(z) / 2) + 0.1 * linear(z)


def measured(images: torch.Tensor) -> torch.Tensor:
    return images.flatten(1) @ SEEN.to(images).T


def gaussian() -> dv.oracles.MixtureDenoiser:
    """Latents that are one Gaussian, whose covariance has no structure."""
    return dv.oracles.MixtureDenoiser(SCHEDULE, normal(1, *SHAPE, seed=6), covariances=COVARIANCE[None])


def conditioned(through: Any, A: Any = measured, y: torch.Tensor = Y, **options: Any) -> dv.ConditionedDenoiser:
    model = gaussian()
    measurement = dv.Measurement(y, A, noise=STD, through=through)
    return dv.ConditionedDenoiser(model, dv.ExactCovariance(model), measurement, **{"solver": CLOSE, **options})


# ---- closed forms -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 40, 100])
def test_a_linear_decoder_is_part_of_the_operator(n: int) -> None:
    through = conditioned(linear)
    plain = conditioned(None, lambda z: measured(linear(z)))
    a, b = through(X_T, n), plain(X_T, n)
    assert float((a.mean - b.mean).abs().max()) < 1e-9
    assert float((a.eps - b.eps).abs().max()) < 1e-8
    assert float((b.mean - gaussian()(X_T, n).mean).abs().max()) > 1e-3
    assert float((through.residual(X_T, n) - plain.residual(X_T, n)).abs().max()) < 1e-9
    assert float((through.log_likelihood(X_T, n) - plain.log_likelihood(X_T, n)).abs().max()) < 1e-9


@pytest.mark.parametrize("n", [5, 40, 90])
def test_a_bent_decoder_is_linear_at_the_mean(n: int) -> None:
    """E15 with dense matrices: G = A ∂D at x̂_0, and (σ²/α) J = Σ for a Gaussian's exact mean."""
    level = SCHEDULE.level(n)
    mean = gaussian()(X_T, n).mean
    known = torch.linalg.inv(torch.linalg.inv(COVARIANCE) + (level.alpha / level.sigma) ** 2 * EYE)
    denoiser = conditioned(bent)
    found, explained = denoiser(X_T, n).mean, denoiser.residual(X_T, n)
    for k in range(3):
        G = torch.func.jacrev(lambda z: measured(bent(z))[0])(mean[k : k + 1]).view(5, d)
        r = Y[k] - measured(bent(mean[k : k + 1]))[0]
        u = torch.linalg.solve(G @ known @ G.T + STD**2 * EYE[:5, :5], r)
        assert float((found[k].flatten() - mean[k].flatten() - known @ G.T @ u).abs().max()) < 1e-8
        assert float((explained[k] - r @ u / 5).abs()) < 1e-8


def test_elements_that_are_not_seen_count_for_nothing() -> None:
    mask = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    masked = conditioned(bent, lambda x: mask * measured(x), y=Y + 7 * (1 - mask))
    kept = conditioned(bent, lambda x: measured(x)[:, mask > 0], y=Y[:, mask > 0])
    assert float((masked(X_T, 40).mean - kept(X_T, 40).mean).abs().max()) < 1e-9
    assert float((masked.residual(X_T, 40) - kept.residual(X_T, 40)).abs().max()) < 1e-9


def test_an_operator_outside_torch_comes_with_its_adjoint() -> None:
    def outside(x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(x.numpy().reshape(len(x), -1) @ SEEN.numpy().T)

    def back(u: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy((u.numpy() @ SEEN.numpy()).reshape(-1, 3, 2, 2))

    model = gaussian()
    measurement = dv.Measurement(Y, outside, back, STD, through=bent)
    found = dv.ConditionedDenoiser(model, dv.ExactCovariance(model), measurement, solver=CLOSE)(X_T, 40)
    assert float((found.mean - conditioned(bent)(X_T, 40).mean).abs().max()) < 1e-9


# ---- autoencoders -------------------------------------------------------------------------------------------------

AUTOENCODERS: dict[str, Callable[[], Any]] = {
    "kl with attention": lambda: seeded(AutoencoderKL, **CODEC, latent_channels=2, scaling_factor=0.5),
    "tiny": lambda: seeded(
        AutoencoderTiny,
        encoder_block_out_channels=(4, 4),
        decoder_block_out_channels=(4, 4),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
        latent_channels=2,
    ),
    "vq": lambda: seeded(VQModel, **CODEC, latent_channels=2, num_vq_embeddings=16),
}


def codec(name: str, dtype: torch.dtype = torch.float64) -> LatentCodec:
    return LatentCodec.of(AUTOENCODERS[name]().to(dtype), torch.device("cpu"))


def decoded(through: Any, dtype: torch.dtype = torch.float64) -> Decoded:
    half = dv.Measurement(torch.zeros(2, 3, 4, 4, dtype=dtype), halved, noise=0.1, through=through)
    return Decoded(half, (2, 4, 4), dtype)


def halved(images: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.avg_pool2d(images, 2)


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_products_with_an_autoencoders_derivative(name: str) -> None:
    """∂D v against central differences (of the decoder behind VQ's codebook, through which gradients go straight), and
    ∂Dᵀ against ∂D."""
    own = codec(name)
    z, v, w = normal(2, 2, 4, 4, seed=7), normal(2, 2, 4, 4, seed=8), normal(2, 3, 4, 4, seed=9)
    value, near = decoded(own).at(z)
    h = 1e-7  # no ReLU turns within it
    if name == "vq":
        quantised = own.network.quantize(z / own.form.scale)[0].detach()  # type: ignore[operator]
        first, second = (
            own.network.decode(quantised + s * h * v / own.form.scale, force_not_quantize=True).sample.detach()  # type: ignore[operator]
            for s in (1, -1)
        )
    else:
        first, second = own.differentiable(z + h * v).detach(), own.differentiable(z - h * v).detach()
    moved = near.apply(v)
    assert float((value - halved(own.differentiable(z).detach())).abs().max()) < 1e-12
    assert float((moved - halved(first - second) / (2 * h)).abs().max()) < 1e-5 * float(moved.abs().max())
    left, right = float((moved * w).sum()), float((v * near.adjoint(w)).sum())
    assert left == pytest.approx(right, rel=1e-8)
    assert float((near.apply(2 * v) - 2 * moved).abs().max()) < 1e-10
    assert not moved.requires_grad


@pytest.mark.parametrize(("name", "forward"), [("kl with attention", True), ("tiny", True), ("vq", False)])
def test_forward_mode_where_every_layer_has_it(name: str, forward: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the other way gives the same."""
    found = decoded(codec(name))
    assert found._forward_mode is forward
    z, v = normal(2, 2, 4, 4, seed=7), normal(2, 2, 4, 4, seed=8)
    one = found.at(z)[1].apply(v)
    monkeypatch.setattr(found, "_forward_mode", False)
    assert float((found.at(z)[1].apply(v) - one).abs().max()) < 1e-10


def test_attention_is_as_it_was_afterwards() -> None:
    before = torch.backends.cuda.flash_sdp_enabled()
    decoded(codec("kl with attention")).at(normal(1, 2, 4, 4))[1].apply(normal(1, 2, 4, 4))
    assert torch.backends.cuda.flash_sdp_enabled() is before


def test_a_decoder_in_half_precision_gives_what_the_solver_works_in() -> None:
    own = codec("kl with attention", torch.bfloat16)
    z, v = normal(2, 2, 4, 4, seed=7).float(), normal(2, 2, 4, 4, seed=8).float()
    _, near = decoded(own, torch.float32).at(z)
    _, exact = decoded(codec("kl with attention", torch.float32), torch.float32).at(z)
    moved, true = near.apply(v), exact.apply(v)
    assert moved.dtype == torch.float32
    assert float((moved - true).norm() / true.norm()) < 0.05


# ---- a whole run --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def latent_model(tmp_path_factory: pytest.TempPathFactory) -> dv.Denoiser:
    """A class-conditional model of latents, of random weights."""
    return dv.Denoiser.from_pretrained(save_dit(tmp_path_factory.mktemp("dit") / "dit"), device="cpu")


@pytest.mark.parametrize(("exact", "gain"), [(True, 4.0), (False, 1.2)])
def test_samples_explain_what_was_measured(latent_model: dv.Denoiser, exact: bool, gain: float) -> None:
    """Of the pipeline's own network, and of one that knows that latents are N(0, I), with the pipeline's decoder."""
    own = latent_model.codec
    assert own is not None
    model: dv.Denoiser = latent_model
    if exact:
        model = dv.oracles.GaussianDenoiser(latent_model.schedule, 0.0, 1.0, latent_model.shape)
    of = {} if exact else {"conditions": [0, 2, 0, 2]}
    truth = own.decode(normal(2, 4, 8, 8, seed=1, dtype=torch.float32))
    y = halved(truth) + 0.05 * normal(2, 3, 8, 8, seed=2, dtype=torch.float32)
    measurement = dv.Measurement(y, halved, noise=0.05, through=own)
    denoiser = dv.ConditionedDenoiser(model, dv.PiGDM(), measurement)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        samples = dv.Sampler(denoiser, dv.FixedSmall(), 5).sample(4, seed=0, **of)
    cost = r"through the decoder, 20 solves .* took [\d.]+ products each"
    assert any(re.match(cost, str(one.message)) for one in told)
    assert torch.isfinite(samples).all()
    plain = dv.Sampler(model, dv.FixedSmall(), 5).sample(4, seed=0, **of)
    apart = [(halved(own.decode(x)) - y[torch.tensor([0, 1, 0, 1])]).square().mean((1, 2, 3)) for x in (samples, plain)]
    assert bool((gain * apart[0] < apart[1]).all()), apart


def test_the_cost_is_said_once(recwarn: pytest.WarningsRecorder) -> None:
    denoiser = conditioned(bent, y=Y.float())
    for _ in range(2):
        dv.Sampler(denoiser, dv.FixedSmall(), 2).sample(3)
    assert sum("through the decoder" in str(one.message) for one in recwarn) == 1


def test_solves_stop_early_unless_more_is_asked_for() -> None:
    whole = {"A": lambda x: x.flatten(1), "y": normal(3, 12, seed=9)}
    usual, close = conditioned(bent, solver="auto", **whole), conditioned(bent, **whole)
    a, b = usual(X_T, 40), close(X_T, 40)
    assert usual.counts()[3] < close.counts()[3]
    assert 1e-9 < float((a.mean - b.mean).abs().max()) < 0.05


def test_the_decoders_weights_tell_measurements_apart(latent_model: dv.Denoiser) -> None:
    y = torch.zeros(1, 3, 8, 8)
    one = dv.Measurement(y, halved, through=latent_model.codec).digest
    assert one != dv.Measurement(y, halved).digest
    assert one != dv.Measurement(y, halved, through=codec("tiny")).digest


# ---- what is refused ----------------------------------------------------------------------------------------------


class Random(torch.nn.Module):
    """Another image each time."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return linear(z) + 0.1 * self.calls


class Beside(torch.nn.Module):
    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return linear(z - z.mean(0))


class Backwards(torch.autograd.Function):
    """A derivative that can itself not be differentiated."""

    @staticmethod
    def forward(ctx: Any, z: torch.Tensor) -> torch.Tensor:
        return linear(z)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *given: torch.Tensor) -> Any:
        return (given[0].flatten(1) @ MAP.to(given[0])).view(-1, *SHAPE)


@pytest.mark.parametrize(
    ("through", "said"),
    [
        (3, r"through=3 must be a model's codec .*or a function"),
        (AUTOENCODERS["tiny"](), r"through=AutoencoderTiny must be a model's codec \(denoiser.codec\)"),
        (torch.no_grad()(bent), r"cannot be differentiated \(its images have no gradient\)"),
        (lambda z: bent(z).round().detach(), r"cannot be differentiated"),
        (Random(), r"another image of the same latents each time.*evaluation mode"),
        (Beside(), r"another image of the same latents each time, or by what is beside them"),
        (lambda z: bent(z)[0], r"the decoder gives torch.float64 \(3, 2, 2\) of .* latents \(2, 2, 2, 2\), but"),
        (lambda z: bent(z).float(), r"the decoder gives torch.float32 .* of their dtype"),
        (lambda z: bent(z).tolist(), r"the decoder gives list of"),
        (lambda z: z @ torch.ones(3, 3), r"the decoder fails on latents \(2, 2, 2, 2\) \(RuntimeError"),
        (Backwards.apply, r"can be differentiated neither forwards nor twice .*xformers"),
        (codec("tiny", torch.float32), r"A fails on a tensor of shape \(2, 3, 4, 4\)"),
    ],
)
def test_decoders_that_will_not_do(through: Any, said: str) -> None:
    with pytest.raises(dv.InputError, match=said):
        conditioned(through)


def test_type_2_is_refused() -> None:
    with pytest.raises(dv.InputError, match=r'guidance="II" of a measurement through a decoder .* guidance="I"'):
        conditioned(bent, guidance="II")


def test_posterior_noise_is_refused() -> None:
    with pytest.raises(dv.InputError, match=r"nor one through a decoder"):
        conditioned(bent).posterior_noise()


def test_latents_that_do_not_fit_a_codec() -> None:
    with pytest.raises(dv.InputError, match=r"latents are \(2, 4\).*\(B, c, h, w\)"):
        codec("tiny").differentiable(torch.zeros(2, 4))


def test_an_operator_that_does_not_fit_the_images() -> None:
    with pytest.raises(dv.InputError, match=r"A gives \(2, 6\) of \(2, 3, 2, 2\), but \(2, 5\) is expected"):
        conditioned(bent, lambda x: x.flatten(1)[:, :6])


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_what_a_codec_raises_is_a_network_error(where: str) -> None:
    own = codec("kl with attention")
    found = decoded(own)
    z = normal(2, 2, 4, 4)

    def fail(*_: Any) -> Any:
        raise ValueError("a bad day")

    if where == "forward":
        own.network.decoder.register_forward_hook(fail)
        with pytest.raises(dv.NetworkError, match=r"the autoencoder failed to decode a batch of 2: ValueError: a bad"):
            found.at(z)
        return
    own.network.decoder.register_forward_hook(lambda *given: given[-1].register_hook(fail) and None)
    with pytest.raises(dv.NetworkError, match=r"the decoder failed in the backward pass, in a batch of 2: ValueError"):
        found.at(z)[1].adjoint(normal(2, 3, 4, 4))


def test_a_codec_is_left_in_its_mode_and_evaluated_in_evaluation_mode(tmp_path: Path) -> None:
    own = codec("kl with attention")
    modes: list[bool] = []
    own.network.decoder.register_forward_hook(lambda module, *_: modes.append(module.training))
    own.network.train()
    decoded(own).at(normal(1, 2, 4, 4))[1].apply(normal(1, 2, 4, 4))
    assert own.network.training
    assert modes
    assert not any(modes)
