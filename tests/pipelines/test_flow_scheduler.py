"""AnalyticFlowScheduler as a FlowMatchEulerDiscreteScheduler: its lists of σ, loops, files, and what is refused.

In the spirit of diffusers' own tests of its flow scheduler, which these behaviours are from.
"""

import copy
import inspect
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    CogVideoXDPMScheduler,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from small_flows import SCHEDULE, SHAPE, STRUCTURES, normal, run, seeded, table, velocity
from small_pipelines import small_unet

import diffusion_var as dv

LISTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "shift": ({"shift": 3.0}, {}),
    "exponential mu": ({"use_dynamic_shifting": True}, {"mu": 0.9}),
    "linear mu": ({"use_dynamic_shifting": True, "time_shift_type": "linear"}, {"mu": 2.2}),
    "terminal": ({"use_dynamic_shifting": True, "shift_terminal": 0.1}, {"mu": 0.9}),
    "karras": ({"shift": 2.0, "use_karras_sigmas": True}, {}),
    "exponential": ({"use_exponential_sigmas": True}, {}),
    "beta": ({"use_beta_sigmas": True}, {}),
    "sigmas": ({"shift": 3.0}, {"sigmas": [1.0, 0.8, 0.5, 0.31, 0.2]}),
    "inverted": ({"invert_sigmas": True}, {}),
}


def of(**options: Any) -> dv.AnalyticFlowScheduler:
    """A scheduler with the small table."""
    scheduler: dv.AnalyticFlowScheduler = dv.AnalyticFlowScheduler.from_table(
        table(), FlowMatchEulerDiscreteScheduler(), **options
    )
    return scheduler


def settings(scheduler: Any, like: type = dv.AnalyticFlowScheduler) -> dict[str, Any]:
    own = [name for name in inspect.signature(like.__init__).parameters if name != "self"]
    return {name: scheduler.config[name] for name in own}


# ---- Euler's steps ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LISTS)
def test_the_ode_is_flow_match_eulers(name: str) -> None:
    config, chosen = LISTS[name]
    theirs = FlowMatchEulerDiscreteScheduler(**config)
    ours = dv.AnalyticFlowScheduler.from_config(theirs.config, eta=0.0)
    assert isinstance(ours, FlowMatchEulerDiscreteScheduler)
    count = {} if "sigmas" in chosen else {"num_inference_steps": 7}
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(**count, device="cpu", **chosen)
    assert torch.equal(ours.sigmas, theirs.sigmas)
    assert torch.equal(ours.timesteps, theirs.timesteps)
    x = normal(4, *SHAPE)
    expected = run(theirs, x, inverted="invert_sigmas" in config)
    found = run(ours, x, inverted="invert_sigmas" in config)
    assert float((found - expected).abs().max()) < 2e-6 * float(expected.abs().max())
    assert ours.step_index == theirs.step_index


def test_stochastic_sampling_is_re_noising() -> None:
    theirs = FlowMatchEulerDiscreteScheduler(shift=3.0, stochastic_sampling=True)
    ours = dv.AnalyticFlowScheduler.from_config(theirs.config)
    explicit = dv.AnalyticFlowScheduler.from_config(theirs.config, stochastic_sampling=False, tau=math.inf)
    x = normal(4, *SHAPE)
    for scheduler in (theirs, ours, explicit):
        scheduler.set_timesteps(6)
    expected = run(theirs, x, generator=seeded(1))
    for scheduler in (ours, explicit):
        assert float((run(scheduler, x, generator=seeded(1)) - expected).abs().max()) < 1e-5
    assert float((run_of(ours, eta=1.0) - run_of(ours)).abs().max()) > 0.01


def run_of(scheduler: Any, K: int = 5, seed: int = 1, **options: Any) -> torch.Tensor:
    scheduler.set_timesteps(K)
    return run(scheduler, normal(3, *SHAPE), generator=seeded(seed), **options)


