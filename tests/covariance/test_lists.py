"""VarianceLists: a table's answers as numbers that fit into a JSON config, and back, with nothing lost."""

import itertools
import json
from typing import Any, Literal

import numpy as np
import pytest
import torch

import diffusion_var as dv
from diffusion_var.covariance.lists import VarianceLists

N, SHAPE = 50, (3, 4, 4)
SCHEDULE = dv.NoiseSchedule.linear(N)
Estimator = Literal["residual", "score_norm", "data_variance"]
ESTIMATORS: tuple[Estimator, ...] = ("residual", "score_norm", "data_variance")


def denoiser(clip: tuple[float, float] | None, channels: int = 3) -> dv.Denoiser:
    def network(x_t: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """Imperfect enough for clipping to act, otherwise in each channel."""
        gain = torch.linspace(0.5, 1.0, x_t.shape[1])[:, None, None]
        return gain * torch.tanh(1.4 * x_t) + 0.1 * x_t.flip(-1)

    return dv.Denoiser(network, SCHEDULE, "epsilon", (channels, 4, 4), clip=clip, data_range=(-1.0, 1.0))


@pytest.fixture(scope="module", params=[(-1.0, 1.0), None], ids=["clipped", "free"])
def table(request: pytest.FixtureRequest) -> dv.VarianceTable:
    spread = np.array([0.3, 0.6, 1.0])[:, None, None]
    images = np.tanh(spread * np.random.default_rng(0).standard_normal((40, *SHAPE)))
    return dv.estimate(denoiser(request.param), images, 1e9, indices=[1, 8, 20, 35, N], progress=False)


def posterior(channels: int = 3, dtype: torch.dtype = torch.float64) -> dv.Posterior:
    zeros = torch.zeros(2, channels, 4, 4, dtype=dtype)
    return dv.Posterior(zeros, zeros)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("clipped_eps", ["network", "rederived"])
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("structure", ["isotropic", "channel"])
def test_every_step_is_the_tables(
    table: dv.VarianceTable,
    structure: str,
    estimator: Estimator,
    clipped_eps: Literal["network", "rederived"],
    eta: float,
) -> None:
    noise = torch.from_numpy(np.random.default_rng(1).standard_normal((2, *SHAPE)))
    for bounded in (None, True, False):
        expected = dv.Analytic(table, estimator, structure, bounded)
        lists = VarianceLists.from_table(table, estimator, structure, bounded)
        steps = [(t, s) for t in range(1, N + 1) for s in {t - 1, t // 2, 0}]
        for t, s in steps if bounded is None else steps[::9]:
            kernel = dv.ReverseKernel(SCHEDULE, t, s, eta, clipped_eps)
            flat = np.squeeze(expected.variance(kernel))  # a table's have the image's axes
            np.testing.assert_allclose(lists.variance(kernel), flat, rtol=1e-14, atol=0)
        one, other = lists(posterior(), kernel), expected(posterior(), kernel)
        torch.testing.assert_close(one.colour(noise), other.colour(noise), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(one.log_det(), other.log_det(), rtol=1e-12, atol=1e-12)
    assert lists.name == expected.name == f"analytic-{structure}"


@pytest.mark.parametrize("structure", ["isotropic", "channel"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_sampler_makes_the_same_images(table: dv.VarianceTable, structure: str, eta: float) -> None:
    model = denoiser(table.clip)
    options: dict[str, Any] = {"steps": 6, "eta": eta, "final_noise_cap": 2.0}
    expected = dv.Sampler(model, dv.Analytic(table, structure=structure), **options).sample(3)
    images = dv.Sampler(model, VarianceLists.from_table(table, structure=structure), **options).sample(3)
    assert torch.equal(images, expected)


def test_clipping_moments_are_listed_where_they_count(table: dv.VarianceTable) -> None:
    for estimator, structure in itertools.product(ESTIMATORS, ("isotropic", "channel")):
        lists = VarianceLists.from_table(table, estimator, structure).lists()
        counts = table.clip is not None and estimator == "residual"
        assert all((lists[name] is not None) == counts for name in ("clipping_cross", "clipping_shift"))
        assert np.shape(lists["posterior_variance"]) == ((N,) if structure == "isotropic" else (N, 3))


@pytest.mark.parametrize("structure", ["isotropic", "channel"])
def test_json_and_back_loses_nothing(table: dv.VarianceTable, structure: str) -> None:
    original = VarianceLists.from_table(table, structure=structure)
    text = json.dumps(original.lists())
    variances, cross, shift = json.loads(text).values()
    again = VarianceLists(variances, cross, shift)
    for name in ("variances", "cross", "shift"):
        assert np.array_equal(getattr(again, name), getattr(original, name))
    assert json.dumps(again.lists()) == text
    for t in (1, 30, N):
        kernel = dv.ReverseKernel(SCHEDULE, t, t - 1, 0.5, "network")
        assert np.array_equal(again.variance(kernel), original.variance(kernel))


def test_the_formula() -> None:
    """λ² + γ² v − 2 γ c E rδ + c² E δ² for the step's own index, and with ε̂ re-derived λ² + γ² v."""
    v, cross, shift = (np.random.default_rng(k).uniform(0.1, 0.4, (N, 3)) for k in range(3))
    lists = VarianceLists(v.tolist(), cross.tolist(), shift.tolist())
    for t, s, eta in ((N, 40, 0.3), (7, 6, 1.0), (1, 0, 0.0)):
        k = dv.ReverseKernel(SCHEDULE, t, s, eta, "network")
        added = k.gain**2 * v[t - 1] - 2 * k.gain * k.eps_gain * cross[t - 1] + k.eps_gain**2 * shift[t - 1]
        expected = k.lambda2 + np.maximum(added, 0.0)
        np.testing.assert_allclose(lists.variance(k), expected, rtol=1e-12)
        k = dv.ReverseKernel(SCHEDULE, t, s, eta, "rederived")
        np.testing.assert_allclose(lists.variance(k), k.lambda2 + k.gain**2 * v[t - 1], rtol=1e-12)


def test_any_image_size_and_no_posterior_at_all() -> None:
    kernel = dv.ReverseKernel(SCHEDULE, 30, 20)
    lists = VarianceLists([[0.1, 0.2, 0.3]] * N)
    noise = torch.from_numpy(np.random.default_rng(1).standard_normal((2, 3, 8, 6)))
    shaped = dv.Posterior(noise, noise)
    expected = noise * torch.from_numpy(np.sqrt(lists.variance(kernel)))[:, None, None]
    torch.testing.assert_close(lists(shaped, kernel).colour(noise), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(lists(None, kernel).colour(noise), expected, rtol=1e-6, atol=1e-6)
    assert lists(posterior(dtype=torch.float32), kernel).variance.dtype == torch.float32


# ---- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), r"posterior_variance has shape \(0,\), but \(N,\) or \(N, C\) is expected"),
        ((0.5,), r"posterior_variance has shape \(\)"),
        (([[[0.1]]],), r"posterior_variance has shape \(1, 1, 1\)"),
        (([[0.1, 0.2], [0.3]],), "posterior_variance must be a list of N numbers, or N lists of C numbers"),
        ((["a"],), "posterior_variance must be a list of N numbers"),
        (([0.1, float("nan")],), "posterior_variance holds NaN or infinite values"),
        (([0.1, float("inf")],), "posterior_variance holds NaN or infinite values"),
        (([0.1, None],), "posterior_variance"),
        (([0.1, -0.2],), "posterior_variance at index 2 is -0.2, but it must be at least 0"),
        (([[0.1, 0.2], [0.3, -0.4]],), r"posterior_variance at index 2 is .*, but it must be at least 0"),
        (([0.1, 0.2], [0.1]), r"clipping_cross has shape \(1,\), but \(2,\) is expected"),
        (([0.1, 0.2], [[0.1], [0.2]]), r"clipping_cross has shape \(2, 1\), but \(2,\) is expected"),
        (([0.1, 0.2], None, [[0.1], [0.2]]), r"clipping_shift has shape \(2, 1\), but \(2,\) is expected"),
        (([0.1, 0.2], None, [0.1, float("nan")]), "clipping_shift holds NaN"),
    ],
)
def test_bad_lists_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(dv.InputError, match=message):
        VarianceLists(*arguments)


@pytest.mark.parametrize("structure", ["pixel", "dct", "block"])
def test_structures_with_a_variance_per_element_are_refused(table: dv.VarianceTable, structure: str) -> None:
    with pytest.raises(dv.InputError, match=f"the structure '{structure}' has a variance per element"):
        VarianceLists.from_table(table, structure=structure)


def test_lists_for_another_model_are_refused() -> None:
    with pytest.raises(dv.InputError, match="there are 49 variances, but the schedule has N=50"):
        dv.Sampler(denoiser(None), VarianceLists([0.1] * 49), 5)
    with pytest.raises(dv.InputError, match="variances for 3 channels, but the images have 2"):
        VarianceLists([[0.1, 0.2, 0.3]] * N)(posterior(channels=2), dv.ReverseKernel(SCHEDULE, 30, 20))
