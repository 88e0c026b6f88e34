"""What diffusers asks of a scheduler, for every variance that AnalyticScheduler knows; and what it refuses.

In the spirit of diffusers' own common scheduler tests: configs, files, timesteps, shapes, dtypes, seeds, and switching
to other schedulers and back.
"""

import copy
import inspect
import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

import diffusion_var as dv

N, SHAPE = 50, (3, 8, 8)
CONFIG: dict[str, Any] = {
    "num_train_timesteps": N,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.002,
    "beta_end": 0.2,
    "prediction_type": "v_prediction",
    "clip_sample": True,
    "clip_sample_range": 0.8,
    "timestep_spacing": "trailing",
    "clipped_eps": "network",
}
OWN = [name for name in inspect.signature(dv.AnalyticScheduler.__init__).parameters if name != "self"]
FIXED, TABLED = ("fixed_small", "fixed_large", "learned_range"), ("isotropic", "channel", "pixel", "dct")


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).to(dtype)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def table() -> dv.VarianceTable:
    def network(x_t: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x_t.flip(-1)) - 0.3 * x_t

    schedule = dv.NoiseSchedule.from_diffusers(CONFIG)
    denoiser = dv.Denoiser(network, schedule, "v_prediction", SHAPE, clip=(-0.8, 0.8))
    images = 0.8 * np.tanh(np.random.default_rng(0).standard_normal((40, *SHAPE)))
    return dv.estimate(denoiser, images, 1e9, indices=[1, 8, 20, 35, N], progress=False)


def settings(scheduler: Any) -> dict[str, Any]:
    """The class's own settings of a config."""
    return {name: scheduler.config[name] for name in OWN}


@pytest.fixture(params=[*FIXED, *TABLED])
def made(request: pytest.FixtureRequest, table: dv.VarianceTable) -> dv.AnalyticScheduler:
    if request.param in FIXED:
        return dv.AnalyticScheduler(**CONFIG, variance_type=request.param)
    return dv.AnalyticScheduler.from_table(table, CONFIG, structure=request.param, eta=0.5, final_noise_cap=2.0)