def test_a_run_that_begins_inside_the_list() -> None:
    """Image to image: noise is added at begin_index, and steps follow from there."""
    theirs = FlowMatchEulerDiscreteScheduler(shift=3.0)
    ours = dv.AnalyticFlowScheduler.from_config(theirs.config, eta=0.0)
    images, noise, found = normal(3, *SHAPE), normal(3, *SHAPE, seed=1), []
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(8)
        scheduler.set_begin_index(5)
        x = scheduler.scale_noise(images, scheduler.timesteps[5:6], noise)
        for t in scheduler.timesteps[5:]:
            x = scheduler.step(velocity(x, float(t) / 1000), t, x).prev_sample
        found.append(x)
    assert float((found[0] - found[1]).abs().max()) < 1e-5
    ours.set_timesteps(8)
    times = ours.timesteps[[2, 6, 0]]
    assert torch.equal(ours.add_noise(images, noise, times), theirs.__class__.scale_noise(ours, images, times, noise))
    assert ours.scale_model_input(images, times[0]) is images


def test_per_token_timesteps_are_eulers() -> None:
    theirs = FlowMatchEulerDiscreteScheduler()
    ours = dv.AnalyticFlowScheduler.from_config(theirs.config, eta=0.0)
    x, output, found = normal(2, 6, 5), normal(2, 6, 5, seed=1), []
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(5)
        t = scheduler.timesteps[1]
        tokens = torch.full((2, 6), float(t))
        tokens[:, :3] = float(scheduler.timesteps[3])
        found.append(scheduler.step(output, t, x, per_token_timesteps=tokens, return_dict=False)[0])
    assert torch.equal(*found)
    for scheduler in (of(eta=0.0), dv.AnalyticFlowScheduler()):
        scheduler.set_timesteps(5)
        with pytest.raises(dv.InputError, match="per_token_timesteps are known for the ODE's step alone"):
            scheduler.step(output, scheduler.timesteps[1], x, per_token_timesteps=tokens)


# ---- what a pipeline asks ---------------------------------------------------------------------------------------


def test_the_signature_is_the_parents() -> None:
    mine = list(inspect.signature(dv.AnalyticFlowScheduler.step).parameters)
    theirs = list(inspect.signature(FlowMatchEulerDiscreteScheduler.step).parameters)
    assert mine[: len(theirs)] == theirs
    assert not {"eta", "tau"} & {*mine}
    lists = [
        inspect.signature(kind.set_timesteps) for kind in (dv.AnalyticFlowScheduler, FlowMatchEulerDiscreteScheduler)
    ]
    assert list(lists[0].parameters) == list(lists[1].parameters)
    assert dv.AnalyticFlowScheduler.order == 1
    assert len(of()) == 1000


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_precision(structure: str, dtype: torch.dtype) -> None:
    """Steps are computed in float32 whatever the storage, and in float64 for it."""
    scheduler = of(structure=structure)
    x, F, noise = normal(2, *SHAPE, dtype=dtype), normal(2, *SHAPE, seed=1, dtype=dtype), normal(2, *SHAPE, seed=2)
    found = {}
    for kind in (dtype, torch.float64 if dtype == torch.float64 else torch.float32):
        scheduler.set_timesteps(6)
        found[kind] = scheduler.step(F.to(kind), scheduler.timesteps[0], x.to(kind), variance_noise=noise)
    low, wide = (*found.values(), found[dtype])[:2]
    assert low.prev_sample.dtype == low.pred_original_sample.dtype == dtype
    assert torch.equal(low.prev_sample, wide.prev_sample.to(dtype))
    assert low.prev_sample_mean.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_the_networks_dtype_is_the_results() -> None:
    scheduler, x = of(), normal(2, *SHAPE)
    scheduler.set_timesteps(6)
    assert scheduler.step(x.bfloat16(), scheduler.timesteps[0], x, return_dict=False)[0].dtype == torch.bfloat16


