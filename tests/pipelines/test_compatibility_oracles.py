"""AnalyticScheduler inside diffusers' own pipelines: the images of the scheduler that it replaces where that one is
right, and with a table whole pipelines that diffusers saves and loads by itself.

The networks are tiny and random: what is tested is that every call of a pipeline finds what it expects.
"""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from small_pipelines import seeded, small_unet

import diffusion_var as dv

transformers = pytest.importorskip("transformers")

#: float32 ᾱ in diffusers' schedulers; images in [0, 1].
LIMIT = 2e-4
LATENT: dict[str, Any] = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "steps_offset": 1,
}
KINDS = {
    "text-to-image": diffusers.StableDiffusionPipeline,
    "img2img": diffusers.StableDiffusionImg2ImgPipeline,
    "inpaint": diffusers.StableDiffusionInpaintPipeline,
}


@pytest.fixture(autouse=True)
def _global_generator_is_put_back() -> Iterator[None]:
    """Two of the pipelines hand no generator to their scheduler; diffusers' own then draws from the global one."""
    with torch.random.fork_rng(devices=[]):
        yield


def unet_of(size: int = 8, channels: int = 3) -> diffusers.UNet2DModel:
    return small_unet(sample_size=size, in_channels=channels, out_channels=channels)


@pytest.fixture(scope="module")
def unet() -> diffusers.UNet2DModel:
    return unet_of()


@pytest.fixture(scope="module")
def vae() -> diffusers.AutoencoderKL:
    return seeded(
        diffusers.AutoencoderKL,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        sample_size=8,
    )