class TestContract:
    """Every scheduler, whatever its variance."""

    @staticmethod
    def output(made: dv.AnalyticScheduler, batch: int = 2, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """What the network says; with a learned range twice the channels."""
        doubled = made.config.variance_type == "learned_range"
        return 0.3 * normal(batch, (6 if doubled else 3), *SHAPE[1:], seed=1, dtype=dtype)

    def loop(self, made: dv.AnalyticScheduler, K: int = 6, seed: int = 0) -> torch.Tensor:
        made.set_timesteps(K)
        generator, x = seeded(seed), made.init_noise_sigma * normal(2, *SHAPE)
        for t in made.timesteps:
            out = self.output(made) + 0.1 * made.scale_model_input(x, t).repeat(
                1, self.output(made).shape[1] // 3, 1, 1
            )
            x = made.step(out, t, x, generator=generator).prev_sample
        return x

    def test_a_seed_gives_the_images(self, made: dv.AnalyticScheduler) -> None:
        images = self.loop(made)
        assert torch.isfinite(images).all()
        assert torch.equal(self.loop(made), images)
        assert float((self.loop(made, seed=1) - images).abs().max()) > 0.01

    @pytest.mark.parametrize("batch", [1, 3])
    def test_step_keeps_the_shape(self, made: dv.AnalyticScheduler, batch: int) -> None:
        made.set_timesteps(6)
        for t in made.timesteps[[0, 2, 5]]:
            got = made.step(self.output(made, batch), t, normal(batch, *SHAPE), generator=seeded())
            assert got.prev_sample.shape == got.pred_original_sample.shape == (batch, *SHAPE)
            assert got.prev_sample.dtype == got.pred_original_sample.dtype == torch.float32

    def test_tuple_and_dict_are_the_same(self, made: dv.AnalyticScheduler) -> None:
        made.set_timesteps(6)
        given = self.output(made), made.timesteps[1], normal(2, *SHAPE)
        named, plain = made.step(*given, seeded()), made.step(*given, seeded(), return_dict=False)
        assert isinstance(plain, tuple)
        assert torch.equal(plain[0], named.prev_sample)
        assert torch.equal(plain[1], named["pred_original_sample"])
        assert not torch.equal(*plain)

    @pytest.mark.parametrize("convert", [int, np.int64, torch.tensor, lambda t: torch.tensor([t]), float])
    def test_timestep_of_any_kind(self, made: dv.AnalyticScheduler, convert: Any) -> None:
        made.set_timesteps(6)
        t, out, x = int(made.timesteps[1]), self.output(made), normal(2, *SHAPE)
        expected = made.step(out, made.timesteps[1], x, seeded()).prev_sample
        assert torch.equal(made.step(out, convert(t), x, seeded()).prev_sample, expected)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_is_computed_in_float32(self, made: dv.AnalyticScheduler, dtype: torch.dtype) -> None:
        made.set_timesteps(6)
        out, x = self.output(made, dtype=dtype), normal(2, *SHAPE, dtype=dtype)
        noise = torch.randn(2, *SHAPE, generator=seeded(), dtype=dtype)
        for t in made.timesteps[[0, 4]]:
            got = made.step(out, t, x, generator=seeded(), return_dict=False)
            wide = made.step(out.float(), t, x.float(), variance_noise=noise.float(), return_dict=False)
            for half, full in zip(got, wide, strict=True):
                assert half.dtype == dtype
                assert torch.equal(half, full.to(dtype))

    def test_config_round_trip(self, made: dv.AnalyticScheduler) -> None:
        again = dv.AnalyticScheduler.from_config(made.config)
        assert settings(again) == settings(made)
        if made.table is not None:
            again.attach(made.table)
        assert torch.equal(self.loop(again), self.loop(made))

    def test_file_round_trip(self, made: dv.AnalyticScheduler, tmp_path: Path) -> None:
        made.save_pretrained(tmp_path)
        again = dv.AnalyticScheduler.from_pretrained(tmp_path)
        assert settings(again) == settings(made)
        assert again.config["_class_name"] == "AnalyticScheduler"
        assert torch.equal(self.loop(again), self.loop(made))
        again.save_pretrained(tmp_path / "again")
        files = sorted(path.name for path in tmp_path.iterdir() if path.is_file())
        assert files == ["scheduler_config.json"] + ["variance_table.safetensors"] * (made.table is not None)
        for name in files:
            assert (tmp_path / name).read_bytes() == (tmp_path / "again" / name).read_bytes()

    @pytest.mark.parametrize("through_file", [False, True])
    @pytest.mark.parametrize("name", ["DDIM", "DDPM", "PNDM", "EulerDiscrete", "DPMSolverMultistep"])
    def test_to_another_scheduler_and_back(
        self, made: dv.AnalyticScheduler, name: str, through_file: bool, tmp_path: Path
    ) -> None:
        other = getattr(diffusers, f"{name}Scheduler")
        assert other in made.compatibles
        theirs = other.from_config(made.config)
        if through_file:
            theirs.save_pretrained(tmp_path)
            theirs = other.from_pretrained(tmp_path)
        shared = set(OWN) & set(inspect.signature(other.__init__).parameters)
        assert {name: theirs.config[name] for name in shared} == {name: made.config[name] for name in shared}
        back = dv.AnalyticScheduler.from_config(theirs.config)
        assert settings(back) == settings(made)
        if made.table is not None:
            back.attach(made.table)
        assert torch.equal(self.loop(back), self.loop(made))

    def test_copies_are_independent(self, made: dv.AnalyticScheduler) -> None:
        made.set_timesteps(6)
        twin = copy.deepcopy(made)
        made.set_timesteps(3)
        assert len(twin.timesteps) == twin.num_inference_steps == 6
        assert torch.equal(self.loop(twin), self.loop(made))

    def test_what_was_computed_before_does_not_matter(self, made: dv.AnalyticScheduler) -> None:
        """Covariances are kept: for other dtypes, η and conventions of clipping they are others."""
        free = made.config.variance_type not in ("fixed_large", "learned_range")
        t, noise = 29, normal(2, *SHAPE, seed=2)
        made.set_timesteps(timesteps=[45, 29, 11, 3])
        cases: list[dict[str, Any]] = [{}, {"use_clipped_model_output": True}, *([{"eta": 0.2}, {"eta": 1.0}] * free)]
        for dtype in (torch.float32, torch.float64):
            given = self.output(made, dtype=dtype), t, normal(2, *SHAPE, dtype=dtype)
            for options in cases:
                changed = {"clipped_eps": "rederived"} if "use_clipped_model_output" in options else options
                fresh = dv.AnalyticScheduler.from_config(made.config, **changed)
                if made.table is not None:
                    fresh.attach(made.table)
                fresh.set_timesteps(timesteps=[45, 29, 11, 3])
                expected = fresh.step(*given, variance_noise=noise).prev_sample
                assert torch.equal(made.step(*given, variance_noise=noise, **options).prev_sample, expected)

    def test_the_schedulers_own_generator(self, made: dv.AnalyticScheduler) -> None:
        """Latent diffusion's and DiT's pipelines hand none to `step`."""
        made.set_timesteps(6)
        given = self.output(made), made.timesteps[1], normal(2, *SHAPE)
        expected = made.step(*given, generator=seeded(3)).prev_sample
        made.generator = seeded(3)
        assert torch.equal(made.step(*given).prev_sample, expected)
        assert torch.equal(made.step(*given, generator=seeded(3)).prev_sample, expected)  # a given one comes first


# ---- timesteps ---------------------------------------------------------------------------------------------------


def test_timesteps_before_and_after_they_are_set() -> None:
    scheduler = dv.AnalyticScheduler(**CONFIG)
    assert len(scheduler) == N
    assert scheduler.init_noise_sigma == 1.0
    assert scheduler.order == 1
    assert scheduler.num_inference_steps is None
    assert scheduler.timesteps.tolist() == list(range(N - 1, -1, -1))
    for K in (1, 7, N):
        scheduler.set_timesteps(K, device="cpu")
        assert scheduler.timesteps.dtype == torch.int64
        assert len(scheduler.timesteps) == scheduler.num_inference_steps == K
        assert len(scheduler) == N
        assert (scheduler.timesteps.diff() < 0).all()
    x = normal(2, *SHAPE)
    assert scheduler.scale_model_input(x, 3) is x


@pytest.mark.parametrize("container", [list, np.array, torch.tensor])
def test_timesteps_of_ones_own(container: Any) -> None:
    scheduler = dv.AnalyticScheduler(**CONFIG)
    scheduler.set_timesteps(timesteps=container([49, 30, 29, 3]))
    assert scheduler.timesteps.tolist() == [49, 30, 29, 3]
    assert scheduler.num_inference_steps == 4
    scheduler.set_timesteps(5)
    assert scheduler.num_inference_steps == 5
    # A pipeline that begins inside the list finds its step there.
    x, out = normal(2, *SHAPE, dtype=torch.float64), normal(2, *SHAPE, seed=1, dtype=torch.float64)
    scheduler.set_timesteps(timesteps=container([49, 30, 29, 3]))
    kernel = dv.ReverseKernel(scheduler.schedule, 31, 30, 1.0, "network")
    got = scheduler.step(out, 30, x, variance_noise=torch.zeros_like(x))
    eps = kernel.sigma_t * x + kernel.alpha_t * out
    torch.testing.assert_close(got.prev_sample, kernel.alpha_s * got.pred_original_sample + kernel.eps_gain * eps)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either num_inference_steps or timesteps, and not both"),
        ({"num_inference_steps": 3, "timesteps": [3, 2]}, "either num_inference_steps or timesteps, and not both"),
        ({"timesteps": [1, 2, 3]}, "must fall strictly, from at most 49 to at least 0, but they are 1, 2, 3"),
        ({"timesteps": [3, 2, 2]}, "must fall strictly, from at most 49 to at least 0, but they are 3, 2, 2"),
        ({"timesteps": [50, 2]}, "must fall strictly, from at most 49 to at least 0, but they are 50, 2"),
        ({"timesteps": [5, -1]}, "must fall strictly, from at most 49 to at least 0"),
        ({"timesteps": []}, "empty"),
        ({"num_inference_steps": 0}, "steps=0 is not a usable number of steps"),
        ({"num_inference_steps": 51}, "steps=51 is not a usable number of steps; expected an integer from 1 to 50"),
        ({"num_inference_steps": 2.5}, "steps=2.5 is not a usable number of steps"),
    ],
)
def test_unusable_timesteps_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(dv.InputError, match=message):
        dv.AnalyticScheduler(**CONFIG).set_timesteps(**options)


