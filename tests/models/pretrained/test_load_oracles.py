"""Families of diffusers models, as diffusers itself saves them: the mean is what its own schedulers compute."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LDMPipeline,
    PNDMScheduler,
    ScoreSdeVePipeline,
    ScoreSdeVeScheduler,
    UNet2DConditionModel,
    VQModel,
)
from small_pipelines import UNET, seeded, small_unet

from diffusion_var import Denoiser, NoiseSchedule

CODEC = {"block_out_channels": (8, 8), "norm_num_groups": 4, "layers_per_block": 1}
BLOCKS = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
SHAPE = (3, 8, 8)
# diffusers' Euler scheduler hands tensors to numpy in a way that numpy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def make_vae() -> AutoencoderKL:
    return seeded(AutoencoderKL, **CODEC, **BLOCKS, latent_channels=4, scaling_factor=0.3)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape, dtype=np.float32))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def load(path: Path, **options: Any) -> Denoiser:
    return Denoiser.from_pretrained(path, device="cpu", **options)


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, relative to the largest value."""
    assert found.shape == expected.shape
    return float((found.double() - expected.double()).abs().max() / expected.double().abs().max())


# ---- DDPM, DDIM, Euler: every prediction type and every spacing -----------------------------------------------


@pytest.fixture(scope="module")
def pixel_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {name: tmp_path_factory.mktemp(name) for name in ("ddpm", "ddim", "euler")}
    DDPMPipeline(small_unet(), DDPMScheduler()).save_pretrained(folders["ddpm"])
    DDIMPipeline(small_unet(), DDIMScheduler()).save_pretrained(folders["ddim"])
    small_unet().save_pretrained(folders["euler"] / "unet")
    return folders


def scheduler_of(kind: str, prediction: str, spacing: str) -> Any:
    options = {"prediction_type": prediction, "timestep_spacing": spacing}
    if kind == "euler":
        return EulerDiscreteScheduler(**options)
    return {"ddpm": DDPMScheduler, "ddim": DDIMScheduler}[kind](**options, clip_sample=False)


def their_mean(scheduler: Any, unet: Any, t: torch.Tensor, x_t: torch.Tensor, n: int) -> torch.Tensor:
    """x̂_0 as one step from x_t computes it; Euler's sample is x_t/α."""
    x = x_t
    if isinstance(scheduler, EulerDiscreteScheduler):
        x = (x_t.double() / math.sqrt(float(scheduler.alphas_cumprod[n - 1]))).float()
    out = unet(scheduler.scale_model_input(x, t), t).sample
    options = {"generator": torch.Generator().manual_seed(0)}
    return scheduler.step(out, t, x, **options).pred_original_sample


@pytest.mark.parametrize("kind", ["ddpm", "ddim", "euler"])
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_mean_is_pred_original_sample(
    kind: str, prediction: str, spacing: str, pixel_models: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "unet").symlink_to(pixel_models[kind] / "unet")
    (scheduler := scheduler_of(kind, prediction, spacing)).save_pretrained(tmp_path / "scheduler")
    denoiser, unet = load(tmp_path), small_unet()
    assert denoiser.prediction == prediction
    assert denoiser.schedule == NoiseSchedule.linear(1000)
    scheduler.set_timesteps(4)
    visited = [int(t) + 1 for t in scheduler.timesteps]
    assert (
        visited
        == {
            "leading": [751, 501, 251, 1],
            "linspace": [1000, 667, 334, 1],
            "trailing": [1000, 750, 500, 250],
        }[spacing]
    )
    for t, n in zip(scheduler.timesteps, visited, strict=True):
        x_t = noise(2, *SHAPE, seed=n)
        assert difference(denoiser(x_t, n).mean, their_mean(scheduler, unet, t, x_t, n)) <= 1e-5


@pytest.mark.parametrize("kind", ["ddpm", "ddim"])
@pytest.mark.parametrize("prediction", ["sample", "v_prediction"])
def test_zero_terminal_snr(kind: str, prediction: str, pixel_models: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "unet").symlink_to(pixel_models[kind] / "unet")
    options = {"prediction_type": prediction, "rescale_betas_zero_snr": True, "clip_sample": False}
    scheduler = {"ddpm": DDPMScheduler, "ddim": DDIMScheduler}[kind](**options, timestep_spacing="trailing")
    scheduler.save_pretrained(tmp_path / "scheduler")
    denoiser, unet = load(tmp_path), small_unet()
    assert denoiser.schedule.zero_terminal_snr
    scheduler.set_timesteps(4)
    for t in scheduler.timesteps:
        n = int(t) + 1
        x_t = noise(2, *SHAPE, seed=n)
        assert difference(denoiser(x_t, n).mean, their_mean(scheduler, unet, t, x_t, n)) <= 1e-5


