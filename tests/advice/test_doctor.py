"""The doctor names the convention of networks declared wrongly, and is silent about those declared rightly, good or
poor. The networks are exact models in other clothes, and the bundled one."""

from __future__ import annotations

import dataclasses
import json
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from speaking import Speaking, on_grid

import diffusion_var as dv

SHAPE = (1, 8, 8)
S = dv.NoiseSchedule
N = np.arange(1.0, 1001.0)
LINEAR, COSINE, SCALED, FLOW, EDM = S.linear(1000), S.cosine(1000), S.scaled_linear(1000), S.flow(1000), S.edm(1000)
MEANS = (dv.data.digits_splits().train.images[:60].double() / 127.5 - 1) * 0.9


def mixture(scale: float = 1.0, shift: float = 0.0, variance: float = 0.02) -> Any:
    """Sixty digits, blurred by noise, in another scale of the data."""
    return dv.oracles.MixtureDenoiser(LINEAR, scale * MEANS + shift, variance * scale**2)


DATA = mixture().sample(200, seed=3)

#: (schedule, timestep at 1…N, prediction, sign), and what the doctor is to say of it where ε on LINEAR is declared.
NETWORKS: dict[str, tuple[dv.NoiseSchedule, Any, str, int, dict[str, Any]]] = {
    "x_0": (LINEAR, N - 1, "sample", 1, {"prediction": "sample", "schedule": "declared"}),
    "v": (LINEAR, N - 1, "v_prediction", 1, {"prediction": "v_prediction", "schedule": "declared"}),
    "score": (S.vp_sde(1000), 999 * N / 1000, "score", 1, {"prediction": "score", "schedule": "declared"}),
    "negative": (LINEAR, N - 1, "epsilon", -1, {"prediction": "epsilon", "sign": -1}),
    "fraction": (LINEAR, N / 1000, "epsilon", 1, {"prediction": "epsilon", "timestep": "n/N"}),
    "backwards": (LINEAR, 1000 - N, "epsilon", 1, {"prediction": "epsilon", "timestep": "N - n"}),
    "cosine": (COSINE, N - 1, "epsilon", 1, {"prediction": "epsilon", "schedule": "dv.NoiseSchedule.cosine(1000)"}),
    "v cosine": (COSINE, N - 1, "v_prediction", 1,
                 {"prediction": "v_prediction", "schedule": "dv.NoiseSchedule.cosine(1000)"}),
    "scaled_linear": (SCALED, N - 1, "epsilon", 1,
                      {"prediction": "epsilon", "schedule": "dv.NoiseSchedule.scaled_linear(1000)"}),
    "flow": (FLOW, N, "flow", 1, {"prediction": "flow", "schedule": "dv.NoiseSchedule.flow(1000)"}),
    "flow in [0, 1]": (FLOW, N / 1000, "flow", 1,
                       {"prediction": "flow", "schedule": "dv.NoiseSchedule.flow(1000)", "timestep": "n/N"}),
    "flow to data": (FLOW, 1 - N / 1000, "flow", -1,
                     {"prediction": "flow", "sign": -1, "schedule": "dv.NoiseSchedule.flow(1000)",
                      "timestep": "1 - n/N"}),
    "denoised": (EDM, EDM.sigma[1:], "sample", 1,
                 {"prediction": "sample", "schedule": "dv.NoiseSchedule.edm(1000)", "timestep": "sigma"}),
    "VE score": (EDM, EDM.sigma[1:], "score", 1,
                 {"prediction": "score", "schedule": "dv.NoiseSchedule.edm(1000)", "timestep": "sigma"}),
    "EDM": (EDM, np.log(EDM.sigma[1:]) / 4, "edm", 1,
            {"prediction": "edm", "schedule": "dv.NoiseSchedule.edm(1000)", "shown": "edm"}),
}  # fmt: skip