def test_generators() -> None:
    """A pipeline's own, the scheduler's where it hands none, and one for each image."""
    scheduler = of(structure="dct")
    expected = run_of(scheduler)
    scheduler.generator = seeded(1)
    scheduler.set_timesteps(5)
    assert torch.equal(run(scheduler, normal(3, *SHAPE)), expected)
    assert torch.equal(run_of(scheduler), expected)  # a given one comes first
    x = normal(3, *SHAPE)
    scheduler.set_timesteps(5)
    F, t = velocity(x, 1.0), scheduler.timesteps[0]
    every = scheduler.step(F, t, x, generator=[seeded(i) for i in (4, 5, 6)]).prev_sample
    for i, seed in enumerate((4, 5, 6)):
        scheduler.set_timesteps(5)
        alone = scheduler.step(F[i : i + 1], t, x[i : i + 1], generator=seeded(seed)).prev_sample
        torch.testing.assert_close(alone, every[i : i + 1], rtol=0, atol=2e-6)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_files_and_configs(structure: str, tmp_path: Path) -> None:
    made = dv.AnalyticFlowScheduler.from_table(
        table(), FlowMatchEulerDiscreteScheduler(shift=3.0), structure=structure, tau=1.4
    )
    expected = run_of(made)
    made.save_pretrained(tmp_path / "one")
    loaded = dv.AnalyticFlowScheduler.from_pretrained(tmp_path / "one")
    assert settings(loaded) == settings(made)
    assert torch.equal(run_of(loaded), expected)
    loaded.save_pretrained(tmp_path / "two")
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == ["scheduler_config.json"] + ["variance_table.safetensors"] * (structure in ("pixel", "dct"))
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    # To diffusers' scheduler and back.
    theirs = FlowMatchEulerDiscreteScheduler.from_config(made.config)
    shared = settings(theirs, FlowMatchEulerDiscreteScheduler)
    assert shared == {name: made.config[name] for name in shared}
    theirs.save_pretrained(tmp_path / "theirs")
    back = dv.AnalyticFlowScheduler.from_config(
        FlowMatchEulerDiscreteScheduler.from_pretrained(tmp_path / "theirs").config
    )
    if made.table is not None:
        back.attach(made.table)
    assert settings(back) == settings(made)
    assert torch.equal(run_of(back), expected)


def test_a_config_of_other_numbers_is_refused(tmp_path: Path) -> None:
    made = of()
    made.save_pretrained(tmp_path)
    path = tmp_path / "scheduler_config.json"
    config = json.loads(path.read_text())
    config["variance"]["ratio"][3] *= 2.0
    path.write_text(json.dumps(config))
    with pytest.raises(dv.InputError, match="hold other numbers than were written"):
        dv.AnalyticFlowScheduler.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"file": "variance_table.safetensors"}, "either numbers or the name of a file are kept"),
        ({"ratio": None}, "either numbers or the name of a file are kept"),
        ({"log_snr": None, "digest": None}, "the config's variance is no curve; make the scheduler with AnalyticFlow"),
        ({"log_snr": [0.0, 1.0], "digest": None}, r"log_snr has shape \(2,\)"),
        ({"structure": "channel"}, "of another estimator or structure than it says"),
        ({"posterior_variance": [1.0], "ratio": None, "digest": None}, "the config's variance is no curve"),
    ],
)
def test_entries_that_are_none(change: dict[str, Any], message: str) -> None:
    config = {**of().config}
    with pytest.raises(dv.InputError, match=message):
        dv.AnalyticFlowScheduler.from_config({**config, "variance": {**config["variance"], **change}})


@pytest.mark.parametrize("shift", [1.0, 3.0, 12.0])
def test_another_shift_is_no_mismatch(shift: float) -> None:
    scheduler = dv.AnalyticFlowScheduler.from_config(of(structure="channel").config, shift=shift)
    assert torch.isfinite(run_of(scheduler, 50)).all()


def test_copies() -> None:
    scheduler = of(structure="pixel")
    scheduler.generator = seeded(3)
    scheduler.set_timesteps(6)
    twin = copy.deepcopy(scheduler)
    scheduler.set_timesteps(3)
    assert len(twin.timesteps) == 6
    assert twin.generator is scheduler.generator
    assert torch.equal(run_of(twin), run_of(scheduler))