# ---- EDM, flow and score SDE ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [EDMEulerScheduler, EDMDPMSolverMultistepScheduler])
@pytest.mark.parametrize(("theirs", "ours"), [("epsilon", "edm"), ("v_prediction", "edm_v")])
@pytest.mark.parametrize("levels", ["karras", "exponential"])
def test_edm(kind: type, theirs: str, ours: str, levels: str, tmp_path: Path) -> None:
    N, unet = 6, small_unet()
    scheduler = kind(num_train_timesteps=N, prediction_type=theirs, sigma_schedule=levels, sigma_data=0.7)
    unet.save_pretrained(tmp_path / "unet")
    scheduler.save_pretrained(tmp_path / "scheduler")
    denoiser = load(tmp_path)
    assert (denoiser.prediction, denoiser.sigma_data, denoiser.clip) == (ours, 0.7, None)
    assert denoiser.data_range == (-1.0, 1.0)
    scheduler.set_timesteps(N)
    for i, t in enumerate(scheduler.timesteps):
        x_t = float(scheduler.sigmas[i]) * noise(2, *SHAPE, seed=i) + 0.5 * noise(2, *SHAPE, seed=99)
        out = unet(scheduler.precondition_inputs(x_t, scheduler.sigmas[i]), t).sample
        expected = scheduler.precondition_outputs(x_t, out, scheduler.sigmas[i])
        if kind is EDMEulerScheduler:
            stepped = scheduler.step(out, t, x_t).pred_original_sample
            assert difference(stepped, expected) <= 1e-6
        assert difference(denoiser(x_t, N - i).mean, expected) <= 1e-5


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow(shift: float, tmp_path: Path) -> None:
    N, unet = 10, small_unet()
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=N, shift=shift)
    unet.save_pretrained(tmp_path / "transformer")
    scheduler.save_pretrained(tmp_path / "scheduler")
    denoiser = load(tmp_path)
    assert (denoiser.prediction, denoiser.clip) == ("flow", None)
    assert denoiser.schedule == NoiseSchedule.flow(N, shift, timestep_scale=N)
    for n in range(1, N + 1):
        # One step from this level to sigma = 0 is x − σ v; the scheduler shifts the level that it is given.
        scheduler.set_timesteps(sigmas=[n / N])
        (t,), x_t = scheduler.timesteps, noise(2, *SHAPE, seed=n)
        expected = scheduler.step(unet(x_t, t).sample, t, x_t).prev_sample
        assert difference(denoiser(x_t, n).mean, expected) <= 1e-5


def test_score_sde(tmp_path: Path) -> None:
    N, unet = 10, small_unet(time_embedding_type="fourier", center_input_sample=True)
    scheduler = ScoreSdeVeScheduler(num_train_timesteps=N, sigma_max=50.0)
    ScoreSdeVePipeline(unet, scheduler).save_pretrained(tmp_path)
    denoiser = load(tmp_path)
    assert (denoiser.prediction, denoiser.clip, denoiser.data_range) == ("score", None, (0.0, 1.0))
    assert denoiser.schedule.prior_std == pytest.approx(50.0, rel=1e-12)
    sigma = denoiser.schedule.sigma
    for n in range(1, N + 1):
        x_t = float(sigma[n]) * noise(2, *SHAPE, seed=n) + 0.5
        out = unet(x_t, scheduler.discrete_sigmas[n - 1].expand(2)).sample
        # Their step to the next lower level; from the lowest it is x̂_0. The quarter keeps their index from rounding.
        t = torch.tensor((n - 0.75) / (N - 1))
        step = scheduler.step_pred(out, t, x_t, generator=torch.Generator().manual_seed(0)).prev_sample_mean
        mean = denoiser(x_t, n).mean
        assert difference(x_t + (1 - (sigma[n - 1] / sigma[n]) ** 2) * (mean - x_t), step) <= 1e-5
        assert difference(mean, x_t + float(sigma[n]) ** 2 * out) <= 1e-5


# ---- conditions and latents -----------------------------------------------------------------------------------


def test_class_conditional_unet(tmp_path: Path) -> None:
    unet, labels = small_unet(num_class_embeds=5), torch.tensor([4, 1])
    DDPMPipeline(unet, DDPMScheduler(clip_sample=False)).save_pretrained(tmp_path)
    denoiser, x_t = load(tmp_path), noise(2, *SHAPE)
    assert denoiser.conditional
    assert torch.equal(denoiser(x_t, 300, labels).eps, unet(x_t, 299, labels).sample)
    assert not torch.equal(denoiser(x_t, 300, labels.flip(0)).eps, denoiser(x_t, 300, labels).eps)