def told_as_it_is(schedule: dv.NoiseSchedule, timestep: Any) -> dv.NoiseSchedule:
    return S(schedule.alpha, schedule.sigma, np.r_[0, timestep], prior_std=schedule.prior_std)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_convention_declared_wrongly_is_named(name: str) -> None:
    schedule, timestep, prediction, sign, expected = NETWORKS[name]
    network = Speaking(mixture(), on_grid(schedule, timestep), prediction, sign)
    denoiser = dv.Denoiser(network, LINEAR, shape=SHAPE, clip=None)
    with pytest.warns(dv.DiffusionVarWarning, match="another convention"):
        found = dv.diagnose(denoiser, DATA)
    assert found.verdict == "another"
    assert not found.ok
    assert expected.items() <= found.best.convention.items()
    assert found.best.gain > 0.2
    assert found.best.gain > 4 * found.best.gain_error
    # The right reading of an exact network: never worse than the linear denoiser, and far better in the middle.
    assert found.best.ratio.max() < 1.02
    assert found.best.ratio.min() < 0.3
    assert network.evaluations == found.evaluations <= 2500


@pytest.mark.parametrize("name", [name for name in NETWORKS if NETWORKS[name][3] == 1])
def test_a_convention_declared_rightly_is_left_alone(name: str) -> None:
    schedule, timestep, prediction, sign, _ = NETWORKS[name]
    network = Speaking(mixture(), on_grid(schedule, timestep), prediction, sign)
    right = told_as_it_is(schedule, timestep)
    found = dv.diagnose(dv.Denoiser(network, right, prediction, SHAPE, clip=None), DATA)  # type: ignore[arg-type]
    assert found.verdict == "fits"
    assert found.ok
    assert found.sentence.startswith("all is well")
    assert network.evaluations == found.evaluations <= 600


