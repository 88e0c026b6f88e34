"""Every family of pipelines as a denoiser: its x̂_0 is what the pipeline's own loop computes, guided and not."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import diffusion_var as dv
from diffusion_var.models.prediction import mean_and_eps
from diffusion_var.pipelines.compatibility import check_pipeline

pytest.importorskip("transformers")
from small_families import CALLS, FAMILIES, FLOW

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

#: Run by their own loop; the others' networks are called directly.
LOOPS = (*FLOW, "sdxl", "pixart_sigma", "text_to_video", "stable_audio")


PROMPTS = ["a cat", "a dog and a cat"]  # of two lengths
_NOT_OF_THE_MODEL = ("prompt", "output_type", "num_inference_steps", "generator", "latents", "negative_prompt")


@cache
def family(name: str) -> Any:
    return FAMILIES[name]()


def scale_name(pipe: Any) -> str:
    return "true_cfg_scale" if "true_cfg_scale" in inspect.signature(pipe.__call__).parameters else "guidance_scale"


def arguments(name: str, scale: float | None) -> dict[str, Any]:
    """Those of the pipeline's call that belong to the model, at a scale of classifier-free guidance."""
    pipe = family(name)
    found = {k: v for k, v in CALLS[name].items() if k not in _NOT_OF_THE_MODEL}
    found.pop("true_cfg_scale", None)
    if name == "qwen_image":  # its prompts stand behind a text of this length
        found["max_sequence_length"] = 1024
    if scale is not None:
        found[scale_name(pipe)] = scale
        if scale != 1 and "negative_prompt" in inspect.signature(pipe.__call__).parameters:
            found["negative_prompt"] = "a bird"
    return found


def denoiser_of(name: str, scale: float | None = 1.0) -> dv.Denoiser:
    return dv.Denoiser.from_pipeline(family(name), **arguments(name, scale))


@dataclass
class Step:
    output: torch.Tensor
    timestep: torch.Tensor
    sample: torch.Tensor
    after: torch.Tensor


@contextmanager
def watched(scheduler: Any) -> Iterator[list[Step]]:
    """The steps that a pipeline makes inside."""
    steps: list[Step] = []
    step = scheduler.step

    def keep(model_output: Any, timestep: Any, sample: Any, *others: Any, **options: Any) -> Any:
        out = step(model_output, timestep, sample, *others, **options)
        after = out[0] if isinstance(out, tuple) else out.prev_sample
        steps.append(Step(model_output.clone(), timestep, sample.clone(), after.clone()))
        return out

    scheduler.step = keep
    try:
        yield steps
    finally:
        del scheduler.step


def run(name: str, prompts: list[str], scale: float | None, **options: Any) -> tuple[list[Step], Any]:
    """The steps of the pipeline's own run, and what it returned."""
    pipe = family(name)
    call = {**CALLS[name], **arguments(name, scale), "prompt": prompts, **options}
    if isinstance(call.get("negative_prompt"), str):
        call["negative_prompt"] = [call["negative_prompt"]] * len(prompts)
    if "generator" in inspect.signature(pipe.__call__).parameters:
        call["generator"] = torch.Generator().manual_seed(3)
    with watched(pipe.scheduler) as steps:
        out = pipe(**call)
    return steps, out


def images(denoiser: dv.Denoiser, x: torch.Tensor) -> torch.Tensor:
    """Samples of a pipeline as (B, C, *spatial)."""
    if x.ndim == 4 and len(denoiser.shape) == 4:  # frames, one by one
        C, F = denoiser.shape[:2]
        return x.reshape(-1, F, C, *x.shape[2:]).movedim(2, 1)
    return denoiser.network.layout.images(x)


def level_of(denoiser: dv.Denoiser, timestep: Any, scheduler: Any) -> Any:
    t = float(timestep)
    if denoiser.prediction == "flow":
        return dv.NoiseLevel.flow(t / 1000)
    if denoiser.prediction in ("edm", "edm_v"):
        return dv.NoiseLevel.edm(float(np.exp(4 * t)))
    return int(t) + 1


