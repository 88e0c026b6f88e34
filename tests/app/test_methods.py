"""From options to objects: every spacing, covariance and cap that a command can name is the one that Python has."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import diffusion_var as dv
from diffusion_var.app.commands.sample import run as sample
from diffusion_var.app.compare.options import CompareOptions, Method
from diffusion_var.app.compare.run import _OPTIONAL
from diffusion_var.app.config import load_options
from diffusion_var.app.methods import make_covariance, make_sampler, make_steps
from diffusion_var.app.options import SampleOptions

SCHEDULE = dv.NoiseSchedule.linear(100, 1e-3, 0.1)
NETWORK = dv.Denoiser(lambda x, t: 0.5 * x, SCHEDULE, shape=(1, 2, 2))


def options(**changes: Any) -> SampleOptions:
    return load_options(SampleOptions, {"model": "m", "out": "o", **changes})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"spacing": "respaced", "steps": 7}, dv.steps.respaced(100, 7)),
        ({"spacing": "respaced", "steps": [5, 3, 2]}, dv.steps.respaced(100, "5,3,2")),
        ({"spacing": "ddim", "steps": 10}, dv.steps.respaced(100, "ddim10")),
        ({"spacing": "power", "steps": 7}, dv.steps.power(100, 7)),
        ({"spacing": "power", "power": 5, "steps": 7}, dv.steps.power(100, 7, 5.0)),
        ({"spacing": "karras", "steps": 7}, dv.steps.karras(SCHEDULE, 7)),
        ({"spacing": "karras", "rho": 3, "steps": 7}, dv.steps.karras(SCHEDULE, 7, 3.0)),
        ({"spacing": "log_snr", "steps": 7}, dv.steps.log_snr(SCHEDULE, 7)),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_spacings(given: dict[str, Any], expected: Any) -> None:
    chosen = options(**given)
    assert make_steps(SCHEDULE, chosen, chosen.steps) == expected
    if isinstance(chosen.steps, int):
        assert (
            make_steps(
                SCHEDULE,
                Method("beta", **{k: v for k, v in given.items() if k != "steps"}),
                7 if chosen.steps == 7 else 10,
            )
            == expected
        )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rho": 3.0}, "rho=3 has no meaning with the spacing linspace"),
        ({"spacing": "karras", "power": 3.0}, "power=3 has no meaning with the spacing karras"),
        ({"spacing": "power", "steps": [3, 4]}, "spacing=power has no meaning for a list of indices"),
        ({"spacing": "ddim", "steps": 37}, "no whole stride takes exactly 37 of 100 indices"),
        ({"spacing": "respaced", "steps": [60, 1]}, "wants 60 steps of part 1 of 2, which has 50"),
        ({"spacing": "karras", "rho": -1.0}, "rho=-1.0 must be a positive number"),
    ],
)
def test_spacings_that_are_refused(given: dict[str, Any], message: str) -> None:
    chosen = options(**given)
    with pytest.raises(dv.InputError, match=message):
        make_steps(SCHEDULE, chosen, chosen.steps)


def test_covariances_and_caps() -> None:
    averaged = make_covariance(options(covariance="eps_square", average="image"), None)
    assert averaged.identity() == dv.Averaged(dv.EpsSquare()).identity()
    with pytest.raises(dv.InputError, match="average=batch has no meaning for a covariance that is the same for all"):
        make_covariance(options(covariance="beta", average="batch"), None)
    capped = options(covariance="beta", final_noise_cap=2.0, capped_steps=3, steps=6)
    sampler = make_sampler(NETWORK, capped, make_steps(SCHEDULE, capped, 6), None)
    expected = dv.Sampler(NETWORK, dv.FixedLarge(), 6, final_noise_cap=2.0, capped_steps=3)
    assert torch.equal(sampler.sample(3), expected.sample(3))
    assert not torch.equal(sampler.sample(3), dv.Sampler(NETWORK, dv.FixedLarge(), 6, final_noise_cap=2.0).sample(3))


def test_labels_say_what_differs() -> None:
    methods = {
        "DDPM β, cap 2 of 3 steps": Method("beta", final_noise_cap=2.0, capped_steps=3),
        "DDPM β, power k=2": Method("beta", spacing="power"),
        "DDPM β, karras ρ=3": Method("beta", spacing="karras", rho=3.0),
        "DDPM β, karras": Method("beta", spacing="karras"),
        "DDIM 1 − ε̂², mean over the image": Method("eps_square", eta=0.0, average="image"),
    }
    assert {method.label: method for method in methods.values()} == methods


def test_what_was_drawn_before_these_options_is_still_found() -> None:
    """Their defaults are in no cell's name and in no folder's settings."""
    for option in ("capped_steps", "rho", "power", "average"):
        assert option in _OPTIONAL
    assert replace(CompareOptions().methods[0], capped_steps=1) == CompareOptions().methods[0]


def test_a_folder_of_samples_goes_on_and_tells_caps_apart(tmp_path: Path) -> None:
    first = SampleOptions(model="digits", out=tmp_path / "x", count=2, steps=4, covariance="beta", final_noise_cap=9.0)
    sample(first)
    held = (tmp_path / "x" / "sampling.json").read_text()
    assert not any(f'"{name}"' in held for name in ("capped_steps", "rho", "power", "average"))
    sample(replace(first, count=3))
    assert len(list((tmp_path / "x").glob("*.png"))) == 3
    with pytest.raises(dv.InputError, match="not empty"):
        sample(replace(first, capped_steps=3))