# ---- the forward process -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.float16, 2e-3)])
@pytest.mark.parametrize("timesteps", [torch.tensor([0, 17, 49]), torch.tensor([17]), torch.tensor(17), 17])
def test_add_noise_and_get_velocity(timesteps: Any, dtype: torch.dtype, limit: float) -> None:
    scheduler = dv.AnalyticScheduler(**CONFIG)
    x, noise = normal(3, *SHAPE, dtype=dtype), normal(3, *SHAPE, seed=1, dtype=dtype)
    betas = np.linspace(0.002**0.5, 0.2**0.5, N) ** 2
    alpha_bar = np.cumprod(1 - betas)[np.atleast_1d(timesteps)]
    alpha, sigma = (torch.from_numpy(np.sqrt(a))[:, None, None, None] for a in (alpha_bar, 1 - alpha_bar))
    for got, expected in (
        (scheduler.add_noise(x, noise, timesteps), alpha * x.double() + sigma * noise.double()),
        (scheduler.get_velocity(x, noise, timesteps), alpha * noise.double() - sigma * x.double()),
    ):
        assert got.dtype == dtype
        assert float((got.double() - expected).abs().max()) < limit * float(expected.abs().max())
    np.testing.assert_allclose(scheduler.alphas_cumprod, np.cumprod(1 - betas), rtol=1e-6)
    assert scheduler.alphas_cumprod.dtype == torch.float32