# ---- what it computes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("name", LOOPS)
def test_its_mean_is_that_of_the_pipelines_own_loop(name: str, scale: float) -> None:
    denoiser = denoiser_of(name, scale)
    steps, _ = run(name, PROMPTS, scale)
    conditions = denoiser.prompts.encode(PROMPTS)
    assert denoiser.guidance_scale == scale
    assert len(steps) > 1
    for step in steps:
        x_t, output = images(denoiser, step.sample), images(denoiser, step.output)
        level = level_of(denoiser, step.timestep, family(name).scheduler)
        alpha, sigma = denoiser.schedule.coefficients(level, x_t)
        if denoiser.prediction.startswith("edm"):  # diffusers' samples are x_t, and so are ours: α = 1
            assert alpha == 1.0
        expected, _ = mean_and_eps(denoiser.prediction, output, x_t, alpha, sigma, denoiser.sigma_data)
        with torch.no_grad():
            found = denoiser(x_t, level, conditions).mean
        assert found.shape == (len(PROMPTS), *denoiser.shape)
        assert float((found - expected).abs().max()) <= 2e-6 * float(expected.abs().max())


@pytest.mark.parametrize("name", LOOPS)
def test_prompts_and_guidance_change_it(name: str) -> None:
    """So that what the comparisons above compare depends on them."""
    plain, guided = denoiser_of(name), denoiser_of(name, 3.0)
    x_t = noise(1, plain).expand(2, *plain.shape)
    with torch.no_grad():
        means = plain(x_t, 5, plain.prompts.encode(PROMPTS)).mean
        others = guided(x_t, 5, guided.prompts.encode(PROMPTS)).mean
    assert float((means[0] - means[1]).abs().max()) > 2e-6 * float(means.abs().max())
    assert float((means - others).abs().max()) > 2e-6 * float(means.abs().max())


def noise(count: int, denoiser: dv.Denoiser, seed: int = 0) -> torch.Tensor:
    drawn = np.random.default_rng(seed).standard_normal((count, *denoiser.shape), dtype=np.float32)
    return torch.from_numpy(drawn)


@pytest.mark.parametrize("name", LOOPS)
def test_a_batch_of_levels_and_prompts_is_its_rows(name: str) -> None:
    denoiser = denoiser_of(name, 3.0)
    x_t, indices = noise(4, denoiser), torch.tensor([8, 3, 8, 2])
    conditions = denoiser.prompts.encode([*PROMPTS, *PROMPTS])
    with torch.no_grad():
        whole = denoiser(x_t, indices, conditions).mean
        for i in range(4):
            alone = denoiser.prompts.encode([PROMPTS[i % 2]])
            one = denoiser(x_t[i : i + 1], int(indices[i]), alone).mean
            assert float((whole[i] - one[0]).abs().max()) <= 1e-5 * float(one.abs().max())


