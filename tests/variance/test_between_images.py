"""The error that includes the choice of the images: what it estimates, that its intervals cover, where it is shown."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

import diffusion_var as dv
from diffusion_var.variance.between_images import between_images

SCHEDULE, SHAPE = dv.NoiseSchedule.linear(1000), (1, 4, 4)
INDICES = [200, 600]
ALONE: dict[str, Any] = {"tolerance": 1e9, "indices": INDICES, "structures": ["isotropic"], "progress": False}


# ---- random effects whose variance is known ------------------------------------------------------------------------


def drawn(
    images: int, draws: int, between: float, noise: float, seed: int = 0, levels: int = 1
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Draws with replacement of y = 3 + g(image) + noise, of which nothing is known given the image."""
    rng = np.random.default_rng(seed)
    g, which = rng.normal(0, np.sqrt(between), images), rng.integers(images, size=(levels, draws))
    values = rng.normal(size=(levels, draws, 5))
    values[..., :3] = 3 + g[which][..., None] + np.sqrt(noise) * values[..., :3]
    return which, values


@pytest.mark.parametrize(("between", "noise"), [(1.0, 0.0), (1.0, 1.0), (0.1, 2.0), (0.0, 1.0)])
def test_pairs_tell_the_images_from_the_noise(between: float, noise: float) -> None:
    found = np.mean([between_images(*drawn(300, 1024, between, noise, s), np.zeros(1)) for s in range(40)], (0, 1))
    # Sixteen pairs of ratio 1 beside about 1,700: a hundredth of the noise is taken for images.
    assert np.abs(found - between - noise * 16 / (16 + 1024**2 / 600)).max() < 0.03 * (between + noise)


def test_what_is_known_given_the_image_is_taken_away() -> None:
    which, values = drawn(10**6, 1024, 0.5, 0.0)
    values[..., :3] += 2.0 * values[..., 3:4] - 3.0 * values[..., 4:5]
    assert between_images(which, values, np.zeros(1)) == pytest.approx(0.5, rel=0.1)


def test_without_pairs_the_upper_bound_stands() -> None:
    """Never less than the truth on average: of a million images hardly one is drawn twice."""
    found = [between_images(*drawn(10**6, 256, 0.3, 0.7, s), np.zeros(1)) for s in range(20)]
    assert np.mean(found) == pytest.approx(1.0, rel=0.05)


def test_pairs_of_near_levels_are_pooled_and_those_of_far_ones_are_not() -> None:
    which, values = drawn(400, 256, 0.1, 0.9, levels=30)
    # 82 pairs a level against the 16 pull the bound down to 0.25; with all 30 levels' the pull is gone.
    far = between_images(which, values, 10.0 * np.arange(30))
    near = between_images(which, values, 0.01 * np.arange(30))
    assert far.std() > 2 * near.std()
    assert far.mean() == pytest.approx(0.1 + 0.9 * 16 / 98, abs=0.06)
    assert near.mean() == pytest.approx(0.1, abs=0.03)


def test_zero_snr_has_no_neighbours() -> None:
    which, values = drawn(100, 256, 1.0, 1.0, levels=2)
    found = between_images(which, values, np.array([0.0, -np.inf]))
    assert np.array_equal(found[1:], between_images(which[1:], values[1:], np.zeros(1)))


def test_too_few_draws_say_nothing() -> None:
    which, values = drawn(100, 256, 1.0, 1.0)
    which[:, 20:] = -1
    assert np.isnan(between_images(which, values, np.zeros(1))).all()


# ---- coverage over random choices of images ------------------------------------------------------------------------


@cache
def mixture() -> dv.oracles.MixtureDenoiser:
    means = np.random.default_rng(0).normal(size=(6, *SHAPE))
    return dv.oracles.MixtureDenoiser(SCHEDULE, means, np.array([0.01, 0.02, 0.05, 0.1, 0.3, 0.6]))


@cache
def truth() -> dict[int, float]:
    """E‖x_0 − x̂_0‖²/d over 100,000 images."""
    x_0, noise = mixture().sample(100_000, 10**6), torch.Generator().manual_seed(1)
    found = {}
    for n in INDICES:
        alpha, sigma = float(SCHEDULE.alpha[n]), float(SCHEDULE.sigma[n])
        x_t = alpha * x_0 + sigma * torch.randn(x_0.shape, generator=noise)
        found[n] = float((x_0 - mixture()(x_t, n).mean).double().square().mean())
    return found


def test_intervals_cover_the_value_of_other_images() -> None:
    """120 populations of 150 images; without the images' own variance the intervals are far too short."""
    with_images, noise_alone = [], []
    for seed in range(120):
        table = dv.estimate(mixture(), mixture().sample(150, seed), seed=seed, **ALONE)
        for n in INDICES:
            gap = abs(table.posterior_variance(n) - truth()[n])
            with_images.append(gap < 1.96 * table.standard_error(n, images=True))
            noise_alone.append(gap < 1.96 * table.standard_error(n))
    assert 0.92 < np.mean(with_images) < 0.985
    assert np.mean(noise_alone) < 0.75


