"""From options to objects: every spacing, covariance and cap that a command can name is the one that Python has."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import diffusion_var as dv
from diffusion_var.app.commands.sample import run as sample
from diffusion_var.app.compare.loop import _OPTIONAL, identity_of
from diffusion_var.app.compare.options import CompareOptions, Method
from diffusion_var.app.compare.run import compare
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
    for option in ("capped_steps", "rho", "power", "average", "sampler", "order"):
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


# ---- rivals ---------------------------------------------------------------------------------------------------------


def rivals(*methods: dict[str, Any]) -> list[Method]:
    return load_options(CompareOptions, {"methods": list(methods)}).methods


def test_a_rival_is_a_solver_with_its_usual_steps() -> None:
    plus, uni, heun, euler, own = rivals(
        {"sampler": "dpm_solver_pp", "order": 2},
        {"sampler": "unipc"},
        {"sampler": "heun", "spacing": "log_snr"},
        {"sampler": "euler_ancestral", "rho": 5.0},
        {"sampler": "dpm_solver_pp", "order": 3, "sigmas": [9.0, 1.0]},
    )
    assert (plus.label, plus.spacing) == ("DPM-Solver++(2M)", "log_snr")
    assert (uni.label, uni.spacing) == ("UniPC-2", "log_snr")
    assert (heun.label, heun.spacing) == ("Heun, log_snr", "log_snr")
    assert (euler.label, euler.spacing) == ("Euler ancestral ρ=5", "karras")
    assert own.label == "DPM-Solver++(3M), own levels"
    made = make_sampler(NETWORK, plus, make_steps(SCHEDULE, plus, 7), None)
    expected = dv.SolverSampler(NETWORK, "dpm_solver_pp", dv.steps.log_snr(SCHEDULE, 7), 2)
    assert torch.equal(made.sample(3), expected.sample(3))
    assert make_sampler(NETWORK, heun, make_steps(SCHEDULE, heun, 10), None).evaluations == 9
    assert make_sampler(NETWORK, own, make_steps(SCHEDULE, own, 2), None).evaluations == 2
    assert not any(method.is_noisy for method in (plus, uni, heun, euler))


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"sampler": "heun", "eta": 1.0}, "eta of the method heun has no meaning for a solver"),
        ({"sampler": "heun", "covariance": "beta"}, "covariance of the method heun has no meaning"),
        ({"sampler": "unipc", "structure": "dct", "tau": 1}, "structure and tau of the method unipc have no meaning"),
        ({"sampler": "unipc", "final_noise_cap": 1}, "final_noise_cap of the method unipc has no meaning"),
        ({"sampler": "unipc", "spacing": "optimal"}, "spacing=optimal is for likelihoods, and the solver unipc"),
        ({"covariance": "beta", "order": 2}, "order=2 is for a sampler"),
        ({"eta": 1}, "a method has neither a covariance nor a sampler"),
        ({"sampler": "heun", "order": 2}, "order=2 has no meaning for the solver heun"),
        ({"sampler": "unipc", "order": 9}, "order=9 must be a whole number from 1 to 3; the solver unipc has no other"),
        ({"sampler": "ddpm"}, "methods.0.sampler: input should be"),
        ({"sampler": "unipc", "oder": 3}, "methods.0.oder: unknown option"),
    ],
)
def test_what_makes_no_sense_of_a_rival_is_refused(method: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(dv.InputError) as error:
        compare(load_options(CompareOptions, {"methods": [method], "steps": [3], "out": tmp_path / "x"}), tmp_path)
    assert message in str(error.value) + " ".join(getattr(error.value, "problems", ()))
    assert list(tmp_path.iterdir()) == []


def test_cells_of_methods_that_are_no_rivals_are_called_as_they_were() -> None:
    """To the letter, for a file's name is the hash of these."""
    assert identity_of(Method("analytic", structure="dct", final_noise_cap=1.0, name="mine", steps=[5])) == {
        "covariance": "analytic",
        "eta": 1.0,
        "estimator": "residual",
        "structure": "dct",
        "final_noise_cap": 1.0,
        "clipped_eps": None,
        "spacing": "linspace",
        "steps": None,
        "name": None,
    }
    assert identity_of(Method(sampler="unipc"))["sampler"] == "unipc"


def test_second_order_by_shares() -> None:
    """A number or auto; it is part of a method's name and identity where it is given, and such steps have no bound."""
    images = torch.linspace(-1, 1, 32).view(8, 1, 2, 2)
    table = dv.estimate(NETWORK, images, 10.0, progress=False)
    for share in (0.5, "auto"):
        method = Method("analytic", eta=0.0, structure="dct", multistep=share)
        sampler = make_sampler(NETWORK, method, 4, table)
        assert isinstance(sampler, dv.MultistepSampler)
        assert (sampler.share, sampler.eta) == (share, 0.0)
        assert method.label == f"Analytic-DDIM dct, multistep {share}"
        assert identity_of(method)["multistep"] == share
        assert options(multistep=share).multistep == share
    assert "multistep" not in identity_of(Method("analytic"))
    assert not Method("analytic", eta=1.0, multistep=0.5).is_noisy
    with pytest.raises(dv.InputError, match=r"multistep=2\.0 must be a number from 0 to 1"):
        make_sampler(NETWORK, Method("analytic", multistep=2.0), 4, table)