@pytest.mark.parametrize("container", [list, np.array, np.float32, lambda betas: list(np.float32(betas))])
def test_trained_betas(container: Any, tmp_path: Path) -> None:
    betas = container([0.01, 0.02, 0.05, 0.1])
    scheduler = dv.AnalyticScheduler(num_train_timesteps=4, trained_betas=betas)
    np.testing.assert_allclose(scheduler.alphas_cumprod, np.cumprod(1 - np.asarray(betas)), rtol=1e-6)
    assert len(scheduler) == 4
    scheduler.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "scheduler_config.json").read_text())["trained_betas"]
    assert saved == [float(beta) for beta in betas]
    assert dv.AnalyticScheduler.from_pretrained(tmp_path).schedule == scheduler.schedule


# ---- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variance_type", ["fixed_large", "learned_range"])
@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_another_eta_for_one_step_is_refused_as_well(variance_type: str, eta: float) -> None:
    scheduler = dv.AnalyticScheduler(**CONFIG, variance_type=variance_type)
    scheduler.set_timesteps(5)
    out = normal(2, 6 if variance_type == "learned_range" else 3, 8, 8)
    scheduler.step(out, scheduler.timesteps[0], normal(2, *SHAPE), seeded(), eta=1.0)
    with pytest.raises(dv.InputError, match=f"eta=1 only, but eta={eta}"):
        scheduler.step(out, scheduler.timesteps[0], normal(2, *SHAPE), seeded(), eta=eta)
    with pytest.raises(TypeError, match="etta"):
        scheduler.step(out, scheduler.timesteps[0], normal(2, *SHAPE), seeded(), etta=1.0)


@pytest.mark.parametrize(
    ("variance_type", "channels", "message"),
    [
        ("learned_range", 3, "3 channels for a sample with 3, but variance_type='learned_range' expects 6"),
        ("fixed_small", 6, "6 channels for a sample with 3, but variance_type='fixed_small' expects 3"),
        ("fixed_large", 4, "4 channels for a sample with 3"),
    ],
)
def test_channels_that_do_not_fit_are_refused(variance_type: str, channels: int, message: str) -> None:
    scheduler = dv.AnalyticScheduler(**CONFIG, variance_type=variance_type)
    with pytest.raises(dv.InputError, match=message):
        scheduler.step(normal(2, channels, 8, 8), 30, normal(2, *SHAPE))


@pytest.mark.parametrize("timestep", [-1, N])
def test_a_timestep_that_is_none_is_refused(timestep: int) -> None:
    with pytest.raises(dv.InputError, match="not an index of this schedule"):
        dv.AnalyticScheduler(**CONFIG).step(normal(2, *SHAPE), timestep, normal(2, *SHAPE))