def test_more_draws_do_not_help_and_more_images_do() -> None:
    def error(count: int, draws: int) -> float:
        options = {**ALONE, "indices": [600], "tolerance": 1e-9, "max_evaluations": draws}
        with pytest.warns(dv.DiffusionVarWarning, match="before the tolerance"):
            table = dv.estimate(mixture(), mixture().sample(count, 5), **options)
        return table.standard_error(600, images=True) / table.posterior_variance(600)

    assert error(400, 1024) == pytest.approx(error(400, 8192), rel=0.15)
    assert error(1600, 8192) == pytest.approx(error(400, 8192) / 2, rel=0.15)


# ---- where it is shown ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table() -> dv.VarianceTable:
    options = {**ALONE, "structures": ["isotropic", "channel"], "indices": [200, 400, 600]}
    return dv.estimate(mixture(), mixture().sample(150), **options)


@pytest.mark.parametrize("estimator", ["residual", "score_norm", "data_variance"])
def test_the_second_error_holds_the_first(table: dv.VarianceTable, estimator: Any) -> None:
    for n in (200, 300, 600):
        noise, both = table.standard_error(n, estimator), table.standard_error(n, estimator, images=True)
        assert np.isfinite(both)
        assert both > noise
    own = table.standard_error(200, estimator, images=True) ** 2 - table.standard_error(200, estimator) ** 2
    scale = (SCHEDULE.sigma[200] / SCHEDULE.alpha[200]) ** 4 if estimator == "score_norm" else 1.0
    assert table.image_variance is not None
    column = ["residual", "score_norm", "data_variance"].index(estimator)
    assert own == pytest.approx(scale * table.image_variance[0, column] / 149, rel=1e-9)


def test_it_is_in_the_file_and_in_the_text(table: dv.VarianceTable, tmp_path: Any) -> None:
    table.save(tmp_path / "t.safetensors")
    again = dv.VarianceTable.load(tmp_path / "t.safetensors")
    assert again.digest == table.digest
    assert np.array_equal(again.image_variance, table.image_variance)
    assert np.array_equal(table.subset(["channel"]).image_variance, table.image_variance)
    row = next(line for line in again.summary().splitlines() if line.startswith("   600"))
    shown = [f"{table.relative_error(600):.2%}", f"{table.relative_error(600, images=True):.2%}"]
    assert row.split()[3:5] == shown
    assert "these are a random choice" in again.summary()


def test_a_table_of_an_earlier_version_does_not_know_it(table: dv.VarianceTable, tmp_path: Any) -> None:
    replace(table, image_variance=None).save(tmp_path / "t.safetensors")
    old = dv.VarianceTable.load(tmp_path / "t.safetensors")
    assert old.standard_error(200) == table.standard_error(200)
    assert np.isnan(old.standard_error(200, images=True))
    assert "unknown" in old.summary()


def test_of_one_image_nothing_is_known_of_others() -> None:
    with pytest.warns(dv.DiffusionVarWarning, match="the images are few"):
        one = dv.estimate(mixture(), mixture().sample(1), **ALONE)
    assert one.standard_error(200, images=True) == np.inf


def test_an_elementwise_structure_is_refused(table: dv.VarianceTable) -> None:
    assert table.relative_error(200, images=True) > table.relative_error(200)
    with pytest.raises(dv.InputError, match="images=True is known for structure 'isotropic' alone, but got 'channel'"):
        table.relative_error(200, "channel", images=True)


def test_a_checkpoint_of_an_earlier_version_is_taken_further(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusion_var.variance.between_images import ImageDraws

    def run(images: Any, budget: int) -> dv.VarianceTable:
        options = {**ALONE, "indices": [600], "tolerance": 1e-9, "max_evaluations": budget}
        with pytest.warns(dv.DiffusionVarWarning):
            return dv.estimate(mixture(), images, checkpoint=tmp_path / "c", **options)

    images = mixture().sample(100)
    with monkeypatch.context() as patch:
        patch.setattr(ImageDraws, "arrays", lambda self: {})
        old = run(images, 256)
    assert np.array_equal(run(images, 256).moments["isotropic"].means, old.moments["isotropic"].means)
    assert np.isnan(run(images, 256).standard_error(600, images=True))
    assert np.isfinite(run(images, 512).standard_error(600, images=True))


# ---- few images, and images in an order ----------------------------------------------------------------------------


def by_brightness(images: torch.Tensor) -> torch.Tensor:
    return images[images.mean((1, 2, 3)).argsort()]


@pytest.mark.parametrize("arrange", [by_brightness, lambda x: x[x.square().mean((1, 2, 3)).argsort()]])
def test_the_first_images_of_a_sorted_set_are_told(arrange: Callable[[torch.Tensor], torch.Tensor]) -> None:
    first = arrange(mixture().sample(2000))[:400]
    with pytest.warns(dv.DiffusionVarWarning, match="the images are in an order: 10 successive parts"):
        table = dv.estimate(mixture(), first, **ALONE)
    assert "the images are in an order" in table.summary()
    gap = abs(table.posterior_variance(600) - truth()[600])
    assert gap > 4 * table.standard_error(600)  # what the warning is about


def test_few_images_are_told_once_their_choice_matters() -> None:
    options = {**ALONE, "tolerance": 0.02}
    with pytest.warns(dv.DiffusionVarWarning, match=r"the images are few: the tolerance 0\.02 is for these 20 alone"):
        table = dv.estimate(mixture(), mixture().sample(20), **options)
    assert "the images are few" in table.summary()
    many = dv.estimate(mixture(), mixture().sample(1000), **options)
    assert "which_images" not in many.details