@pytest.fixture(scope="module")
def stable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like Stable Diffusion's, without its text encoder."""
    path = tmp_path_factory.mktemp("stable")
    config = {**UNET, "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "cross_attention_dim": 8}
    up_block_types = ("CrossAttnUpBlock2D", "UpBlock2D")
    seeded(UNet2DConditionModel, **config, up_block_types=up_block_types).save_pretrained(path / "unet")
    make_vae().save_pretrained(path / "vae")
    (path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    return path


@pytest.mark.parametrize("kind", [PNDMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_stable_diffusion(kind: type, prediction: str, stable: Path) -> None:
    """The scheduler's own solver does not matter: DDIM at the same betas tells x̂_0."""
    scheduler = kind(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type=prediction)
    scheduler.save_pretrained(stable / "scheduler")
    denoiser, unet = load(stable), UNet2DConditionModel.from_pretrained(stable / "unet").eval()
    assert (denoiser.shape, denoiser.clip, denoiser.data_range) == ((4, 8, 8), None, None)
    assert denoiser.schedule == NoiseSchedule.scaled_linear(1000)
    assert denoiser.codec is not None
    assert denoiser.codec.scaling == (0.3, 0.0)
    assert denoiser.codec.image_shape(denoiser.shape) == (3, 16, 16)
    assert denoiser.prompts is None
    ddim = DDIMScheduler.from_config(scheduler.config, clip_sample=False)
    ddim.set_timesteps(1000)
    x_t, prompts = noise(2, 4, 8, 8), noise(2, 5, 8, seed=1)
    with torch.no_grad():
        for n in (1, 400, 1000):
            expected = ddim.step(unet(x_t, n - 1, prompts).sample, n - 1, x_t).pred_original_sample
            assert difference(denoiser(x_t, n, prompts).mean, expected) <= 1e-5


def record_steps(pipeline: Any, monkeypatch: pytest.MonkeyPatch, **call: Any) -> tuple[list[Any], torch.Tensor]:
    """(model output, timestep, sample, x̂_0) of every step of a pipeline, and its image in [-1, 1]."""
    steps, original = [], pipeline.scheduler.step

    def step(out: torch.Tensor, t: Any, sample: torch.Tensor, **options: Any) -> Any:
        result = original(out, t, sample, **options)
        steps.append((out, int(t), sample, result.pred_original_sample, result.prev_sample))
        return result

    monkeypatch.setattr(pipeline.scheduler, "step", step)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(generator=torch.Generator().manual_seed(0), output_type="np", **call).images
    return steps, torch.from_numpy(images).permute(0, 3, 1, 2) * 2 - 1


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_dit(published: bool, scale: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guidance included: the first half of 2C channels is guided, and the null label is the one after the last."""
    size = {"num_attention_heads": 2, "attention_head_dim": 4, "num_layers": 2, "norm_num_groups": 4, "sample_size": 8}
    dit = seeded(DiTTransformer2DModel, **size, in_channels=4, out_channels=8, num_embeds_ada_norm=1000)
    DiTPipeline(dit, make_vae(), DDIMScheduler(clip_sample=False)).save_pretrained(tmp_path)
    if published:  # what the class was called, and what its config held, when the checkpoint was made
        old = {"cross_attention_dim": None, "num_vector_embeds": None, "use_linear_projection": False}
        edit(tmp_path / "transformer" / "config.json", _class_name="Transformer2DModel", **old)
    pipeline = DiTPipeline(dit, make_vae(), DDIMScheduler(clip_sample=False))
    call = {"class_labels": [3, 999], "guidance_scale": scale, "num_inference_steps": 3}
    steps, images = record_steps(pipeline, monkeypatch, **call)
    denoiser, labels = load(tmp_path, guidance_scale=scale), torch.tensor([3, 999])
    for out, t, sample, expected, _ in steps:
        posterior = denoiser(sample[:2], t + 1, labels)
        assert difference(posterior.eps, out[:2]) <= 1e-5
        assert difference(posterior.mean, expected[:2]) <= 1e-5
        assert posterior.range is not None
        assert difference(posterior.range, dit(sample[:2], torch.tensor([t, t]), labels).sample[:, 4:]) <= 1e-5
    assert denoiser.codec is not None
    assert difference(denoiser.codec.decode(steps[-1][-1][:2]), images) <= 1e-5
    if scale == 1.0:
        assert denoiser.guidance is None
    else:
        assert denoiser.guidance is not None
        assert int(denoiser.guidance.unconditional) == 1000


def test_latent_diffusion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unet, codec = small_unet(), seeded(VQModel, **CODEC, **BLOCKS, latent_channels=3, num_vq_embeddings=16)
    pipeline = LDMPipeline(codec, unet, DDIMScheduler(clip_sample=False))
    pipeline.save_pretrained(tmp_path)
    denoiser = load(tmp_path)
    steps, images = record_steps(pipeline, monkeypatch, batch_size=2, num_inference_steps=3)
    assert len(steps) == 3
    for out, t, sample, expected, _ in steps:
        posterior = denoiser(sample, t + 1)
        assert difference(posterior.eps, out) <= 1e-5
        assert difference(posterior.mean, expected) <= 1e-5
    assert denoiser.data_range is None
    assert denoiser.codec is not None
    assert denoiser.codec.scaling == (codec.config.scaling_factor, 0.0)
    assert difference(denoiser.codec.decode(steps[-1][-1]), images) <= 1e-5
