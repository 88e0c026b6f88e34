"""A trained head inside a diffusers pipeline: the sampler's steps, watching the network, and files."""

import copy

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler
from small_heads import SHAPE, denoiser, head, table

import diffusion_var as dv
from diffusion_var.sampling.noise import ImageNoise

BETAS = {"num_train_timesteps": 50, "beta_start": 1e-3, "beta_end": 0.2, "beta_schedule": "linear"}


def pipeline():
    pipe = DDPMPipeline(denoiser().network, DDPMScheduler(**BETAS, clip_sample=True))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def equipped(made, **options):
    pipe = pipeline()
    pipe.scheduler = dv.AnalyticScheduler.from_head(made, pipe, **options)
    return pipe


def loop(pipe, images=3, steps=5, features=None):
    """The pipeline's loop with the sampler's noise (seed 2)."""
    scheduler = pipe.scheduler
    scheduler.set_timesteps(steps)
    noise = ImageNoise(2, range(images), SHAPE, torch.device("cpu"))
    x = noise.prior()
    with torch.no_grad():
        for k, t in enumerate(scheduler.timesteps):
            out = pipe.unet(x, t).sample
            given = {} if k == len(scheduler.timesteps) - 1 else {"variance_noise": noise.next()}
            if features is not None:
                given["features"] = features(x, int(t) + 1)
            x = scheduler.step(out, t, x, **given).prev_sample
    return x.clamp(-1, 1)


@pytest.mark.parametrize("spec", [{}, {"target": "sn"}, {"target": "factor", "structure": "dct"}])
@pytest.mark.parametrize(("eta", "cap"), [(1.0, None), (0.5, 1.0), (0.0, None)])
def test_steps_are_the_samplers(spec, eta, cap):
    made = head(scale=0.3, **spec)
    pipe = equipped(made, eta=eta, final_noise_cap=cap, timestep_spacing="linspace")
    mine = loop(pipe)
    steps = [int(t) + 1 for t in reversed(pipe.scheduler.timesteps)]
    sampler = dv.Sampler(denoiser(), made, steps, eta, cap)
    # float32: a step multiplies by up to 1/α_t
    assert float((mine - sampler.sample(3, seed=2)).abs().max()) < 1e-4
    plain = dv.Sampler(denoiser(), dv.Analytic(table()), steps, eta, cap).sample(3, seed=2)
    assert float((mine - plain).abs().max()) > 1e-2


def test_features_of_ones_own():
    made = head(scale=0.3)
    pipe = equipped(made)
    watched = loop(pipe)
    pipe.scheduler._source._watch.remove()
    tapped = denoiser().with_features()
    assert float((loop(pipe, features=lambda x, n: tapped(x, n).features) - watched).abs().max()) < 1e-6


def test_the_pipeline_itself_and_its_files(tmp_path):
    pipe = equipped(head(scale=0.3), eta=1.0)
    generator = torch.Generator().manual_seed(1)
    images = pipe(2, generator=generator, num_inference_steps=4, output_type="np").images
    pipe.save_pretrained(tmp_path)
    assert (tmp_path / "scheduler" / "variance_head.safetensors").is_file()
    loaded = dv.AnalyticScheduler.from_pretrained(tmp_path / "scheduler")
    again = pipeline()
    again.scheduler = loaded
    with pytest.raises(dv.InputError, match=r"call scheduler.watch\(pipe\)"):
        again(2, num_inference_steps=4)
    loaded.watch(again)
    generator.manual_seed(1)
    assert (again(2, generator=generator, num_inference_steps=4, output_type="np").images == images).all()
    (tmp_path / "scheduler" / "variance_head.safetensors").unlink()
    with pytest.raises(dv.InputError, match="there is no variance head at"):
        dv.AnalyticScheduler.from_pretrained(tmp_path / "scheduler")
    head(scale=0.1).save(tmp_path / "scheduler" / "variance_head.safetensors")
    with pytest.raises(dv.InputError, match="is not the one that the scheduler was made with"):
        dv.AnalyticScheduler.from_pretrained(tmp_path / "scheduler")


def test_features_serve_one_step():
    pipe = equipped(head(scale=0.3))
    scheduler = pipe.scheduler
    scheduler.set_timesteps(3)
    x, t = torch.zeros(2, *SHAPE), scheduler.timesteps[0]
    with torch.no_grad():
        out = pipe.unet(x, t).sample
    scheduler.step(out, t, x)
    with pytest.raises(dv.InputError, match="none was seen since the last step"):
        scheduler.step(out, t, x)
    other = pipeline()
    scheduler.watch(other)
    with torch.no_grad():
        pipe.unet(x, t)  # no longer watched
    with pytest.raises(dv.InputError, match="none was seen"):
        scheduler.step(out, t, x)
    copied = copy.deepcopy(scheduler)
    with torch.no_grad():
        other.unet(x, t)
    with pytest.raises(dv.InputError, match="none was seen"):
        copied.step(out, t, x)  # a copy watches nothing
    scheduler.step(out, t, x)


@pytest.mark.parametrize("target", ["npr", "sn"])
def test_guidance_has_the_conditional_half_last(target):
    made = head(scale=0.3, target=target)
    pipe = equipped(made)
    scheduler = pipe.scheduler
    scheduler.set_timesteps(3)
    t = scheduler.timesteps[0]
    free, given = torch.zeros(2, *SHAPE), torch.full((2, *SHAPE), 0.5)
    noise = torch.ones(2, *SHAPE)
    with torch.no_grad():
        out = pipe.unet(torch.cat([free, given]), t).sample[2:]
        if target == "sn":
            with pytest.raises(dv.InputError, match="evaluated with guidance"):
                scheduler.step(out, t, given, variance_noise=noise)
            return
        twice = scheduler.step(out, t, given, variance_noise=noise).prev_sample
        pipe.unet(given, t)
        once = scheduler.step(out, t, given, variance_noise=noise).prev_sample
    assert float((twice - once).abs().max()) < 1e-6


def test_heads_and_pipelines_that_do_not_fit():
    with pytest.raises(dv.InputError, match="a head needs the pipeline, whose network it reads"):
        dv.AnalyticScheduler.from_head(head(), pipeline().scheduler.config)
    with pytest.raises(dv.InputError, match=r"head must be a dv.Head \(.*\), but got VarianceTable"):
        dv.AnalyticScheduler.from_head(table(), pipeline())
    other = pipeline()
    next(other.unet.parameters()).data += 0.1
    with pytest.raises(dv.InputError, match="network fingerprint"):
        dv.AnalyticScheduler.from_head(head(), other)
    unclipped = DDPMPipeline(denoiser().network, DDPMScheduler(**BETAS, clip_sample=False))
    with pytest.raises(dv.InputError, match="clipping"):
        dv.AnalyticScheduler.from_head(head(), unclipped)
    with pytest.raises(TypeError, match="etta"):
        dv.AnalyticScheduler.from_head(head(), pipeline(), etta=1.0)
    with pytest.raises(dv.InputError, match="needs a trained head"):
        dv.AnalyticScheduler(**BETAS, variance_type="head")
    with pytest.raises(dv.InputError, match="the scheduler has no head"):
        dv.AnalyticScheduler(**BETAS).watch(pipeline())