def test_what_was_computed_before_does_not_matter() -> None:
    scheduler, x = of(structure="dct"), normal(2, *SHAPE)
    for K, options in ((6, {}), (9, {}), (6, {"eta": 0.4}), (6, {"tau": 2.0}), (6, {})):
        fresh, found = of(structure="dct"), []
        for one in (scheduler, fresh):
            one.set_timesteps(K)
            found.append(one.step(velocity(x, 1.0), one.timesteps[0], x, generator=seeded(), **options).prev_sample)
        assert torch.equal(*found)
    scheduler.sigmas[1] = 0.5  # as pipelines may
    scheduler.set_begin_index(0)
    kernel = dv.ReverseKernel.between(dv.NoiseLevel.flow(1.0), dv.NoiseLevel.flow(0.5))
    scheduler._step_index = None
    got = scheduler.step(velocity(x, 1.0), scheduler.timesteps[0], x, variance_noise=torch.zeros_like(x))
    torch.testing.assert_close(got.prev_sample, kernel.gain * got.pred_original_sample + 0.0 * x, rtol=1e-5, atol=1e-6)


def test_inference_mode_and_gradients_after_it() -> None:
    scheduler, x = of(structure="dct"), normal(2, *SHAPE)
    with torch.inference_mode():
        scheduler.set_timesteps(4)
        out = scheduler.step(velocity(x, 1.0), scheduler.timesteps[0], x, generator=seeded())
    F = velocity(x, 1.0).requires_grad_()
    again = scheduler.step(F, scheduler.timesteps[0], x, prev_sample=out.prev_sample.clone())
    again.log_prob.sum().backward()
    assert float(F.grad.abs().max()) > 0


# ---- which scheduler for which pipeline -------------------------------------------------------------------------


def flow_pipe() -> DDPMPipeline:
    unet = small_unet(sample_size=8, in_channels=1, out_channels=1)
    pipe = DDPMPipeline(unet, DDPMScheduler())
    pipe.scheduler = FlowMatchEulerDiscreteScheduler()
    return pipe


def test_each_refuses_the_others_pipeline() -> None:
    unet = small_unet(sample_size=8, in_channels=1, out_channels=1)
    ddpm = DDPMPipeline(unet, DDPMScheduler())
    with pytest.raises(dv.InputError, match=r"flow matching, but the config is a DDPMScheduler's; use dv.analytic_s"):
        dv.AnalyticFlowScheduler.from_table(table(), ddpm)
    with pytest.raises(dv.InputError, match=r"given by betas.* use AnalyticFlowScheduler for flows \(or dv.analytic_s"):
        dv.AnalyticScheduler.from_table(table(), FlowMatchEulerDiscreteScheduler())
    other = copy.copy(table())
    other.prediction = "epsilon"
    with pytest.raises(dv.InputError, match="prediction type: the table has epsilon, the scheduler flow"):
        dv.AnalyticFlowScheduler.from_table(other, FlowMatchEulerDiscreteScheduler())
    solver = UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0)
    with pytest.raises(dv.InputError, match="use AnalyticFlowScheduler for flows"):
        dv.AnalyticScheduler.from_table(table(), solver)
    with pytest.raises(dv.InputError, match="schedules of flow matching"):
        dv.AnalyticFlowScheduler.from_config(DDIMScheduler().config)


def test_the_one_that_fits() -> None:
    made = dv.analytic_scheduler(table(), FlowMatchEulerDiscreteScheduler(shift=2.0), structure="dct", tau=2.0)
    assert isinstance(made, dv.AnalyticFlowScheduler)
    assert (made.config.shift, made.config.tau, made.config.variance["structure"]) == (2.0, 2.0, "dct")
    linear = dv.NoiseSchedule.linear(1000)
    oracle = dv.oracles.GaussianDenoiser(linear, 0.0, [[[0.5]]])
    betas = dv.estimate(oracle, oracle.sample(50), 1e9, indices=[1, 1000], progress=False)
    betas.prediction = "epsilon"
    scheduler = DDPMScheduler(clip_sample=False)
    assert type(dv.analytic_scheduler(betas, scheduler, eta=0.5)) is dv.AnalyticScheduler
    for other in (EDMEulerScheduler(), CogVideoXDPMScheduler()):
        with pytest.raises(dv.InputError, match=r"no analytic scheduler fits|given by betas"):
            dv.analytic_scheduler(table(), other)
    empty = DDPMPipeline(small_unet(sample_size=8, in_channels=1, out_channels=1), scheduler)
    empty.unet = None
    with pytest.raises(dv.InputError, match="DDPMPipeline has no network"):
        dv.analytic_scheduler(betas, empty)
    empty.scheduler = FlowMatchEulerDiscreteScheduler()
    with pytest.raises(dv.InputError, match=r"DDPMPipeline has no network .* give pipe.scheduler.config instead"):
        dv.AnalyticFlowScheduler.from_table(table(), empty)