# ---- what diffusers' users and training scripts reach for ----------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"beta_schedule": "squaredcos_cap_v2"}, CONFIG], ids=["linear", "cosine", "own"]
)
def test_attributes_are_those_of_diffusers_schedulers(options: dict[str, Any]) -> None:
    shared = {name: value for name, value in options.items() if name != "clipped_eps"}
    mine, theirs = dv.AnalyticScheduler(**options), diffusers.DDPMScheduler(**shared)
    for name in ("betas", "alphas", "alphas_cumprod"):
        found, expected = getattr(mine, name), getattr(theirs, name)
        assert found.dtype == expected.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-6)
    assert torch.equal(mine.one, theirs.one)
    assert mine.init_noise_sigma == theirs.init_noise_sigma == 1.0
    assert mine.order == theirs.order
    assert len(mine) == len(theirs)
    assert mine.num_inference_steps is theirs.num_inference_steps is None
    assert torch.equal(mine.timesteps, theirs.timesteps)
    for K in (5, 10):
        mine.set_timesteps(K)
        theirs.set_timesteps(K)
        assert mine.num_inference_steps == theirs.num_inference_steps == K
        assert torch.equal(mine.timesteps.to(theirs.timesteps.dtype), theirs.timesteps)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_previous_timestep_is_the_next_of_the_list(spacing: str) -> None:
    scheduler = dv.AnalyticScheduler(timestep_spacing=spacing)
    assert [scheduler.previous_timestep(t) for t in (999, 1, 0)] == [998, 0, -1]  # of the full process
    scheduler.set_timesteps(7)
    listed = [int(t) for t in scheduler.timesteps]
    for t, after in zip(listed, [*listed[1:], -1], strict=True):
        assert scheduler.previous_timestep(t) == after
        assert scheduler.previous_timestep(torch.tensor(t)) == after
    assert scheduler.previous_timestep(listed[0] - 1) == listed[1]  # of a timestep between two, the lower


def test_min_snr_weights_as_training_scripts_compute_them() -> None:
    """diffusers' own helper takes `alphas_cumprod` from whatever scheduler it is given."""
    from diffusers.training_utils import compute_snr

    timesteps = torch.tensor([0, 10, 500, 999])
    mine, theirs = (compute_snr(kind(), timesteps) for kind in (dv.AnalyticScheduler, diffusers.DDPMScheduler))
    torch.testing.assert_close(mine, theirs, rtol=2e-3, atol=0)


# ---- other noise -----------------------------------------------------------------------------------------------------