@pytest.mark.parametrize("name", FLOW)
def test_the_sampler_makes_the_pipelines_latents(name: str) -> None:
    """Euler's steps are DDIM's at η = 0, at the noise levels of the pipeline's own scheduler."""
    steps, _ = run(name, PROMPTS, 3.0)
    denoiser = denoiser_of(name, 3.0)
    levels = [level_of(denoiser, step.timestep, None) for step in steps]
    sampler = dv.Sampler(denoiser, dv.FixedSmall(), steps=levels, eta=0.0)
    found = sampler.from_noise(images(denoiser, steps[0].sample), conditions=denoiser.prompts.encode(PROMPTS))
    expected = images(denoiser, steps[-1].after)
    assert float((found - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


def test_gradients_pass() -> None:
    denoiser = denoiser_of("sd3")
    x_t = noise(1, denoiser).requires_grad_()
    denoiser(x_t, 5, denoiser.prompts.encode(["a cat"])).mean.square().sum().backward()
    assert x_t.grad is not None
    direction = noise(1, denoiser, seed=1)
    with torch.no_grad():
        ends = [denoiser(x_t + h * direction, 5, denoiser.prompts.encode(["a cat"])).mean for h in (-1e-2, 1e-2)]
    slope = (ends[1].double().square().sum() - ends[0].double().square().sum()) / 2e-2
    assert float((x_t.grad * direction).sum()) == pytest.approx(float(slope), rel=1e-2)


def test_the_pipeline_is_left_as_it_was() -> None:
    pipe = FAMILIES["flux"]()
    before, kind = dict(vars(pipe)), type(pipe)
    of_scheduler = dict(vars(pipe.scheduler))
    denoiser = dv.Denoiser.from_pipeline(pipe, height=16, width=16, max_sequence_length=8)
    denoiser(noise(1, denoiser), 5, denoiser.prompts.encode(["a cat"]))
    assert type(pipe) is kind
    assert vars(pipe) == before
    assert vars(pipe.scheduler).keys() == of_scheduler.keys()
    assert torch.equal(vars(pipe.scheduler)["timesteps"], of_scheduler["timesteps"])


# ---- whose tables fit it --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOOPS)
def test_a_table_of_it_is_the_pipelines(name: str, tmp_path: Path) -> None:
    denoiser = denoiser_of(name)
    latents = noise(4, denoiser)
    table = dv.estimate(
        denoiser,
        latents,
        conditions=dv.Conditions(denoiser.prompts.encode(PROMPTS)),
        indices=[4],
        tolerance=0.5,
        structures=("isotropic", "channel"),
        batch_size=64,
        progress=False,
    )
    table.save(tmp_path / "table.safetensors")
    table = dv.VarianceTable.load(tmp_path / "table.safetensors")
    table.check(denoiser)
    pipe = family(name)
    network = pipe.transformer if hasattr(pipe, "transformer") else pipe.unet
    check_pipeline(table, pipe, network)
    assert table.network == denoiser.fingerprint
    with pytest.raises(dv.InputError, match="guidance scale"):
        table.check(denoiser_of(name, 3.0))


def test_estimate_one_image_at_a_time() -> None:
    denoiser = denoiser_of("flux")
    conditions = dv.Conditions(denoiser.prompts.encode(PROMPTS))
    tables = [
        dv.estimate(
            denoiser,
            noise(4, denoiser),
            conditions=conditions,
            indices=[4],
            tolerance=0.5,
            structures=("isotropic",),
            batch_size=size,
            progress=False,
        )
        for size in (1, 64)
    ]
    one, many = (table.posterior_variance(4) for table in tables)
    assert one == pytest.approx(many, rel=1e-5)


def test_a_guidance_scale_that_the_network_is_told_is_no_classifier_free_guidance() -> None:
    plain, more = (dv.Denoiser.from_pipeline(family("flux"), guidance_scale=g, height=16, width=16) for g in (3.5, 7.0))
    assert plain.guidance_scale == more.guidance_scale == 1.0
    assert plain.identity().facts["embedded_guidance"] == 3.5
    said = plain.identity().mismatch(more.identity(), "the table", "the denoiser")
    assert said == "guidance that the network is told: the table has 3.5, the denoiser 7.0"
    conditions = plain.prompts.encode(["a cat"])
    x_t = noise(1, plain)
    with torch.no_grad():
        assert not torch.equal(plain(x_t, 5, conditions).mean, more(x_t, 5, conditions).mean)
    both = plain.with_guidance(3.0)
    assert (both.guidance_scale, both.identity().facts["embedded_guidance"]) == (3.0, 3.5)


@pytest.mark.parametrize("name", ["sd3", "qwen_image", "wan"])
def test_other_guidance(name: str) -> None:
    """A denoiser with guidance is that of a pipeline that is called with it."""
    other, own = denoiser_of(name).with_guidance(3.0), denoiser_of(name, 3.0)
    if "negative_prompt" in own.network.call:  # an empty one is the default
        own = dv.Denoiser.from_pipeline(family(name), **{**own.network.call, "negative_prompt": ""})
    x_t = noise(1, own)
    with torch.no_grad():
        found, expected = (d(x_t, 5, d.prompts.encode(["a cat"])).mean for d in (other, own))
    assert other.guidance_scale == 3.0
    assert torch.equal(found, expected)
    with pytest.raises(dv.InputError, match=r"encode the prompts with this denoiser"):
        other(x_t, 5, denoiser_of(name).prompts.encode(["a cat"]))


def test_a_pipeline_that_guides_from_0_on_is_unguided_at_0() -> None:
    """Z-Image's scale 1 is w = 2 of others: guided, though by the number that means none elsewhere."""
    at_one, at_zero = denoiser_of("z_image", 1.0), denoiser_of("z_image", 0.0)
    assert (at_one.guidance_scale, at_one.guided_by, at_one.network.evaluations) == (1.0, 1.0, 2)
    assert (at_zero.guidance_scale, at_zero.guided_by, at_zero.network.evaluations) == (1.0, None, 1)
    x_t = noise(1, at_one)
    plain = at_one.with_guidance(1.0)
    with torch.no_grad():
        conditions = at_zero.prompts.encode(["a cat"])
        expected = at_zero(x_t, 5, conditions).mean
        assert torch.equal(plain(x_t, 5, plain.prompts.encode(["a cat"])).mean, expected)
        assert float((at_one(x_t, 5, at_one.prompts.encode(["a cat"])).mean - expected).abs().max()) > 1e-3
    with pytest.raises(dv.InputError, match=r"guided here \(guidance_scale=1\); .*, or with 0 where its pipeline"):
        at_one.network.features_in_order([])
    known = at_one.identity(keep=True)
    assert "evaluations of the network an image: the table has 2, the denoiser 1" in known.mismatch(
        at_zero.identity(beside=known), "the table", "the denoiser"
    )


def test_a_table_of_a_pipeline_that_is_guided_at_1_is_a_guided_one(tmp_path: Path) -> None:
    denoiser = denoiser_of("z_image", 1.0)
    how: Any = {"indices": [4], "tolerance": 0.5, "structures": ("isotropic",), "progress": False}
    conditions = dv.Conditions(denoiser.prompts.encode(PROMPTS))
    dv.estimate(denoiser, noise(4, denoiser), conditions=conditions, **how).save(tmp_path / "table.safetensors")
    table = dv.VarianceTable.load(tmp_path / "table.safetensors")
    assert table.guided_by == 1.0
    with pytest.raises(dv.InputError, match="guid"):
        table.posterior_variance(4, "score_norm")
    with pytest.raises(dv.InputError, match="evaluations of the network an image"):
        table.check(denoiser_of("z_image", 0.0))


@pytest.mark.parametrize("name", [name for name in LOOPS if name != "stable_audio"])
def test_prompts_with_guidance_serve_without(name: str) -> None:
    """Who asks a guided denoiser what it says without (as `diagnose` does) has its prompts, not others."""
    guided, plain = denoiser_of(name, 3.0), denoiser_of(name, 0.0 if name == "z_image" else 1.0)
    without = guided.with_guidance(1.0)
    x_t = noise(2, guided)
    prompts = ["a cat", "a dog on a mat"]
    conditions, own = (None if d.prompts is None else d.prompts.encode(prompts) for d in (guided, plain))
    with torch.no_grad():
        expected, found = plain(x_t, 5, own).mean, without(x_t, 5, conditions).mean
        again = without(x_t, 5, None if without.prompts is None else without.prompts.encode(prompts)).mean
    assert without.guidance_scale == 1.0
    assert torch.equal(found, expected)
    assert torch.equal(again, expected)


def test_prompts_that_hold_what_stands_for_none_as_rows_serve_guidance_alone() -> None:
    guided = denoiser_of("stable_audio", 3.0)
    conditions = guided.prompts.encode(["a cat"])
    with pytest.raises(dv.InputError, match=r"encode the prompts with this denoiser"):
        guided.with_guidance(1.0)(noise(1, guided), 5, conditions)


# ---- folders --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_a_saved_pipeline_is_the_loaded_one(name: str, tmp_path: Path) -> None:
    family(name).save_pretrained(tmp_path)
    call = arguments(name, None) if name in LOOPS else {}
    loaded = dv.Denoiser.from_pretrained(tmp_path, device="cpu", call=call)
    none = 0.0 if name == "z_image" else 1.0  # the scale of no guidance
    own = dv.Denoiser.from_pipeline(family(name), **({**arguments(name, none)} if name in LOOPS else {}))
    x_t = noise(1, own)
    conditions = None if own.prompts is None else own.prompts.encode(["a cat"])
    if name == "sd_inpaint":
        conditions = {"prompt": conditions, "concatenated": torch.ones(1, 5, *own.shape[1:])}
    if name == "dit":
        conditions = torch.tensor([2])
    with torch.no_grad():
        found = loaded(x_t, 5, conditions).mean
        expected = own.with_guidance(1.0)(x_t, 5, conditions).mean
    assert loaded.guidance_scale == 1.0
    assert loaded.fingerprint == own.fingerprint
    assert torch.equal(found, expected)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("families")
    for name in ("qwen_image", "sdxl", "z_image"):
        family(name).save_pretrained(root / name)
    return root


@pytest.mark.parametrize(("name", "scale"), [("qwen_image", 4.0), ("sdxl", 5.0), ("z_image", 1.0)])
def test_the_scale_of_the_call_is_kept(name: str, scale: float, saved: Path) -> None:
    call = arguments(name, scale)
    loaded = dv.Denoiser.from_pretrained(saved / name, device="cpu", call={**call, "negative_prompt": "a bird"})
    own = dv.Denoiser.from_pipeline(family(name), **{**call, "negative_prompt": "a bird"})
    assert loaded.guidance_scale == own.guidance_scale == scale
    x_t = noise(1, own)
    with torch.no_grad():
        found, expected = (d(x_t, 5, d.prompts.encode(["a cat"])).mean for d in (loaded, own))
    assert torch.equal(found, expected)


def test_one_scale_is_given_once(saved: Path) -> None:
    call = arguments("qwen_image", 4.0)
    said = r"^guidance_scale=2 and true_cfg_scale=4\.0 of QwenImagePipeline's call are one scale; give one of them\.$"
    with pytest.raises(dv.InputError, match=said):
        dv.Denoiser.from_pretrained(saved / "qwen_image", device="cpu", guidance_scale=2.0, call=call)
    with pytest.raises(dv.InputError, match=said):
        dv.Denoiser.from_pipeline(family("qwen_image"), guidance_scale=2.0, **call)


def test_nothing_given_is_no_guidance(saved: Path) -> None:
    loaded = dv.Denoiser.from_pretrained(saved / "z_image", device="cpu", call=arguments("z_image", None))
    assert (loaded.network.evaluations, loaded.guidance) == (1, None)
    own = denoiser_of("z_image", 0.0)
    x_t, conditions = noise(1, own), own.prompts.encode(["a cat"])
    with torch.no_grad():
        assert torch.equal(loaded(x_t, 5, conditions).mean, own(x_t, 5, conditions).mean)


# ---- the autoencoders ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOOPS)
def test_pictures_are_those_of_the_pipeline(name: str) -> None:
    steps, out = run(name, PROMPTS, 1.0, output_type="pt")
    denoiser = denoiser_of(name)
    found = denoiser.codec.decode(images(denoiser, steps[-1].after))
    assert tuple(found.shape[1:]) == denoiser.codec.image_shape(denoiser.shape)
    expected = out[0] if isinstance(out, tuple) else next(iter(out.values()))
    if name == "stable_audio":  # cut to the seconds that were asked for
        found = found[..., : expected.shape[-1]]
    else:  # pictures of [0, 1]; of videos (B, F, C, H, W)
        expected = 2 * (expected.movedim(1, 2) if expected.ndim == 5 else expected) - 1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["flux2", "qwen_image", "wan", "stable_audio"])
def test_latents_are_kept(name: str, tmp_path: Path) -> None:
    """Of pictures scaled by channel, of videos and of sounds."""
    denoiser = denoiser_of(name)
    shape = denoiser.codec.image_shape(denoiser.shape)
    pictures = torch.from_numpy(np.random.default_rng(1).uniform(-1, 1, (3, *shape))).float()
    made, again = (dv.encode_latents(denoiser, pictures, tmp_path / "cache", progress=False) for _ in range(2))
    assert torch.equal(torch.stack([made[i] for i in range(3)]), denoiser.codec.encode(pictures))
    assert torch.equal(made[2], again[2])


@pytest.mark.parametrize("name", LOOPS)
@torch.no_grad()
def test_encoding_undoes_the_scaling(name: str) -> None:
    """An autoencoder is no inverse; its decoder is shown the encoder's own latents again."""
    denoiser, vae = denoiser_of(name), family(name).vae
    codec = denoiser.codec
    shape = codec.image_shape(denoiser.shape)
    pictures = torch.from_numpy(np.random.default_rng(1).uniform(-1, 1, (2, *shape))).float()
    latents = codec.encode(pictures)
    assert tuple(latents.shape[1:]) == denoiser.shape
    shown = []
    decode = vae.decode
    vae.decode = lambda z, *others, **options: (shown.append(z), decode(z, *others, **options))[1]
    try:
        codec.decode(latents)
    finally:
        del vae.decode
    given = codec._shown(pictures)
    encoded = vae.encode(given)
    raw = encoded.latent if hasattr(encoded, "latent") else encoded.latent_dist.mode()
    torch.testing.assert_close(shown[0], raw, rtol=0, atol=1e-4)
    assert float((codec.encode(pictures) - latents).abs().max()) == 0.0