def test_a_solver_of_flows_hands_over_its_shift() -> None:
    solver = UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=5.0)
    made = dv.AnalyticFlowScheduler.from_table(table(), solver)
    assert made.config.shift == 5.0
    assert "use_flow_sigmas" not in made.config


@pytest.mark.parametrize("kind", [UniPCMultistepScheduler, DPMSolverMultistepScheduler])
def test_a_solvers_config_hands_over_its_shift(kind: Any, tmp_path: Path) -> None:
    solver = kind(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0, num_train_timesteps=500)
    solver.save_pretrained(tmp_path)
    theirs = FlowMatchEulerDiscreteScheduler(shift=3.0, num_train_timesteps=500)
    theirs.set_timesteps(4)
    for made in (
        dv.AnalyticFlowScheduler.from_config(solver.config),
        dv.AnalyticFlowScheduler.from_config(solver.config, shift=3.0, eta=0.5),
        dv.AnalyticFlowScheduler.from_pretrained(tmp_path),
    ):
        made.set_timesteps(4)
        assert torch.equal(made.sigmas, theirs.sigmas)
        assert {"use_flow_sigmas", "flow_shift"}.isdisjoint(made.config)
    # What the solver keeps of another scheduler's config comes back.
    kept = kind.from_config(of(structure="channel", tau=1.4).config, use_flow_sigmas=True, flow_shift=2.0)
    back = dv.AnalyticFlowScheduler.from_config(kept.config)
    assert settings(back) == {**settings(of(structure="channel", tau=1.4)), "shift": 2.0}


def test_a_shift_of_a_flows_own_is_kept() -> None:
    """A flow's scheduler that was made of a solver's config keeps the solver's shift, and does not take it."""
    solver = UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0)
    euler = FlowMatchEulerDiscreteScheduler.from_config(solver.config, shift=7.0)
    assert euler.config.flow_shift == 3.0
    assert dv.AnalyticFlowScheduler.from_config(euler.config).config.shift == 7.0
    assert dv.AnalyticFlowScheduler.from_table(table(), euler).config.shift == 7.0


def test_another_network_is_refused() -> None:
    images = normal(40, 1, 8, 8)
    unet = small_unet(sample_size=8, in_channels=1, out_channels=1)
    denoiser = dv.Denoiser(unet, SCHEDULE, "flow", (1, 8, 8), clip=None)
    own = dv.estimate(denoiser, images, 1e9, indices=[1, 1000], progress=False)
    made = dv.analytic_scheduler(own, flow_pipe(), structure="isotropic")
    assert made.config.layout is None
    changed = flow_pipe()
    next(changed.unet.parameters()).data += 0.1
    with pytest.raises(dv.InputError, match="network fingerprint: the table has"):
        dv.AnalyticFlowScheduler.from_table(own, changed)
    changed.audio_vae = small_unet()
    with pytest.raises(dv.InputError, match="denoises its sound with a copy of its scheduler"):
        dv.AnalyticFlowScheduler.from_table(own, changed)


# ---- what is refused --------------------------------------------------------------------------------------------