@pytest.fixture(scope="module")
def parts(vae: diffusers.AutoencoderKL, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a Stable Diffusion pipeline is made of, but for the scheduler."""
    folder = tmp_path_factory.mktemp("tokenizer")
    words = ["<|startoftext|>", "<|endoftext|>", *"catred", *(f"{letter}</w>" for letter in "catred")]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(words))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    files = str(folder / "vocab.json"), str(folder / "merges.txt")
    text = transformers.CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    conditional = seeded(
        diffusers.UNet2DConditionModel,
        sample_size=4,
        layers_per_block=1,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=4,
    )
    return {
        "vae": vae,
        "unet": conditional,
        "text_encoder": seeded(transformers.CLIPTextModel, config=text),
        "tokenizer": transformers.CLIPTokenizer(*files, model_max_length=16),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


def images(pipe: Any, *arguments: Any, seed: int = 0, **options: Any) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 5, "generator": torch.Generator().manual_seed(seed), **options}
    found: np.ndarray = pipe(*arguments, output_type="np", **options).images
    assert np.isfinite(found).all()
    return found


def apart(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).max())


def text_images(kind: str, parts: dict[str, Any], scheduler: Any, **options: Any) -> np.ndarray:
    if kind != "text-to-image":
        picture = np.random.default_rng(2).random((1, 3, 8, 8), dtype=np.float32)
        options |= {"image": torch.from_numpy(picture), "strength": 0.6}
    if kind == "inpaint":
        options["mask_image"] = torch.arange(8.0).lt(4).float().expand(1, 1, 8, 8)
    if kind != "img2img":
        options |= {"height": 8, "width": 8}
    return images(KINDS[kind](**parts, scheduler=scheduler), "a red cat", **options)


# ---- the images of the scheduler that it replaces ----------------------------------------------------------------


@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("clip", [True, False])
def test_ddpm_pipeline(unet: diffusers.UNet2DModel, variance_type: str, clip: bool) -> None:
    theirs = diffusers.DDPMScheduler(variance_type=variance_type, clip_sample=clip)
    ours = dv.AnalyticScheduler.from_config(theirs.config)
    expected, got = (images(diffusers.DDPMPipeline(unet, s), batch_size=2) for s in (theirs, ours))
    assert apart(got, expected) < LIMIT
    assert apart(images(diffusers.DDPMPipeline(unet, ours), batch_size=2, seed=1), expected) > 0.05


@pytest.mark.parametrize("rederived", [None, True])
@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_ddim_pipeline(unet: diffusers.UNet2DModel, eta: float, rederived: bool | None) -> None:
    """Its own η counts, for it hands one to every scheduler; and what it is made with becomes a DDIMScheduler."""
    pipe = diffusers.DDIMPipeline(unet, dv.AnalyticScheduler())
    assert isinstance(pipe.scheduler, diffusers.DDIMScheduler)
    options = {"batch_size": 2, "eta": eta, "use_clipped_model_output": rederived}
    expected = images(pipe, **options)
    pipe.scheduler = dv.AnalyticScheduler(eta=1.0)
    assert apart(images(pipe, **options), expected) < LIMIT
    assert apart(images(pipe, **{**options, "eta": 1.0}), expected) > 0.01


@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_ldm_pipeline(vae: diffusers.AutoencoderKL, eta: float) -> None:
    """It hands η = 0 to schedulers whose step names it, and a generator to none."""
    pipe = diffusers.LDMPipeline(vae, unet_of(4, 4), diffusers.DDIMScheduler(**LATENT))
    torch.manual_seed(4)
    expected = images(pipe, batch_size=2, eta=eta)
    pipe.scheduler = dv.AnalyticScheduler(**LATENT, eta=eta)
    pipe.scheduler.generator = torch.Generator().manual_seed(4)
    assert apart(images(pipe, batch_size=2), expected) < LIMIT
    pipe.scheduler = dv.AnalyticScheduler(**LATENT, eta=0.5 - eta)
    assert apart(images(pipe, batch_size=2), expected) > 0.01


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_dit_pipeline(vae: diffusers.AutoencoderKL, eta: float, guidance_scale: float) -> None:
    transformer = seeded(
        diffusers.DiTTransformer2DModel,
        num_attention_heads=2,
        attention_head_dim=4,
        in_channels=4,
        out_channels=8,  # it learns a range; the pipeline cuts it off
        num_layers=1,
        sample_size=4,
        patch_size=2,
        norm_num_groups=4,
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_zero",
    )
    pipe = diffusers.DiTPipeline(
        transformer, vae, (diffusers.DDPMScheduler if eta else diffusers.DDIMScheduler)(clip_sample=False)
    )
    torch.manual_seed(4)
    expected = images(pipe, [3, 7], guidance_scale=guidance_scale)
    pipe.scheduler = dv.AnalyticScheduler(clip_sample=False, eta=eta)
    pipe.scheduler.generator = torch.Generator().manual_seed(4)
    assert apart(images(pipe, [3, 7], guidance_scale=guidance_scale), expected) < LIMIT
    pipe.scheduler = dv.AnalyticScheduler(clip_sample=False, eta=1 - eta)
    assert apart(images(pipe, [3, 7], guidance_scale=guidance_scale), expected) > 0.01


@pytest.mark.parametrize("eta", [0.0, 0.5, None])
@pytest.mark.parametrize("kind", KINDS)
def test_stable_diffusion(parts: dict[str, Any], kind: str, eta: float | None) -> None:
    """None: DDPM. The pipelines hand η = 0 of their own to DDIMScheduler, so it is told; ours has it in its config."""
    if eta is None:
        expected = text_images(kind, parts, diffusers.DDPMScheduler(**LATENT))
        ours = dv.AnalyticScheduler(**LATENT)
    else:
        expected = text_images(kind, parts, diffusers.DDIMScheduler(**LATENT, set_alpha_to_one=True), eta=eta)
        ours = dv.AnalyticScheduler(**LATENT, eta=eta)
    got = text_images(kind, parts, ours)
    assert apart(got, expected) < LIMIT
    other = dv.AnalyticScheduler(**{**LATENT, "eta": 1.0 if eta == 0.0 else 0.0})
    assert apart(text_images(kind, parts, other), expected) > 0.005


def test_timesteps_of_ones_own(parts: dict[str, Any]) -> None:
    timesteps = [900, 500, 480, 20, 0]
    schedulers = diffusers.DDPMScheduler(**LATENT), dv.AnalyticScheduler(**LATENT)
    expected, got = (text_images("text-to-image", parts, s, timesteps=timesteps) for s in schedulers)
    assert apart(got, expected) < LIMIT
    assert apart(got, text_images("text-to-image", parts, schedulers[1])) > 0.005


# ---- with a table ------------------------------------------------------------------------------------------------


def exact_table(config: Any, shape: tuple[int, int, int], **facts: Any) -> dv.VarianceTable:
    """A table that passes for the pipeline's network: of Gaussian data, so that it takes no network to measure."""
    schedule = dv.NoiseSchedule.from_diffusers(config)
    variance = np.random.default_rng(0).uniform(0.05, 0.5, shape)
    oracle = dv.oracles.GaussianDenoiser(schedule, 0.1, variance)
    table = dv.estimate(oracle, oracle.sample(60), 1e9, indices=[1, 250, 500, 750, 1000], progress=False)
    return dataclasses.replace(table, network=None, prediction="epsilon", **facts)


@pytest.fixture(scope="module")
def pixel_table() -> dv.VarianceTable:
    return exact_table(diffusers.DDPMScheduler().config, (3, 8, 8), clip=(-1.0, 1.0), data_range=(-1.0, 1.0))


@pytest.fixture(scope="module")
def latent_table() -> dv.VarianceTable:
    return exact_table(diffusers.DDIMScheduler(**LATENT).config, (4, 4, 4), latent_scaling=(0.18215, 0.0))


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("structure", ["isotropic", "channel", "pixel", "dct"])
def test_a_whole_pipeline_is_saved_and_loaded(
    unet: diffusers.UNet2DModel, pixel_table: dv.VarianceTable, structure: str, eta: float, tmp_path: Path
) -> None:
    pipe = diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler())
    plain = images(pipe, batch_size=2)
    pipe.scheduler = dv.AnalyticScheduler.from_table(pixel_table, pipe, structure=structure, eta=eta)
    expected = images(pipe, batch_size=2)
    assert apart(plain, expected) > 0.01
    pipe.save_pretrained(tmp_path)
    beside = (tmp_path / "scheduler" / "variance_table.safetensors").exists()
    assert beside == (structure in ("pixel", "dct"))
    loaded = diffusers.DiffusionPipeline.from_pretrained(tmp_path)
    assert isinstance(loaded, diffusers.DDPMPipeline)
    assert loaded.scheduler.config.variance["structure"] == structure
    assert apart(images(loaded, batch_size=2), expected) < 1e-5
    loaded.scheduler = diffusers.DDPMScheduler.from_config(loaded.scheduler.config, variance_type="fixed_small")
    assert apart(images(loaded, batch_size=2), plain) < 1e-5