def test_tau_in_the_config_and_in_a_step(table: dv.VarianceTable, tmp_path: Path) -> None:
    def one(scheduler: dv.AnalyticScheduler, **options: Any) -> torch.Tensor:
        scheduler.set_timesteps(6)
        x, noise = normal(2, *SHAPE, dtype=torch.float64), normal(2, *SHAPE, seed=3, dtype=torch.float64)
        out = scheduler.step(0.3 * x, scheduler.timesteps[2], x, variance_noise=noise, **options)
        return out.prev_sample

    ddpm, same, more = (
        dv.AnalyticScheduler.from_table(table, CONFIG, **n) for n in ({"eta": 1.0}, {"tau": 1.0}, {"tau": 3.0})
    )
    torch.testing.assert_close(one(same), one(ddpm), rtol=1e-10, atol=1e-10)
    assert float((one(more) - one(ddpm)).abs().max()) > 1e-2
    torch.testing.assert_close(one(ddpm, tau=3.0), one(more), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(one(more, eta=1.0), one(ddpm), rtol=1e-10, atol=1e-10)
    more.save_pretrained(tmp_path)
    loaded = dv.AnalyticScheduler.from_pretrained(tmp_path)
    assert (loaded.config.eta, loaded.config.tau) == (None, 3.0)
    assert torch.equal(one(loaded), one(more))
    again = dv.AnalyticScheduler.from_config(loaded.config, eta=0.5)
    assert (again.config.eta, again.config.tau) == (0.5, None)
    for wrong, message in (({"eta": 0.5, "tau": 1.0}, "both say how much noise"), ({"tau": -1.0}, "at least 0")):
        with pytest.raises(dv.InputError, match=message):
            dv.AnalyticScheduler.from_table(table, CONFIG, **wrong)
        with pytest.raises(dv.InputError, match=message):
            one(ddpm, **wrong)


# ---- configs of other schedulers, and for them ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["DDIMInverse", "DDIM", "DDPM", "DPMSolverMultistep", "PNDM", "EulerDiscrete"])
@pytest.mark.parametrize("structure", ["isotropic", "channel", "dct"])
def test_another_scheduler_is_told_of_the_variances_in_a_few_words(
    name: str, structure: str, caplog: pytest.LogCaptureFixture
) -> None:
    """diffusers prints the entries that a scheduler does not know."""
    N = 1000
    lists = {"posterior_variance": list(np.linspace(0.01, 1, N)), "structure": structure, "estimator": "residual"}
    beside = {"structure": structure, "estimator": "residual", "file": "variance_table.safetensors"}
    entry = beside if structure == "dct" else lists
    analytic = dv.AnalyticScheduler(N, variance_type="analytic", variance=entry)
    other = getattr(diffusers, f"{name}Scheduler")
    for again in (analytic, dv.AnalyticScheduler.from_config(analytic.config), copy.deepcopy(analytic)):
        caplog.clear()
        with caplog.at_level("WARNING", logger="diffusers.configuration_utils"):
            logger = diffusers.utils.logging.get_logger("diffusers.configuration_utils")
            logger.addHandler(caplog.handler)
            theirs = other.from_config(again.config)
            logger.removeHandler(caplog.handler)
        assert f"<{structure} variances of " in caplog.text
        assert max(map(len, caplog.text.splitlines())) < 600
        assert dv.AnalyticScheduler.from_config(theirs.config).config.variance == entry


DDIM_CONFIG = {key: value for key, value in CONFIG.items() if key != "clipped_eps"}


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("to_one", [False, True])
def test_ddim_to_its_own_end(spacing: str, offset: int, clip: bool, to_one: bool, tmp_path: Path) -> None:
    """Step by step DDIMScheduler's, with its final ᾱ: that of clean data, or that of timestep 0."""
    changes = {"timestep_spacing": spacing, "steps_offset": offset, "clip_sample": clip, "set_alpha_to_one": to_one}
    theirs = diffusers.DDIMScheduler(**{**DDIM_CONFIG, **changes})
    mine = dv.AnalyticScheduler.from_config(theirs.config, eta=0.0)
    mine.save_pretrained(tmp_path)
    loaded = dv.AnalyticScheduler.from_pretrained(tmp_path)
    for scheduler in (theirs, mine, loaded):
        scheduler.set_timesteps(10 if spacing != "linspace" else 50)  # elsewhere DDIM's index before is not its own
    # ᾱ in float32, as DDIM has it, is 3e-5 from ours at the cleanest levels.
    for t in theirs.timesteps:
        out, x = normal(2, *SHAPE, seed=int(t)), normal(2, *SHAPE, seed=int(t) + 1)
        for chosen in ({}, {"use_clipped_model_output": True}):
            expected = theirs.step(out, t, x, **chosen).prev_sample
            for scheduler in (mine, loaded):
                assert (scheduler.step(out, t, x, **chosen).prev_sample - expected).abs().max() < 1e-4


def test_the_end_at_timestep_0_is_without_noise_and_for_eta_0_alone(table: dv.VarianceTable) -> None:
    config = diffusers.DDIMScheduler(**DDIM_CONFIG, set_alpha_to_one=False).config
    made = dv.AnalyticScheduler.from_table(table, config, eta=0.0)
    other = dv.AnalyticScheduler.from_table(table, {**config, "set_alpha_to_one": True}, eta=0.0)
    for scheduler in (made, other):
        scheduler.set_timesteps(5)
    last, x = made.timesteps[-1], normal(2, *SHAPE)
    ends = [made.step(0.3 * x, last, x, generator=seeded(k)).prev_sample for k in range(2)]
    assert torch.equal(*ends)
    assert not torch.equal(ends[0], other.step(0.3 * x, last, x).prev_sample)
    for override in ({"eta": 1.0}, {"eta": 0.5}, {"tau": 1.0}):
        given = 0.3 * x, last, x, seeded()
        assert torch.equal(made.step(*given, **override).prev_sample, other.step(*given, **override).prev_sample)