def test_levels_that_were_not_measured() -> None:
    found = dv.estimate(oracle_of(), oracle_of().sample(50), 1e9, indices=[300, 900], progress=False)
    found.prediction = "flow"
    for structure in ("isotropic", "pixel"):
        scheduler = dv.AnalyticFlowScheduler.from_table(found, FlowMatchEulerDiscreteScheduler(), structure=structure)
        scheduler.set_timesteps(sigmas=[0.9, 0.6, 0.3, 0.2, 0.1])
        x = normal(2, *SHAPE)
        for t in scheduler.timesteps[:3]:  # 0.9 and 0.3 are the ends but for float32's rounding
            x = scheduler.step(velocity(x, float(t) / 1000), t, x).prev_sample
        with pytest.raises(dv.InputError, match=r"log SNR 2.77259 is outside the measured range -4.39445 to 1.6946"):
            scheduler.step(x, scheduler.timesteps[3], x)
        assert scheduler.step(x, scheduler.timesteps[3], x, noise=False).log_prob is None  # the ODE's needs none


def test_a_step_before_the_table_is_attached() -> None:
    """Its level is 0.8 as float32 has it, outside the measured range, of which 0.8 is the end."""
    found = dv.estimate(oracle_of(), oracle_of().sample(50), 1e9, indices=[300, 800], progress=False)
    found.prediction = "flow"
    attached = dv.AnalyticFlowScheduler.from_table(found, FlowMatchEulerDiscreteScheduler(), structure="pixel")
    later = dv.AnalyticFlowScheduler.from_config(attached.config)
    x, stored = normal(2, *SHAPE), normal(2, *SHAPE, seed=1)
    for scheduler in (attached, later):
        scheduler.set_timesteps(sigmas=[0.8, 0.6, 0.3])
    t = later.timesteps[0]
    later.step(x, t, x, noise=False, prev_sample=stored)
    later.attach(attached.table)
    log_probs = [scheduler.step(x, t, x, eta=0.0, prev_sample=stored).log_prob for scheduler in (attached, later)]
    assert torch.equal(*log_probs)


def oracle_of() -> dv.oracles.GaussianDenoiser:
    from small_flows import oracle

    return oracle()


def test_lists_that_are_no_flows() -> None:
    scheduler = of()
    with pytest.raises(dv.InputError, match=r"the list of sigmas goes from 0 to 80, but a flow's lie between 0 and 1"):
        scheduler.set_timesteps(sigmas=[80.0, 5.0, 0.5])
    scheduler = of()
    scheduler.set_timesteps(3)
    x = normal(2, *SHAPE)
    for t in scheduler.timesteps:
        scheduler.step(x, t, x)
    with pytest.raises(dv.InputError, match="the run has taken all of its 3 steps; call set_timesteps"):
        scheduler.step(x, scheduler.timesteps[-1], x)
    scheduler.set_timesteps(3)
    with pytest.raises(dv.InputError, match=r"s_churn=0.5, s_noise=1.1 has no meaning for a flow's steps"):
        scheduler.step(x, scheduler.timesteps[0], x, s_churn=0.5, s_noise=1.1)
    with pytest.raises(dv.InputError, match=r"timestep=1 must be one of scheduler.timesteps, not the index of a loop"):
        scheduler.step(x, 1, x)
    with pytest.raises(dv.InputError, match=r"timestep=123.0 is none of the 3 of this run"):
        scheduler.step(x, 123.0, x)
    with pytest.raises(dv.InputError, match="give one of them"):
        scheduler.step(x, scheduler.timesteps[0], x, eta=0.5, tau=0.5)
    with pytest.raises(dv.InputError, match="variance_type='fixed_large' is not known; use one of fixed_small, a"):
        dv.AnalyticFlowScheduler(variance_type="fixed_large")
    with pytest.raises(dv.InputError, match=r"make the scheduler with AnalyticFlowScheduler.from_table"):
        dv.AnalyticFlowScheduler(variance_type="analytic")


@pytest.mark.parametrize("structure", ["pixel", "dct"])
def test_samples_of_another_size(structure: str) -> None:
    scheduler, x = of(structure=structure), normal(2, 3, 4, 4)
    scheduler.set_timesteps(3)
    with pytest.raises(dv.InputError, match=r"the sample has shape \(3, 4, 4\), but the table was measured on"):
        scheduler.step(x, scheduler.timesteps[0], x)