def test_an_index_more_or_less_is_named_where_it_matters() -> None:
    """Near points of data the first levels differ; of blurred ones nothing tells n from n − 1, and nothing is said."""
    sharp = mixture(variance=1e-6)
    for declared, own in ((LINEAR, N), (told_as_it_is(LINEAR, N), N - 1)):
        denoiser = dv.Denoiser(Speaking(sharp, on_grid(LINEAR, own), "epsilon"), declared, shape=SHAPE, clip=None)
        with pytest.warns(dv.DiffusionVarWarning, match="another convention"):
            found = dv.diagnose(denoiser, sharp.sample(100))
        assert found.best.convention["timestep"] == ("n" if own is N else "n - 1")
        right = dv.Denoiser(denoiser.network, told_as_it_is(LINEAR, own), shape=SHAPE, clip=None)
        assert dv.diagnose(right, sharp.sample(100)).verdict == "fits"


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-0.5, 0.5)])
def test_another_scale_of_the_data_is_named(low: float, high: float) -> None:
    scale, shift = (high - low) / 2, (high + low) / 2
    images = ((DATA.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    network = Speaking(mixture(scale, shift), on_grid(LINEAR, N - 1), "epsilon")
    with pytest.warns(dv.DiffusionVarWarning, match="another convention"):
        found = dv.diagnose(dv.Denoiser(network, LINEAR, shape=SHAPE), images)
    assert found.best.convention["data"] == f"data scaled to [{low:g}, {high:g}] (clip=({low:g}, {high:g}))"
    assert found.best.convention["prediction"] == "epsilon"


def test_latents_without_their_scaling_are_told_from_others() -> None:
    """A network of unit-variance latents that is given them as they are."""
    raw = DATA * 5.0
    mean, std = float(raw.mean()), float(raw.std(correction=0))
    network = Speaking(mixture(5.0 / std, -mean / std), on_grid(SCALED, N - 1), "epsilon")
    denoiser = dv.Denoiser(network, SCALED, shape=SHAPE, clip=None)
    with pytest.warns(dv.DiffusionVarWarning, match="another convention"):
        found = dv.diagnose(denoiser, raw)
    assert found.best.convention["data"] == "data of mean 0 and standard deviation 1"


GAUSSIAN = dv.oracles.GaussianDenoiser(LINEAR, 0.1, np.geomspace(0.02, 1.0, 64).reshape(SHAPE), basis="dct")
POOR = {
    "bias": (mixture(), DATA, {"bias": 0.2}),
    "shrunk": (mixture(), DATA, {"shrink": 0.8}),
    "stretched": (mixture(), DATA, {"shrink": 1.2}),
    "Gaussian": (GAUSSIAN, GAUSSIAN.sample(200), {}),
    "Gaussian, bias": (GAUSSIAN, GAUSSIAN.sample(200), {"bias": 0.2}),
    "Gaussian, shrunk": (GAUSSIAN, GAUSSIAN.sample(200), {"shrink": 0.7}),
}


@pytest.mark.parametrize("name", POOR)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_an_imperfect_mean_is_not_taken_for_a_wrong_convention(name: str, prediction: Any) -> None:
    model, data, bias = POOR[name]
    network = Speaking(model, on_grid(COSINE, N - 1), prediction, **bias)
    found = dv.diagnose(dv.Denoiser(network, COSINE, prediction, SHAPE, clip=None), data)
    assert found.verdict == ("poor" if bias else "fits")
    assert found.best.convention == found.declared.convention
    assert bool(found.worse_than_linear) == bool(bias)
    if bias:
        assert "imperfect" in found.sentence
        assert f"n={found.worse_than_linear[0]}" in found.sentence


def test_the_bundled_model() -> None:
    denoiser, images = dv.Denoiser.from_pretrained("digits", device="cpu"), dv.data.digits_splits().score.images
    found = dv.diagnose(denoiser, images)
    assert found.verdict == "fits"
    as_v = dv.Denoiser(denoiser.network, denoiser.schedule, "v_prediction", SHAPE)
    with pytest.warns(dv.DiffusionVarWarning, match='prediction="epsilon"'):
        wrong = dv.diagnose(as_v, images)
    assert wrong.best.residual == pytest.approx(found.declared.residual, rel=1e-5)


def test_residuals_and_linear_errors_are_what_they_are_called() -> None:
    """Of Gaussian data the exact mean is the linear one, and both errors are the closed form at the index named."""
    found = dv.diagnose(GAUSSIAN, GAUSSIAN.sample(2000))
    assert found.verdict == "fits"
    assert found.tried == 1
    exact = [GAUSSIAN.posterior_variance(n).mean() for n in found.indices]
    assert found.declared.linear == pytest.approx(exact, rel=0.12)  # 32 images of 64 numbers: 3 %
    assert found.declared.ratio == pytest.approx(np.ones(7), abs=0.02)
    effective = LINEAR.log_snr[list(found.indices)] + np.log(float(GAUSSIAN.variance.mean()))
    assert effective == pytest.approx(found.levels, abs=0.1)


def test_a_network_that_no_convention_explains() -> None:
    def noise(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return torch.randn(x.shape, generator=torch.Generator().manual_seed(1))

    with pytest.warns(dv.DiffusionVarWarning, match="makes sense of this network"):
        found = dv.diagnose(dv.Denoiser(noise, LINEAR, shape=SHAPE), dv.data.digits_splits().score.images)
    assert found.verdict == "none"


def test_a_network_that_knows_few_timesteps_is_tried_where_it_can_be() -> None:
    """What it refuses (fractions, others than whole numbers below 1000) is left out of the search."""
    asked: list[float] = []
    inner = Speaking(mixture(), on_grid(COSINE, N - 1), "epsilon")

    def embedded(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        asked.extend(timestep.tolist())
        if timestep.is_floating_point() or timestep.max() > 999:
            raise IndexError("index out of range in self")
        return inner(x, timestep)

    with pytest.warns(dv.DiffusionVarWarning, match="cosine"):
        dv.diagnose(dv.Denoiser(embedded, LINEAR, shape=SHAPE, clip=None), DATA)
    assert any(t != round(t) for t in asked)


def test_on_a_gpu_an_embedding_is_asked_only_for_what_it_has() -> None:
    """There a place too far ends the process: only whole timesteps up to the declared ones are asked."""
    from diffusion_var.advice import trial
    from diffusion_var.advice.conventions import declared_convention

    table = torch.nn.Embedding(1000, 4)
    assert trial.has_embedding(torch.nn.Sequential(table))
    assert not trial.has_embedding(torch.nn.Conv2d(1, 1, 3))
    denoiser = dv.Denoiser(table, LINEAR, shape=SHAPE, clip=None)
    tried = trial.Trial(denoiser, DATA[:20], None, 0, 64)
    own = declared_convention(denoiser)
    asked = {told: tried._may_ask(dataclasses.replace(own, told=told), 1000) for told in ("declared", "n", "n/N")}
    assert asked == {"declared": True, "n": True, "n/N": True}
    denoiser.device = torch.device("cuda")
    asked = {told: tried._may_ask(dataclasses.replace(own, told=told), 1000) for told in ("declared", "n", "N - n")}
    assert asked == {"declared": True, "n": False, "N - n": True}
    assert not tried._may_ask(dataclasses.replace(own, told="n/N"), 500)


def test_guidance_is_left_out() -> None:
    """A guided mean is worse than the posterior's, which says nothing of the convention."""
    model, where = mixture(), on_grid(LINEAR, N - 1)

    def network(x: torch.Tensor, timestep: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        out = Speaking(model, where, "epsilon")(x, timestep)
        return torch.where((label == 0).view(-1, 1, 1, 1), out, 0.5 * out)

    guided = dv.Denoiser(network, LINEAR, shape=SHAPE, clip=None, guidance_scale=4.0, unconditional=torch.tensor(1))
    assert dv.diagnose(guided, DATA, conditions=[0] * len(DATA)).verdict == "fits"


def test_the_same_whatever_the_batch_size_and_as_plain_data() -> None:
    denoiser = dv.Denoiser(Speaking(mixture(), on_grid(LINEAR, N - 1), "epsilon"), LINEAR, shape=SHAPE, clip=None)
    one, other = dv.diagnose(denoiser, DATA), dv.diagnose(denoiser, DATA, batch_size=5)
    assert json.loads(json.dumps(one.to_dict())) == one.to_dict()
    assert one.declared.residual == pytest.approx(other.declared.residual, rel=1e-5)
    assert str(one).splitlines()[0] == one.sentence
    assert len(str(one).splitlines()) <= 8
    assert dv.diagnose(denoiser, DATA, seed=1).declared.residual[0] != one.declared.residual[0]


def test_a_schedule_without_some_levels() -> None:
    """Levels that the declared schedule lacks are shown as such, and count as nothing."""
    short = S.linear(1000)
    cut = S(short.alpha[:400], short.sigma[:400], short.timestep[:400])
    network = Speaking(mixture(), on_grid(LINEAR, N - 1), "epsilon")
    found = dv.diagnose(dv.Denoiser(network, cut, shape=SHAPE, clip=None), DATA)
    assert found.verdict == "fits"
    assert found.indices[0] == 0
    assert np.isnan(found.declared.ratio[0])
    assert "–" in str(found)
    assert found.to_dict()["declared"]["ratio"][0] is None


def test_too_few_images_are_refused() -> None:
    with pytest.raises(dv.InputError, match=r"images holds 15, but at least 16 are needed"):
        dv.diagnose(dv.Denoiser(lambda x, t: x, LINEAR, shape=SHAPE, clip=None), DATA[:15])


def test_images_and_schedules_of_which_nothing_can_be_told_are_refused() -> None:
    with pytest.raises(dv.InputError, match="images are all the same"):
        dv.diagnose(dv.Denoiser(lambda x, t: x, LINEAR, shape=SHAPE, clip=None), DATA[:1].expand(20, -1, -1, -1))
    quiet = S([1.0, 1.0], [0.0, 1e-6], [0.0, 0.0])
    with pytest.raises(dv.InputError, match="no noise level between"):
        dv.diagnose(dv.Denoiser(lambda x, t: x, quiet, shape=SHAPE, clip=None), DATA)


def test_what_the_network_raises_as_declared_is_its_own_error() -> None:
    def broken(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        raise ValueError("no")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(dv.NetworkError, match="ValueError: no"):
            dv.diagnose(dv.Denoiser(broken, LINEAR, shape=SHAPE, clip=None), DATA)
