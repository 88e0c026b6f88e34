"""Every public callable and what it is given by mistake: each is refused in one sentence, or taken for what it means.

The table is held against `dv.__all__`: a new public name has to say how it is to be called here, or why it is not.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch import nn

import diffusion_var as dv

SHAPE = (1, 4, 4)
SCHEDULE = dv.NoiseSchedule.linear(100, 1e-3, 0.1)
BETAS = {"num_train_timesteps": 100, "beta_start": 1e-3, "beta_end": 0.1}
NETWORK = nn.Conv2d(1, 1, 3, padding=1)
X = torch.from_numpy(np.random.default_rng(0).standard_normal((3, *SHAPE), dtype=np.float32))
IMAGES = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (32, *SHAPE), dtype=np.uint8))


def half(x: torch.Tensor, timestep: torch.Tensor, *_: Any) -> torch.Tensor:
    return 0.5 * x


SOME = torch.from_numpy(np.random.default_rng(2).integers(0, 256, (100, *SHAPE), dtype=np.uint8))
DENOISER = dv.Denoiser(half, SCHEDULE, shape=SHAPE)
DENOISER_OF_ALL = dv.Denoiser(half, SCHEDULE, shape=SHAPE, conditional=False)
MEASUREMENT = dv.Measurement(X, lambda x: 0.5 * x)
MIXTURE = dv.oracles.MixtureDenoiser(SCHEDULE, np.zeros((2, *SHAPE)), 0.1)
TABLE = dv.estimate(DENOISER, IMAGES, 1e3, indices=[1, 50, 100], progress=False)
UNET = UNet2DModel(4, 1, 1, block_out_channels=(8,), layers_per_block=1, norm_num_groups=4,
                   down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",))  # fmt: skip
DDPM = DDPMScheduler(**BETAS)
PIPE = DDPMPipeline(UNET, DDPM)
SAMPLER = dv.Sampler(DENOISER, dv.FixedLarge(), 4)
ANALYTIC = dv.AnalyticScheduler.from_table(TABLE, DDPM)
ANALYTIC.set_timesteps(4)
FLOW = FlowMatchEulerDiscreteScheduler(100)
FLOW_DENOISER = dv.Denoiser(half, dv.NoiseSchedule.flow(100), "flow", SHAPE, clip=None, data_range=(-1, 1))
FLOW_TABLE = dv.estimate(FLOW_DENOISER, IMAGES, 1e3, indices=[1, 50, 100], progress=False)
ANALYTIC_FLOW = dv.AnalyticFlowScheduler.from_table(FLOW_TABLE, FLOW)
ANALYTIC_FLOW.set_timesteps(4)
FLOW_TIME = ANALYTIC_FLOW.timesteps[1]


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(i) for i in range(count)]


# ---- what is given by mistake ---------------------------------------------------------------------------------------

NO_DENOISER = (None, "digits", half, UNET, PIPE, {}, IMAGES, dv.Denoiser, 5)
NO_SCHEDULE = (None, "linear", 5, dv.NoiseSchedule, DDIMScheduler, UNET, PIPE, {})
NO_COVARIANCE = (None, dv.FixedSmall, dv.FixedLarge, TABLE, "analytic", 5)
NO_TABLE = (None, "table.safetensors", dv.VarianceTable, SCHEDULE, 5)
NO_SEED = (torch.Generator(), np.random.default_rng(0), 1.5, True, None, "0", [1])
NO_COUNT = (0, -1, 1.5, "8", None, True)
NO_STEPS = (0, 10**9, "25", 1e9, 25.0, True, None, -1, [], [0], [101], [1, 1], [3, 2], torch.tensor(5.5), {"a": 1}, int)
NO_ETA = ("1", float("nan"), 2, -1, torch.ones(2), [1])
NO_CONDITIONS = (5, "cat", torch.zeros(5), [1, 2], object())
NO_PATH = (5, object(), True)
NO_NUMBER = ("1", None, float("nan"))

Door = tuple[Callable[..., Any], dict[str, Any]]


def call(function: Callable[..., Any], /, *given: Any, **options: Any) -> Callable[..., Any]:
    """With sound arguments, each of which may be given in its place by keyword."""
    return lambda **wrong: function(*given, **{**options, **wrong})


run: dict[str, Any] = {"denoiser": NO_DENOISER, "covariance": NO_COVARIANCE, "steps": NO_STEPS, "seed": NO_SEED}
run |= {"eta": NO_ETA, "tau": ("1", -1, float("nan")), "draws": NO_COUNT, "step_samples": NO_COUNT[:4]}
run |= {"batch_size": NO_COUNT, "conditions": NO_CONDITIONS, "checkpoint": NO_PATH, "clipped_eps": ("x", 5)}
run |= {"decoder_variance": ("beta", 0, -1, float("nan"), [0.1, -0.1], [[1], [1, 2]], True)}
bound: dict[str, Any] = {"denoiser": DENOISER, "covariance": dv.FixedLarge(), "steps": 4, "decoder_variance": 0.01}

DOORS: dict[str, Door] = {
    "Analytic": (
        call(dv.Analytic, table=TABLE),
        {"table": NO_TABLE, "estimator": ("x", None, 5), "structure": ("x", None, 5)},
    ),
    "AnalyticScheduler.from_table": (
        call(dv.AnalyticScheduler.from_table, table=TABLE, config=DDPM),
        {
            "table": NO_TABLE,
            "config": (None, 5, "folder", TABLE, UNET, DDIMScheduler, {}),
            "structure": ("x",),
            "eta": NO_ETA,
            "final_noise_cap": (0, "1"),
            "capped_steps": (0, "1", 2),
            "data_range": (5, (1, 0)),
            "timestep_spacing": ("x", 5),
            "steps_offset": ("1", 1.5),
        },
    ),
    "AnalyticScheduler.from_head": (
        call(dv.AnalyticScheduler.from_head, pipe=PIPE),
        {"head": (None, "head.safetensors", TABLE, dv.Head)},
    ),
    "AnalyticScheduler.set_timesteps": (
        ANALYTIC.set_timesteps,
        {
            "num_inference_steps": (0, -1, 101, 1.5, "4", True),
            "timesteps": (5, "abc", [100], [-1], [1, 2], [1.5], [], torch.tensor(5)),
        },
    ),
    "AnalyticScheduler.step": (
        call(ANALYTIC.step, model_output=0.1 * X, timestep=74, sample=X),
        {
            "timestep": (torch.tensor([74, 49, 24]), "74", None, 74.5, -1, 100, True, torch.tensor([]), [74]),
            "generator": (generators(2), generators(4), [], 5, "seed", [1, 2, 3], np.random.default_rng(0)),
            "sample": (None, X.numpy(), X[0], 5, X.long(), X[:2]),
            "model_output": (None, X.numpy(), X[0], 5, X.repeat(1, 2, 1, 1), X.long(), X[:2]),
            "variance_noise": (5, X[0], X.numpy(), X[:2]),
            "eta": NO_ETA,
            "tau": ("1", -1),
            "prev_sample": (5, X[0], X.numpy(), X[:2], X.long()),
            "log_prob_reduction": ("x", 5, None),
        },
    ),
    "AnalyticFlowScheduler": (
        call(dv.AnalyticFlowScheduler, num_train_timesteps=100),
        {
            "num_train_timesteps": (0, -1, "x"),
            "variance_type": ("x", 5, "analytic", "head", "fixed_large"),
            "eta": NO_ETA,
            "tau": ("1", -1),
            "layout": ("x", 5, "tokens_0"),
            "variance": ({}, {"ratio": 5}),
        },
    ),
    "AnalyticFlowScheduler.from_table": (
        call(dv.AnalyticFlowScheduler.from_table, table=FLOW_TABLE, pipe=FLOW),
        {
            "table": (*NO_TABLE, TABLE),
            "pipe": (None, 5, "folder", FLOW_TABLE, UNET, {}, DDPM, PIPE),
            "structure": ("x",),
            "estimator": ("x",),
            "eta": NO_ETA,
            "tau": ("1", -1),
            "layout": ("x", 5),
        },
    ),
    "AnalyticFlowScheduler.from_head": (
        call(dv.AnalyticFlowScheduler.from_head, pipe=PIPE),
        {"head": (None, "head.safetensors", FLOW_TABLE, dv.Head)},
    ),
    "AnalyticFlowScheduler.set_timesteps": (
        ANALYTIC_FLOW.set_timesteps,
        {
            "num_inference_steps": (0, -1, 1.5, "4", True),
            "sigmas": (5, "abc", ["a"], []),
            "timesteps": (5, "abc", ["a"]),
        },
    ),
    "AnalyticFlowScheduler.step": (
        call(ANALYTIC_FLOW.step, model_output=0.1 * X, timestep=FLOW_TIME, sample=X, prev_sample=X),
        {
            "timestep": (5, True, "74", None, 12.5, -1.0, torch.tensor([]), torch.tensor(5), ANALYTIC_FLOW.timesteps),
            "sample": (None, X.numpy(), X[0], 5, X.long(), X[:2]),
            "model_output": (None, X.numpy(), X[0], 5, X.repeat(1, 2, 1, 1), X.long(), X[:2]),
            "variance_noise": (5, X[0], X.numpy(), X[:2]),
            "prev_sample": (5, X[0], X.numpy(), X[:2], X.long()),
            "log_prob_reduction": ("x", 5, None),
            "eta": NO_ETA,
            "tau": ("1", -1),
            "s_churn": (0.1,),
            "s_noise": (1.1,),
            "per_token_timesteps": (X,),
        },
    ),
    "analytic_scheduler": (
        call(dv.analytic_scheduler, table=FLOW_TABLE, pipe=FLOW),
        {"table": NO_TABLE, "pipe": (None, 5, "folder", FLOW_TABLE, UNET, {}, DDPM, PIPE), "eta": NO_ETA},
    ),
    "AnalyticScheduler.add_noise": (
        call(ANALYTIC.add_noise, original_samples=X, noise=X, timesteps=torch.tensor([1, 2, 3])),
        {
            "timesteps": (torch.tensor([1, 2]), torch.tensor([100]), -1, "a", None, 1.5, torch.tensor([1.5]), True),
            "original_samples": (None, X.numpy()),
            "noise": (None, X[:2]),
        },
    ),
    "Adapted": (
        call(dv.Adapted, model=UNET, call=half),
        {"model": (None, half, "digits", UNET.state_dict(), UNet2DModel), "call": (None, 5, "x")},
    ),
    "Bound": (
        call(dv.Bound, **bound),
        {k: v for k, v in run.items() if k in ("denoiser", "covariance", "steps", "eta")},
    ),
    "Averaged": (call(dv.Averaged, inner=dv.EpsSquare()), {"inner": NO_COVARIANCE, "over": ("x", None, 5)}),
    "ExactCovariance": (
        call(dv.ExactCovariance, mixture=MIXTURE),
        {
            "mixture": (None, dv.FixedSmall(), DENOISER, "photographs", 5, dv.oracles.MixtureDenoiser),
            "structure": ("x", None, 5),
            "draws": NO_COUNT,
            "seed": NO_SEED,
        },
    ),
    "product_cost": (
        call(dv.product_cost, denoiser=DENOISER_OF_ALL, rounds=1),
        {
            "denoiser": NO_DENOISER,
            "derivative": ("backward", None, 5),
            "batch_size": NO_COUNT,
            "rounds": NO_COUNT,
        },
    ),
    "ProductCost.forward": (dv.ProductCost.forward, {"product": (-1, *NO_NUMBER, True)}),
    "Jacobian": (
        dv.Jacobian,
        {
            "table": NO_TABLE[1:],
            "structure": ("pixel", "fourier", None, 5),
            "bands": NO_COUNT,
            "probes": NO_COUNT,
            "derivative": ("backward", None, 5),
            "seed": NO_SEED,
        },
    ),
    "Lanczos": (
        dv.Lanczos,
        {
            "table": NO_TABLE[1:],
            "steps": NO_COUNT,
            "clamp": (None, "yes", 5),
            "derivative": ("backward", None, 5),
            "probes": NO_COUNT,
            "seed": NO_SEED,
        },
    ),
    "PiGDM": (dv.PiGDM, {"data_variance": (0, -1, *NO_NUMBER, True)}),
    "Measurement": (
        call(dv.Measurement, y=X, A=half),
        {
            "y": (None, 5, X.numpy(), X.long(), X[0, 0, 0], X[:0], X / 0, "y"),
            "A": (None, 5, "blur", X),
            "adjoint": (5, "blur", X),
            "noise": (-1, *NO_NUMBER, True, torch.ones(5), -torch.ones(SHAPE), dv.FixedSmall()),
            "through": (5, "vae", X),
        },
    ),
    "Measurement.from_deepinv": (
        call(dv.Measurement.from_deepinv, y=X),
        {"physics": (None, 5, "Blur", half, NETWORK)},
    ),
    "ConditionedDenoiser": (
        call(dv.ConditionedDenoiser, DENOISER, covariance=dv.PiGDM(), measurement=MEASUREMENT),
        {
            "covariance": (*NO_COVARIANCE, dv.NetworkJacobian),
            "measurement": (None, X, half, dv.Measurement, dv.Measurement(X[:, :, 0], half), dv.Measurement(X, abs)),
            "guidance": ("III", 1, None),
            "solver": ("lu", None, 5, dv.restoration.ConjugateGradients),
            "below": (0, -1, *NO_NUMBER[::2], True),
            "checkpointing": (True, "yes", 5),
        },
    ),
    "NetworkJacobian": (dv.NetworkJacobian, {"iterations": NO_COUNT}),
    "restore": (
        call(dv.restore, denoiser=dv.ConditionedDenoiser(DENOISER, dv.PiGDM(), MEASUREMENT), steps=4),
        {
            "denoiser": (None, 5, half, DENOISER, dv.ConditionedDenoiser),
            "steps": run["steps"],
            "covariance": NO_COVARIANCE[1:],
            "eta": (-1, 2, *NO_NUMBER[::2], True),
            "draws": NO_COUNT,
            "seed": NO_SEED,
            "batch_size": NO_COUNT,
            "conditions": NO_CONDITIONS,
            "checkpoint": (5,),
        },
    ),
    "EpsSquare": (dv.EpsSquare, {"most": (0, -1, "1", float("nan"), True)}),
    "EulerMaruyama": (
        call(dv.EulerMaruyama, denoiser=DENOISER, steps=4),
        {
            **{name: run[name] for name in ("denoiser", "steps", "clipped_eps")},
            "covariance": NO_COVARIANCE[1:],
            "final_noise_cap": (0, -1, *NO_NUMBER[::2], True),
            "capped_steps": (*NO_COUNT, 2),
        },
    ),
    "Bands": (
        call(dv.Bands, shape=(3, 8, 8), count=4),
        {"shape": (5, None, "a", (3, 0), ()), "count": (*NO_COUNT, 100)},
    ),
    "MultistepSampler": (
        call(dv.MultistepSampler, denoiser=DENOISER, covariance=dv.PiGDM(), steps=4),
        {
            **{name: run[name] for name in ("denoiser", "steps", "clipped_eps")},
            "covariance": (*NO_COVARIANCE, dv.FixedSmall()),
            "eta": (-1, 2, *NO_NUMBER[::2], True),
            "tau": (-1, *NO_NUMBER[::2], True),
            "final_noise_cap": (0, -1, *NO_NUMBER[::2], True),
            "capped_steps": (*NO_COUNT, 2),
            "share": (-1, 2, *NO_NUMBER, True, "all"),
        },
    ),
    "SolverSampler": (
        call(dv.SolverSampler, denoiser=DENOISER, steps=4),
        {
            **{name: run[name] for name in ("denoiser", "steps")},
            "solver": ("ddim", None, 5),
            "order": (0, 4, "2", 1.5, True),
        },
    ),
    "SolverSampler.sample": (
        call(dv.SolverSampler(DENOISER, "heun", 4).sample, count=3),
        {"count": NO_COUNT, "seed": NO_SEED, "batch_size": NO_COUNT, "conditions": NO_CONDITIONS},
    ),
    "bits_per_dim": (
        call(dv.bits_per_dim, images=IMAGES[:4], **bound),
        {**run, "levels": (None, 1, "256", 1.5), "data_range": (5, (1, 0), "a")},
    ),
    "density_bound": (call(dv.density_bound, data=IMAGES[:4], **bound), run),
    "ode_likelihood": (
        call(dv.ode_likelihood, denoiser=DENOISER, data=0.5 * X.clamp(-1, 1).repeat(2, 1, 1, 1)[:4], steps=4),
        {
            **{name: run[name] for name in ("denoiser", "seed", "draws", "batch_size", "checkpoint", "conditions")},
            "steps": (0, -1, "25", 25.0, True, None, [], [0], [5], [101], [1, 1], {"a": 1}, int),
            "method": ("rk5", None, 5),
            "trace": ("x", None, 5),
            "levels": (1, "256", 1.5, True),
        },
    ),
    "decoder_costs": (
        call(dv.decoder_costs, denoiser=DENOISER, images=IMAGES[:4], indices=[1, 50, 100]),
        {
            "denoiser": NO_DENOISER,
            "table": (5, "t.safetensors", dv.VarianceTable),
            "indices": ([], [0, 50], [50, 50], "1", 5, [1.5]),
            "seed": NO_SEED,
            "levels": (1, 0, "256", True),
            "data_range": (5, (1, 0)),
            "draws": NO_COUNT,
            "batch_size": NO_COUNT,
            "conditions": NO_CONDITIONS,
            "checkpoint": NO_PATH,
        },
    ),
    "step_costs": (
        call(dv.step_costs, DENOISER, dv.FixedLarge(), IMAGES[:4], indices=[1, 50, 100]),
        {
            **{name: run[name] for name in ("seed", "draws", "batch_size", "eta", "checkpoint", "conditions")},
            "indices": (5, "abc", [0], [1], [5, 3], {"a"}, dict),
        },
    ),
    "Conditions": (
        call(dv.Conditions, values=[1, 2]),
        {"values": (None, 5, "a", [], [[1], [1, 2]], [float("nan")]), "of_image": (5, "a", [0, 5], [0.5], [True])},
    ),
    "Denoiser": (
        call(dv.Denoiser, network=half, schedule=SCHEDULE, shape=SHAPE),
        {
            "network": (None, 5, "digits", {}, UNET.state_dict(), PIPE, UNet2DModel, DENOISER),
            "schedule": NO_SCHEDULE,
            "prediction": ("v", "eps", None, 5, ["epsilon"]),
            "shape": (5, None, "abc", (0, 4, 4), (1, 4.5, 4), (1, 2, 3, 4, 5)),
            "clip": (5, "clip", (1, -1), (0,), float("nan")),
            "data_range": (5, "auto", (1, -1)),
            "device": ("gpu", 5.5, object()),
            "autocast": ("fp16", torch.float32, torch.int8, 5),
            "sigma_data": (0, *NO_NUMBER),
            "guidance_scale": NO_NUMBER,
            "conditional": ("yes", 5),
            "classes": (0, "10", 1.5, -1),
        },
    ),
    "Denoiser.with_classifier": (
        call(DENOISER_OF_ALL.with_classifier, classifier=half),
        {"classifier": (None, 5, "digits", {}, nn.Linear), "scale": NO_NUMBER},
    ),
    "Denoiser.from_openai": (
        call(dv.Denoiser.from_openai, path="missing.pt", hyperparameters={"image_size": 8}),
        {
            "path": (None, 5, UNET, dv.Denoiser, ""),
            "hyperparameters": (None, 5, "flags", [], {}, {"image_size": "a"}, {"image_size": 8, "depth": 3}, {1: 2}),
        },
    ),
    "Denoiser.from_pretrained": (dv.Denoiser.from_pretrained, {"path": (None, 5, PIPE, UNET, dv.Denoiser, "")}),
    "Denoiser()": (
        call(DENOISER, x_t=X, n=5),
        {
            "x_t": (None, 5, X[0], X.numpy(), X.long(), "x"),
            "n": (0, 101, 1.5, "5", None, True, [5], torch.tensor([5.0] * 3), torch.tensor([5, 5]), dv.NoiseLevel),
        },
    ),
    "estimate": (
        call(dv.estimate, denoiser=DENOISER, images=IMAGES, tolerance=1e3, indices=[50], progress=False),
        {
            "denoiser": NO_DENOISER,
            "tolerance": (0, -1, *NO_NUMBER, True),
            "indices": (5, "abc", [0], [101], [1.5], [], {"a"}, object()),
            "structures": ("dct", ["x"], 5, None, [5]),
            "max_evaluations": ("many", 1, 1.5, 0, True),
            **{name: run[name] for name in ("seed", "batch_size", "checkpoint", "conditions")},
        },
    ),
    "check": (
        call(dv.check, table=TABLE, denoiser=DENOISER, steps=4, count=3, show=False),
        {
            **{name: run[name] for name in ("denoiser", "steps", "seed", "batch_size", "conditions")},
            "table": NO_TABLE,
            "count": NO_COUNT,
            "structure": ("x", None, 5),
        },
    ),
    "advise": (
        call(dv.advise, denoiser=DENOISER, images=SOME, budget=20_000, steps=[3], progress=False),
        {
            "denoiser": NO_DENOISER,
            "images": (None, 5, "missing", SOME[:99], SOME[0], []),
            "budget": (0, 100, 1.5, "many", None, True),
            "steps": (0, 5, "5", [], [1], [0], [101], [2.5], ["a"], None, {3: 4}, int),
            "features": (5, "x", None, dv.Denoiser),
            "table": (5, "t.safetensors", dv.VarianceTable),
            "trained_on": (5, "missing", SOME, SOME[:1]),
            **{name: run[name] for name in ("seed", "batch_size", "conditions", "checkpoint")},
        },
    ),
    "diagnose": (
        call(dv.diagnose, denoiser=DENOISER, images=IMAGES),
        {
            "denoiser": NO_DENOISER,
            "images": (None, 5, "missing", IMAGES[:15], IMAGES[0], []),
            **{name: run[name] for name in ("seed", "batch_size", "conditions")},
        },
    ),
    "encode_latents": (call(dv.encode_latents, images=IMAGES), {"denoiser": (*NO_DENOISER, DENOISER)}),
    "Head": (dv.Head.load, {"path": (None, TABLE, "missing", *NO_PATH)}),
    "NoiseLevel": (
        call(dv.NoiseLevel, alpha=1.0, sigma=1.0, timestep=5),
        {"alpha": (-1, *NO_NUMBER, True), "sigma": (-1, *NO_NUMBER), "timestep": NO_NUMBER},
    ),
    "NoiseSchedule": (
        call(dv.NoiseSchedule, alpha=SCHEDULE.alpha, sigma=SCHEDULE.sigma, timestep=SCHEDULE.timestep),
        {"alpha": (None, "abc", 5, [1]), "sigma": (None, "abc"), "timestep": ("abc", None), "prior_std": ("1", 0)},
    ),
    "NoiseSchedule.linear": (
        dv.NoiseSchedule.linear,
        {"N": NO_COUNT, "beta_start": (-1, 2, *NO_NUMBER), "beta_end": NO_NUMBER},
    ),
    "NoiseSchedule.scaled_linear": (
        dv.NoiseSchedule.scaled_linear,
        {"N": NO_COUNT, "beta_start": (-1, *NO_NUMBER), "beta_end": NO_NUMBER},
    ),
    "NoiseSchedule.cosine": (
        dv.NoiseSchedule.cosine,
        {"N": NO_COUNT, "offset": NO_NUMBER, "max_beta": (2, *NO_NUMBER)},
    ),
    "NoiseSchedule.vp_sde": (
        dv.NoiseSchedule.vp_sde,
        {"N": NO_COUNT, "beta_min": NO_NUMBER, "beta_max": NO_NUMBER},
    ),
    "NoiseSchedule.flow": (
        dv.NoiseSchedule.flow,
        {"N": NO_COUNT, "shift": (0, *NO_NUMBER), "timestep_scale": NO_NUMBER},
    ),
    "NoiseSchedule.edm": (
        dv.NoiseSchedule.edm,
        {"N": NO_COUNT, "sigma_min": (0, *NO_NUMBER), "sigma_max": NO_NUMBER, "rho": NO_NUMBER, "told": ("x", None)},
    ),
    "NoiseSchedule.from_levels": (
        call(dv.NoiseSchedule.from_levels, alpha=[0.9, 0.5], sigma=[0.1, 0.5], timestep=[0, 1]),
        {
            "alpha": (None, "abc", 5, [1], [0.9, 0.9, 0.9], [[1, 2], [3, 4]]),
            "sigma": (None, "abc", [0.1, 0.0], [float("nan")] * 2),
            "timestep": ("abc", None, [1]),
            "prior_std": ("1", 0),
        },
    ),
    "NoiseSchedule.from_betas": (dv.NoiseSchedule.from_betas, {"betas": ("abc", None, 5, [], [2.0], [float("nan")])}),
    "NoiseSchedule.from_diffusers": (dv.NoiseSchedule.from_diffusers, {"scheduler": NO_SCHEDULE}),
    "NoiseSchedule.level_at": (SCHEDULE.level_at, {"log_snr": (*NO_NUMBER, 1e9)}),
    "NoiseSchedule.level": (SCHEDULE.level, {"n": ("a", None, -1, 1.5, True)}),
    "ReverseKernel": (
        call(dv.ReverseKernel, schedule=SCHEDULE, t=50, s=40),
        {
            "schedule": NO_SCHEDULE,
            "t": (0, 101, "5", None, 1.5, True),
            "s": (-1, 50, 60, "5", None, True),
            "eta": NO_ETA,
            "clipped_eps": ("x",),
        },
    ),
    "ReverseKernel.between": (
        call(dv.ReverseKernel.between, level_t=SCHEDULE.level(50), level_s=SCHEDULE.level(40)),
        {"level_t": (None, 50, "a", SCHEDULE.level(40), dv.NoiseLevel), "level_s": (50, "a", SCHEDULE.level(60))},
    ),
    "Sampler": (
        call(dv.Sampler, denoiser=DENOISER, covariance=dv.FixedLarge(), steps=4),
        {
            **{name: run[name] for name in ("denoiser", "covariance", "steps", "eta", "tau", "clipped_eps")},
            "final_noise_cap": (0, -1, *NO_NUMBER[::2], True),
            "capped_steps": (*NO_COUNT, 2),
        },
    ),
    "Sampler.sample": (
        call(SAMPLER.sample, count=3),
        {"count": NO_COUNT, "seed": NO_SEED, "batch_size": NO_COUNT, "conditions": NO_CONDITIONS},
    ),
    "Sampler.stream": (
        lambda **wrong: list(SAMPLER.stream(**{"images": range(3), **wrong})),
        {
            "images": (5, None, "ab", {1, 2}, iter([1]), [1.5], torch.tensor(5), torch.tensor([1.5]), {"a": 1}),
            "seed": NO_SEED,
            "batch_size": NO_COUNT,
            "conditions": NO_CONDITIONS,
            "visit": (5, "x"),
        },
    ),
    "Sampler.from_noise": (
        call(dv.Sampler(DENOISER, dv.FixedSmall(), 4, 0.0).from_noise, x=X),
        {
            "x": (None, 5, X[0], IMAGES, torch.full_like(X, float("nan")), "missing"),
            "seed": NO_SEED,
            "batch_size": NO_COUNT,
            "conditions": NO_CONDITIONS,
        },
    ),
    "Sampler.invert": (
        call(dv.Sampler(DENOISER, dv.FixedSmall(), 4, 0.0).invert, images=IMAGES[:4]),
        {
            "images": (None, 5, IMAGES[0], 9 * X, "missing"),
            "iterations": NO_COUNT,
            "batch_size": NO_COUNT,
            "conditions": NO_CONDITIONS,
        },
    ),
    "VarianceTable.from_moments": (
        call(dv.VarianceTable.from_moments, schedule=SCHEDULE, eps_square=np.ones(100)),
        {
            "schedule": NO_SCHEDULE,
            "eps_square": (None, "abc", 5, np.ones(5), -np.ones(100), [float("nan")] * 100),
            "data_range": (5, (1, 0)),
        },
    ),
    "VarianceTable": (dv.VarianceTable.load, {"path": (None, TABLE, "missing", *NO_PATH)}),
    "VarianceTable.save": (TABLE.save, {"path": (None, TABLE, *NO_PATH)}),
    "VarianceTable.check": (TABLE.check, {"denoiser": NO_DENOISER}),
    "VarianceTable.subset": (TABLE.subset, {"structures": ("pixel", 5, None, ["x"])}),
    "VarianceTable.posterior_variance": (
        call(TABLE.posterior_variance, n=50),
        {
            "n": ("5", None, -1, 101, 1.5, True, [5], dv.NoiseLevel, torch.tensor([1, 2])),
            "estimator": ("x", None),
            "structure": ("x", None),
        },
    ),
    "oracles": (
        call(dv.oracles.GaussianDenoiser, schedule=SCHEDULE, mean=0.0, variance=np.ones(SHAPE)),
        {
            "schedule": NO_SCHEDULE,
            "mean": ("a", None, [1, 2, 3, 5, 6]),
            "variance": ("a", None, -np.ones(SHAPE)),
            "shape": (5, "a"),
            "basis": ("x", None),
            "device": ("gpu",),
        },
    ),
    "oracles.MixtureDenoiser": (
        call(dv.oracles.MixtureDenoiser, schedule=SCHEDULE, means=np.ones((2, *SHAPE)), variances=1.0),
        {"schedule": NO_SCHEDULE, "means": ("a", None, 5), "variances": ("a", None, -1), "weights": ("a", [0, 1])},
    ),
    "oracles.EmpiricalDenoiser": (
        call(dv.oracles.EmpiricalDenoiser, schedule=SCHEDULE, images=np.ones((2, *SHAPE))),
        {"schedule": NO_SCHEDULE, "images": ("a", None, 5)},
    ),
    "oracles.sample": (
        call(dv.oracles.GaussianDenoiser(SCHEDULE, 0.0, np.ones(SHAPE)).sample, count=2),
        {"count": NO_COUNT, "seed": NO_SEED},
    ),
    "oracles.MixtureDenoiser.sample": (
        call(dv.oracles.MixtureDenoiser(SCHEDULE, np.ones((2, *SHAPE)), 1.0).sample, count=2),
        {"count": NO_COUNT, "seed": NO_SEED},
    ),
    "steps": (call(dv.steps.resolve, schedule=SCHEDULE, steps=4), {"schedule": (None, "a", int), "steps": NO_STEPS}),
    "steps.explicit": (call(dv.steps.explicit, schedule=SCHEDULE), {"indices": (5, None, "a", [0])}),
    "steps.sigmas": (call(dv.steps.sigmas, SCHEDULE), {"values": (None, 5, "a", ["a"], [1, 2], [], [-1])}),
    "steps.shifted": (
        call(dv.steps.shifted, steps=4),
        {"steps": (*NO_COUNT, 10**9), "shift": (0, *NO_NUMBER), "timestep_scale": NO_NUMBER},
    ),
    "steps.spaced": (call(dv.steps.spaced, SCHEDULE, 4), {"spacing": ("x", None, 5)}),
    "steps.respaced": (
        call(dv.steps.respaced, schedule=SCHEDULE, steps=4),
        {
            "schedule": (None, "a", int),
            "steps": (0, -1, 101, 1.5, "x", "", "ddim37", "10,", [], [101], [1.5], {"a": 1}, True),
        },
    ),
    "steps.power": (call(dv.steps.power, SCHEDULE, 4), {"power": (0, -1, *NO_NUMBER)}),
    "steps.karras": (call(dv.steps.karras, SCHEDULE, 4), {"rho": (0, -1, *NO_NUMBER)}),
    "steps.optimal": (
        call(dv.steps.optimal, costs=TABLE, steps=3),
        {
            "costs": (None, SCHEDULE, "a"),
            "steps": NO_COUNT,
            "objective": ("x", None),
            "structure": ("x",),
            "max_relative_error": (0, *NO_NUMBER),
        },
    ),
    "steps.kl_costs": (
        call(dv.steps.kl_costs, schedule=SCHEDULE, nodes=[1, 2], variances=[1.0, 1.0]),
        {"schedule": (None, "a"), "nodes": (5, [0], None), "variances": ("a", None, [1.0])},
    ),
    **{
        f"steps.{name}": (
            call(getattr(dv.steps, name), schedule=SCHEDULE, steps=4),
            {"schedule": (None, "a", dv.NoiseSchedule, 1.5), "steps": (*NO_COUNT, 10**9)},
        )
        for name in ("linspace", "leading", "trailing", "quadratic", "power", "log_snr", "log_snr_levels", "karras")
    },
}

#: Why a public name has no door of its own here.
ELSEWHERE = {
    **dict.fromkeys(("data", "metrics", "plots", "restoration", "training"), "rooms with tests of their own"),
    "testing": "contracts",
    **dict.fromkeys(
        ("DiffusionVarWarning", "InputError", "NumericalError", "NetworkError", "RankError"), "what is raised"
    ),
    **dict.fromkeys(("FixedLarge", "FixedSmall", "LearnedRange"), "takes nothing"),
    **dict.fromkeys(
        (
            "Advice",
            "DecoderCosts",
            "Diagnosis",
            "LikelihoodBound",
            "OdeLikelihood",
            "Restoration",
            "StepCosts",
            "ModelIdentity",
            "Posterior",
        ),
        "made here, not by users",
    ),
    **dict.fromkeys(("ReverseCovariance", "StructuredCovariance", "Structure"), "to be written by users; contracts"),
    **dict.fromkeys(("HeadSpec", "LearnedVariance", "Scaled"), "tests of covariance"),
    "alone": "takes nothing",
    "__version__": "a text",
}


def test_every_public_name_has_its_door_here() -> None:
    assert {name.partition(".")[0].partition("(")[0] for name in DOORS} | {*ELSEWHERE} == {*dv.__all__}


CASES = [
    pytest.param(door, argument, value, id=f"{name}-{argument}-{k}")
    for name, (door, arguments) in DOORS.items()
    for argument, values in arguments.items()
    for k, value in enumerate(values)
]


@pytest.mark.parametrize(("door", "argument", "value"), CASES)
def test_a_mistake_is_one_sentence(door: Callable[..., Any], argument: str, value: Any) -> None:
    with pytest.raises(dv.InputError) as caught:
        door(**{argument: value})
    said = str(caught.value)
    assert "\n" not in said
    assert len(said) < 1000
    assert said.endswith(".")


def test_swapped_arguments_are_one_sentence() -> None:
    for function, given in (
        (partial(dv.estimate, progress=False), (IMAGES, DENOISER)),
        (dv.AnalyticScheduler.from_table, (DDPM, TABLE)),
        (dv.check, (DENOISER, TABLE)),
        (dv.Sampler, (dv.FixedLarge(), DENOISER, 4)),
    ):
        with pytest.raises(dv.InputError):
            function(*given)


# ---- what is taken for what it means --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given", [DDPM, DDPM.config, dict(DDPM.config), ANALYTIC], ids=["scheduler", "config", "dict", "analytic"]
)
def test_a_diffusers_scheduler_stands_for_its_schedule(given: Any) -> None:
    made = [
        dv.Denoiser(half, given, shape=SHAPE).schedule,
        dv.ReverseKernel(given, 50, 40).schedule,
        dv.VarianceTable.from_moments(given, eps_square=np.ones(100)).schedule,
        dv.oracles.GaussianDenoiser(given, 0.0, np.ones(SHAPE)).schedule,
        dv.oracles.EmpiricalDenoiser(given, np.ones((2, *SHAPE))).schedule,
    ]
    assert made == [SCHEDULE] * len(made)
    for spacing in (dv.steps.linspace, dv.steps.leading, dv.steps.quadratic, dv.steps.log_snr, dv.steps.karras):
        assert spacing(given, 4) == spacing(SCHEDULE, 4)
    assert dv.steps.sigmas(given, [1.0, 0.5]) == dv.steps.sigmas(SCHEDULE, [1.0, 0.5])


@pytest.mark.parametrize(
    "steps",
    [{1, 50, 100}, (1, 50, 100), np.array([1, 50, 100]), torch.tensor([1, 50, 100])],
    ids=lambda s: type(s).__name__,
)
def test_steps_and_indices_in_any_container(steps: Any) -> None:
    assert dv.Sampler(DENOISER, dv.FixedLarge(), steps).steps == [1, 50, 100]
    assert dv.estimate(DENOISER, IMAGES, 1e3, indices=steps, progress=False).indices.tolist() == [1, 50, 100]


@pytest.mark.parametrize("steps", [4, np.int64(4), torch.tensor(4)], ids=lambda s: type(s).__name__)
def test_numbers_of_steps_of_any_type(steps: Any) -> None:
    assert dv.Sampler(DENOISER, dv.FixedLarge(), steps).steps == [1, 34, 67, 100]


@pytest.mark.parametrize("seed", [2**70, -1, np.int64(3), 3.0])
def test_seeds_of_any_size_and_sign(seed: Any) -> None:
    first, again = (SAMPLER.sample(1, seed=seed) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(SAMPLER.sample(1, seed=int(seed)), first)


@pytest.mark.parametrize(
    "timestep", [torch.tensor([74] * 3), torch.tensor(74), torch.tensor([74.0]), 74.0, np.int64(74)]
)
def test_one_timestep_in_any_form(timestep: Any) -> None:
    given = {"model_output": 0.1 * X, "sample": X}
    expected = ANALYTIC.step(**given, timestep=74, generator=generators(3)).prev_sample
    assert torch.equal(ANALYTIC.step(**given, timestep=timestep, generator=generators(3)).prev_sample, expected)
    assert ANALYTIC.previous_timestep(timestep) == ANALYTIC.previous_timestep(74)


def test_images_of_a_stream_in_any_order() -> None:
    every = SAMPLER.sample(6)
    for images in (np.array([1, 5]), torch.tensor([1, 5]), [5, 5, 3], (2, 1)):
        assert torch.equal(torch.cat(list(SAMPLER.stream(images))), every[[int(i) for i in images]])
