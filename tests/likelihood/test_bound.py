"""What `bits_per_dim` and `density_bound` promise: the sum of their terms, each of them right, for every covariance."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from small_likelihoods import SCHEDULE, SHAPE, STEPS, Network, measured, pictures, small_denoiser, step_by_step

import diffusion_var as dv


@pytest.fixture(scope="module")
def table() -> dv.VarianceTable:
    return measured(small_denoiser())


def bound(denoiser: Any = None, covariance: Any = None, images: Any = None, **options: Any) -> dv.LikelihoodBound:
    denoiser = small_denoiser() if denoiser is None else denoiser
    images = pictures(6) if images is None else images
    return dv.bits_per_dim(denoiser, covariance or dv.FixedSmall(), images, **{"steps": STEPS, **options})


# ---- the value, worked out image by image -------------------------------------------------------------------------


@pytest.mark.parametrize("decoder", ["beta_tilde", "isotropic", "pixel", 0.002])
@pytest.mark.parametrize("structure", ["isotropic", "channel", "pixel", "dct"])
def test_analytic_covariances_step_by_step(table: dv.VarianceTable, structure: str, decoder: Any) -> None:
    covariance, images = dv.Analytic(table, structure=structure), pictures(6)
    found = bound(covariance=covariance, images=images, seed=5, decoder_variance=decoder, batch_size=4)
    last = {"beta_tilde": dv.ReverseKernel(SCHEDULE, 2, 1).beta_tilde, 0.002: 0.002}.get(decoder)
    if last is None:
        last = np.maximum(table.posterior_variance(1, structure=decoder), (2 / 255) ** 2 / 12)
    expected = step_by_step(
        small_denoiser(),
        images,
        STEPS,
        lambda kernel, _: kernel.lambda2 + kernel.gain**2 * table.posterior_variance(kernel.t, structure=structure),
        last,
        seed=5,
        dct=structure == "dct",
    )
    np.testing.assert_allclose(found.per_step, expected.mean(0), rtol=2e-5)
    assert found.value == pytest.approx(expected.sum(1).mean(), rel=2e-5)
    np.testing.assert_allclose(found.per_step_error, expected.std(0, ddof=1) / math.sqrt(6), rtol=1e-3)
    assert found.standard_error == pytest.approx(expected.sum(1).std(ddof=1) / math.sqrt(6), rel=1e-3)


OTHERS: dict[str, Any] = {
    "beta_tilde": (dv.FixedSmall(), lambda kernel, _: kernel.lambda2),
    "beta": (dv.FixedLarge(), lambda kernel, _: kernel.beta),
    "learned_range": (
        dv.LearnedRange(),
        lambda kernel, raw: np.exp((raw + 1) / 2 * math.log(kernel.beta / kernel.beta_tilde)) * kernel.beta_tilde,
    ),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("clip", [None, (-0.3, 0.3)])
@pytest.mark.parametrize(
    ("eta", "clipped_eps"), [(1.0, None), (1.0, "network"), (0.5, None), (0.5, "rederived"), (0.05, None)]
)
def test_other_covariances_step_by_step(name: str, clip: Any, eta: float, clipped_eps: Any) -> None:
    covariance, variances = OTHERS[name]
    denoiser = small_denoiser(Network(doubled=name == "learned_range"), clip=clip, data_range=(-1.0, 1.0))
    options: dict[str, Any] = {"eta": eta, "clipped_eps": clipped_eps}
    if eta < 1 and name != "beta_tilde":
        with pytest.raises(dv.InputError, match="eta=1 only"):
            bound(denoiser, covariance, **options)
        return
    found = bound(denoiser, covariance, pictures(5), decoder_variance=0.01, draws=2, **options)
    expected = np.mean(
        [
            step_by_step(denoiser, pictures(5), STEPS, variances, 0.01, draw=draw, **options).mean(0)
            for draw in range(2)
        ],
        0,
    )
    np.testing.assert_allclose(found.per_step, expected, rtol=2e-5)


def test_clipping_with_the_networks_eps_uses_the_tables_three_moments() -> None:
    denoiser = small_denoiser(clip=(-0.2, 0.2), data_range=(-1.0, 1.0))
    table = measured(denoiser)

    def variance(kernel: dv.ReverseKernel, _: Any) -> Any:
        error, cross, shift = table.clipping_moments(kernel.t, "pixel")
        return kernel.lambda2 + np.maximum(
            kernel.gain**2 * error - 2 * kernel.gain * kernel.eps_gain * cross + kernel.eps_gain**2 * shift, 0
        )

    options: dict[str, Any] = {"eta": 0.5, "clipped_eps": "network"}
    found = bound(denoiser, dv.Analytic(table, structure="pixel"), decoder_variance=0.01, **options)
    expected = step_by_step(denoiser, pictures(6), STEPS, variance, 0.01, **options).mean(0)
    np.testing.assert_allclose(found.per_step, expected, rtol=2e-5)
    plain = step_by_step(denoiser, pictures(6), STEPS, lambda kernel, _: kernel.beta, 0.01, **options).mean(0)
    assert found.value != pytest.approx(plain.sum(), rel=1e-2)  # the choice matters here


def test_fine_levels_are_the_density_less_the_width_of_a_level() -> None:
    """P(level) → density · width: the two kinds of bound are one."""
    levels = 8192
    k = np.random.default_rng(1).integers(levels // 4, 3 * levels // 4, (20, *SHAPE))
    x_0 = torch.from_numpy(k * (2 / (levels - 1)) - 1)
    options: dict[str, Any] = {"steps": STEPS, "decoder_variance": 0.01}
    discrete = dv.bits_per_dim(small_denoiser(), dv.FixedSmall(), x_0, levels=levels, **options)
    density = dv.density_bound(small_denoiser(), dv.FixedSmall(), x_0, **options)
    assert discrete.value == pytest.approx(density.value + math.log2((levels - 1) / 2), abs=1e-5)
    assert (discrete.kind, density.kind) == ("discrete", "density")
    assert discrete.unit != density.unit


# ---- what comes back ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 7, [40], [5, 6, 100]])
def test_parts_sum_to_the_value_and_have_names(steps: Any) -> None:
    network = Network()
    found = bound(small_denoiser(network), steps=steps, draws=2, batch_size=4, decoder_variance=0.01)
    K = len(found.steps)
    assert found.per_step.shape == found.per_step_error.shape == (K + 1,)
    assert float(found) == found.value == pytest.approx(found.per_step.sum(), rel=1e-12)
    assert (found.prior, found.decoder) == (found.per_step[0], found.per_step[-1])
    assert len(found.labels) == K + 1
    assert found.labels[0] == f"prior at {found.steps[-1]}"
    assert found.labels[-1] == f"decoder {found.steps[0]} to 0"
    assert found.labels[1:-1] == [f"{t} to {s}" for s, t in zip(found.steps, found.steps[1:], strict=False)][::-1]
    assert (found.images, found.draws, found.evaluations) == (6, 2, network.rows)
    assert network.rows == 6 * 2 * K


def test_everything_is_plain_data(table: dv.VarianceTable, tmp_path: Any) -> None:
    found = bound(covariance=dv.Analytic(table, structure="dct"), decoder_variance="pixel", draws=2)
    document = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert document["value"] == found.value
    assert [part["term"] for part in document["per_step"]] == found.labels
    assert [part["value"] for part in document["per_step"]] == found.per_step.tolist()
    assert document["covariance"]["table"] == table.digest
    assert (document["steps"], document["levels"], document["data_range"]) == (STEPS, 256, [-1.0, 1.0])
    assert (document["images"], document["draws"], document["evaluations"]) == (6, 2, 48)
    # NumPy's numbers are numbers too, wherever one is asked for
    odd: dict[str, Any] = {"decoder_variance": np.float32(0.25), "seed": np.int64(3), "levels": np.int64(256)}
    for checkpoint in (None, tmp_path / "run"):
        document = bound(**odd, eta=np.float64(0.5), draws=np.int64(1), checkpoint=checkpoint).to_dict()
        assert json.loads(json.dumps(document))["decoder_variance"] == 0.25


def test_one_image_and_one_draw_have_no_errors() -> None:
    found = bound(images=pictures(1))
    assert math.isnan(found.standard_error)
    assert math.isnan(found.noise_error)
    document = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert document["standard_error"] is document["noise_error"] is document["per_step"][1]["standard_error"] is None


def test_text_names_value_error_and_parts() -> None:
    found = bound(draws=2)
    text = str(found)
    middle = found.value - found.prior - found.decoder
    assert f"at most {found.value:.4f} bits/dim (6 images, standard error {found.standard_error:.2g}, " in text
    assert f"of the noise alone {found.noise_error:.2g})" in text
    assert f"prior {found.prior:.4f} + 3 steps {middle:.4f} + decoder {found.decoder:.4f}" in text


def test_text_claims_no_more_than_is_known() -> None:
    """Sampled steps make a bound only on average; one image has no spread."""
    assert str(bound(steps=12, step_samples=2)).startswith("bound, from sampled steps: ")
    assert "nan" not in str(bound(images=pictures(1)))
    assert "error" not in str(bound(images=pictures(1)))


# ---- images, however they come ------------------------------------------------------------------------------------


class Labelled(torch.utils.data.Dataset[Any]):
    """(image, label) pairs, as torchvision gives them."""

    def __init__(self, images: torch.Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return self.images[i], i


def test_every_source_of_the_same_images_gives_the_same() -> None:
    images = pictures(7)
    expected = bound(images=images).value
    floats = images.float() / 127.5 - 1
    for source in (images.numpy(), floats, floats.double().numpy(), Labelled(images), Labelled(floats), list(images)):
        assert bound(images=source).value == pytest.approx(expected, rel=1e-6)
    free = small_denoiser(clip=None)
    with_range = small_denoiser(clip=None, data_range=(-1.0, 1.0))
    assert bound(free, images=images, data_range=(-1, 1)).value == bound(with_range, images=images).value


@pytest.mark.parametrize("step_samples", [None, 2])
@pytest.mark.parametrize("doubled", [False, True])
def test_batch_size_changes_nothing(table: dv.VarianceTable, doubled: bool, step_samples: int | None) -> None:
    denoiser = small_denoiser(Network(doubled))
    covariance = dv.LearnedRange() if doubled else dv.Analytic(table, structure="dct")
    expected, *others = (
        bound(denoiser, covariance, pictures(9), draws=2, step_samples=step_samples, batch_size=size)
        for size in (9, 1, 2, 5, 18, 64)
    )
    for found in others:
        np.testing.assert_allclose(found.per_step, expected.per_step, rtol=1e-6, atol=1e-9)
        assert found.standard_error == pytest.approx(expected.standard_error, rel=1e-5)
        assert found.noise_error == pytest.approx(expected.noise_error, rel=1e-5)
        assert found.evaluations == expected.evaluations


def test_the_network_is_always_full() -> None:
    """Batches mix indices: K · images evaluations take no more calls than they must."""
    sizes = []
    network = Network()
    network.register_forward_pre_hook(lambda module, given: sizes.append(len(given[0])))
    bound(small_denoiser(network), images=pictures(12), steps=10, step_samples=3, batch_size=8)
    assert sizes == [8] * 6


# ---- levels, other noise, images of any shape ------------------------------------------------------------------------


@pytest.mark.parametrize("structure", ["isotropic", "dct"])
def test_levels_of_indices_give_the_indices_bits(table: dv.VarianceTable, structure: str) -> None:
    covariance = dv.Analytic(table, structure=structure)
    levels = [SCHEDULE.level(n) for n in STEPS[::-1]]
    mine, own = (dv.bits_per_dim(small_denoiser(), covariance, pictures(6), steps, 2) for steps in (levels, STEPS))
    np.testing.assert_array_equal(mine.per_step, own.per_step)
    assert mine.labels == own.labels


def test_levels_between_indices_and_other_noise(table: dv.VarianceTable) -> None:
    levels = dv.steps.sigmas(SCHEDULE, [0.9, 0.5, 0.1, 0.0101])
    options: dict[str, Any] = {"decoder_variance": "isotropic", "seed": 3}
    covariance, images = dv.Analytic(table, structure="pixel"), pictures(12)
    found = dv.bits_per_dim(small_denoiser(), covariance, images, levels, **options)
    assert math.isfinite(found.value)
    assert found.settings["eta"] == 1.0
    assert found.labels[1].startswith("log SNR ")
    again = dv.bits_per_dim(small_denoiser(), covariance, images, levels, **options, batch_size=5)
    assert again.value == pytest.approx(found.value, rel=1e-6)
    ddpm, same, more = (
        dv.bits_per_dim(small_denoiser(), covariance, images, STEPS, **options, **noise)
        for noise in ({}, {"tau": 1.0}, {"tau": 2.0})
    )
    np.testing.assert_allclose(same.per_step, ddpm.per_step, rtol=1e-6, atol=1e-9)
    assert abs(more.value - ddpm.value) > 1e-3
    assert (same.settings["tau"], "eta" in same.settings) == (1.0, False)
    bound = dv.Bound(small_denoiser(), covariance, STEPS, decoder_variance="isotropic", tau=1.0)
    assert bound.evaluate(images, 3).value == same.value


@pytest.mark.parametrize("shape", [(6,), (2, 9), (3, 4, 5), (1, 2, 3, 4)], ids=["vector", "signal", "image", "video"])
@pytest.mark.parametrize("structure", ["isotropic", "channel", "pixel", "dct"])
def test_gaussian_data_of_any_shape_lose_nothing(shape: tuple[int, ...], structure: str) -> None:
    """White data: every structure is exact, and the bound is the entropy, up to the prior's term."""
    denoiser = dv.oracles.GaussianDenoiser(SCHEDULE, 0.0, np.full(shape, 0.6))
    images = denoiser.sample(4000, seed=1)
    table = dv.estimate(denoiser, images, 1e3, indices=[1, 40, 100], progress=False)
    covariance = dv.Analytic(table, structure=structure)
    found = dv.density_bound(denoiser, covariance, images, [1, 40, 100], decoder_variance="covariance", draws=2)
    entropy = 0.5 * math.log2(2 * math.pi * math.e * 0.6)
    prior = found.per_step[0]
    marginal = SCHEDULE.alpha[100] ** 2 * 0.6 + SCHEDULE.sigma[100] ** 2
    expected = entropy + 0.5 * (marginal - 1 - math.log(marginal)) / math.log(2)
    assert prior > 0
    assert abs(found.value - expected) < 4 * found.standard_error + 0.01