@pytest.mark.parametrize("structure", ["channel", "dct"])
@pytest.mark.parametrize("kind", KINDS)
def test_stable_diffusion_with_a_table(
    parts: dict[str, Any], latent_table: dv.VarianceTable, kind: str, structure: str, tmp_path: Path
) -> None:
    pipe = KINDS[kind](**parts, scheduler=diffusers.DDIMScheduler(**LATENT))
    ours = dv.AnalyticScheduler.from_table(latent_table, pipe, structure=structure, eta=0.0)
    pipe.scheduler = ours
    expected = text_images(kind, parts, ours)
    assert apart(expected, text_images(kind, parts, dv.AnalyticScheduler(**LATENT, eta=0.0))) > 0.005
    pipe.save_pretrained(tmp_path)
    loaded = dv.AnalyticScheduler.from_pretrained(tmp_path, subfolder="scheduler")
    assert apart(text_images(kind, parts, loaded), expected) < 1e-5


def test_a_table_of_another_model_is_refused(parts: dict[str, Any], latent_table: dv.VarianceTable) -> None:
    pipe = diffusers.StableDiffusionPipeline(**parts, scheduler=diffusers.DDIMScheduler(**LATENT))
    fingerprint = dv.Denoiser(pipe.unet, latent_table.schedule, shape=(4, 4, 4), clip=None).fingerprint
    dv.AnalyticScheduler.from_table(dataclasses.replace(latent_table, network=fingerprint), pipe)
    for facts, message in (
        ({"network": "0" * 64}, "network fingerprint: the table has 000000000000"),
        ({"latent_scaling": (0.5, 0.0)}, r"latent scaling: the table has \(0.5, 0.0\), the pipeline \(0.18215, 0.0\)"),
    ):
        other = dataclasses.replace(latent_table, **facts)
        with pytest.raises(dv.InputError, match=message):
            dv.AnalyticScheduler.from_table(other, pipe)
        dv.AnalyticScheduler.from_table(other, pipe.scheduler.config)  # which says nothing of either


def test_samples_of_another_shape(latent_table: dv.VarianceTable) -> None:
    """Isotropic and per-channel variances serve every size; a variance per element serves its own."""
    for structure, fits in (("isotropic", True), ("channel", True), ("pixel", False), ("dct", False)):
        scheduler = dv.AnalyticScheduler.from_table(
            latent_table, diffusers.DDIMScheduler(**LATENT), structure=structure
        )
        for shape, serves in (((2, 4, 4, 4), True), ((2, 4, 8, 4), fits), ((2, 3, 4, 4), False)):
            x = torch.zeros(shape)
            if serves:
                assert scheduler.step(x, 500, x, torch.Generator().manual_seed(0)).prev_sample.shape == shape
            else:
                with pytest.raises(dv.InputError, match=r"the table was measured on \(4, 4, 4\)"):
                    scheduler.step(x, 500, x)
