"""Advice on models where the answer is known, beside what a larger comparison then finds.

    python scripts/check_advice.py gaussian mixture shrunk digits
    python scripts/check_advice.py --model FOLDER --images IMAGES --name NAME [--features FILE]

For each model: `dv.advise`; then, for every number of steps, samples of all choices with five seeds (the seeds of the
advice are others), their Fréchet distances, and a paired t-test over seeds. The advice is wrong where another choice is
told apart as better than the one advised (5 %). results/advise.md has the outcome.

gaussian: 8×8 data with a 1/f² spectrum, exact mean. mixture: six Gaussians fitted to 8×8 RGB patches of the two
photographs, exact mean. shrunk: the gaussian, its mean 10 % too near to the data's. digits: the bundled network.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

import diffusion_var as dv

SEEDS = range(100, 105)


@dataclass
class Case:
    """A model, the images that advice is asked with, others that samples are compared with, and in which features."""

    denoiser: dv.Denoiser
    images: Any
    reference: Any
    features: str = "pixels"


def gaussian() -> Case:
    frequency = np.hypot(*np.meshgrid(np.arange(1, 9), np.arange(1, 9)))[None]
    exact = dv.oracles.GaussianDenoiser(dv.NoiseSchedule.linear(1000), 0.0, 4.0 / frequency**2, basis="dct")
    return Case(exact, exact.sample(600, seed=1), exact.sample(4000, seed=2))


def mixture() -> Case:
    patches = dv.data.photographs_part("fit", 8, 6000).images
    exact = dv.oracles.fit_mixture(patches, 6)
    return Case(exact, exact.sample(600, seed=1), exact.sample(2000, seed=2))


def shrunk() -> Case:
    case = gaussian()
    exact, centre = case.denoiser, case.images.mean(0)

    def network(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return centre + 0.9 * (exact(x, timestep.cpu().long() + 1).mean - centre)

    return Case(dv.Denoiser(network, exact.schedule, "sample", exact.shape, clip=None), case.images, case.reference)


def digits() -> Case:
    splits = dv.data.digits_splits()
    # The comparison has the images of the advice among others: there are no more.
    images = torch.cat([splits.table.images, splits.score.images])
    return Case(dv.Denoiser.from_pretrained("digits", device="cpu"), images, images, "digits")


def given(options: argparse.Namespace) -> Case:
    images = dv.data.open_images(options.images)
    images = torch.stack([images[i] for i in range(len(images))])
    model = dv.Denoiser.from_pretrained(options.model, device="cpu")
    return Case(model, images[: options.count], images[options.count :], options.features)


KNOWN: dict[str, Callable[[], Case]] = {"gaussian": gaussian, "mixture": mixture, "shrunk": shrunk, "digits": digits}


def distance(case: Case, samples: torch.Tensor) -> float:
    if case.features != "pixels":
        return float(dv.metrics.fid(samples, case.reference, features=case.features).value)
    return float(dv.metrics.frechet_distance(moments(samples), moments(case.reference)))


def moments(images: torch.Tensor) -> tuple[Any, Any]:
    values = images.float() / 127.5 - 1 if images.dtype == torch.uint8 else images
    flat = values.flatten(1).double().numpy()
    return flat.mean(0), np.cov(flat, rowvar=False)


def ways(table: dv.VarianceTable, capped: bool) -> dict[str, tuple[dv.ReverseCovariance, float, float | None]]:
    dct, isotropic = dv.Analytic(table, structure="dct"), dv.Analytic(table)
    out: dict[str, tuple[dv.ReverseCovariance, float, float | None]] = {
        "DDPM β̃": (dv.FixedSmall(), 1.0, None),
        "DDIM": (dv.FixedSmall(), 0.0, None),
        "Analytic-DDIM dct": (dct, 0.0, None),
        "Analytic-DDPM dct": (dct, 1.0, None),
    }
    if capped:
        out |= {"Analytic-DDIM dct, cap 1": (dct, 0.0, 1.0), "Analytic-DDPM dct, cap 1": (dct, 1.0, 1.0)}
        out["Analytic-DDIM isotropic, cap 1"] = (isotropic, 0.0, 1.0)
    else:
        out["Analytic-DDIM isotropic"] = (isotropic, 0.0, None)
    return out


def compare(case: Case, advice: dv.Advice, steps: int, count: int) -> bool:
    """Print a larger comparison at one number of steps; whether nothing is better than what is advised."""
    assert advice.samples is not None
    assert advice.table is not None
    tested = next(t for t in advice.samples.tested if t.steps == steps)
    found = {}
    for name, (covariance, eta, cap) in ways(advice.table, case.denoiser.data_range is not None).items():
        sampler = dv.Sampler(case.denoiser, covariance, steps, eta, cap)
        found[name] = np.array([distance(case, sampler.sample(count, seed, 100)) for seed in SEEDS])
    advised = tested.advised.name.partition(", quadratic")[0].partition(", log_snr")[0]
    right = True
    print(f"\n{steps} steps: advised {tested.advised.name} ({tested.verdict})")
    for name, values in sorted(found.items(), key=lambda item: item[1].mean()):
        p = 1.0 if name == advised else float(stats.ttest_rel(values, found[advised]).pvalue)
        better = p < 0.05 and values.mean() < found[advised].mean()
        right &= not better
        said = " <- advised" if name == advised else f" (p {p:.3f})"
        print(
            f"  {values.mean():9.3f} ± {values.std(ddof=1):.3f}  {name}{said}{' BETTER' if better else ''}", flush=True
        )
    if advised != tested.advised.name:
        samples = tested.advised.sampler(case.denoiser, advice.table, steps)
        values = np.array([distance(case, samples.sample(count, seed, 100)) for seed in SEEDS])
        p = float(stats.ttest_rel(values, found[advised]).pvalue)
        right &= not (p < 0.05 and values.mean() > found[advised].mean())
        print(f"  {values.mean():9.3f} ± {values.std(ddof=1):.3f}  {tested.advised.name} (p {p:.3f})", flush=True)
    return right


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=", ".join(KNOWN))
    parser.add_argument("--model", type=Path)
    parser.add_argument("--images", help="the first of them for the advice, the others to compare with")
    parser.add_argument("--name", default="model")
    parser.add_argument("--features", default="pixels")
    parser.add_argument("--count", type=int, default=600, help="images that advice is asked with")
    parser.add_argument("--steps", default="5,10")
    parser.add_argument("--budget", type=int, default=60_000)
    parser.add_argument("--samples", type=int, default=200, help="of each choice and seed; 0: no comparison")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    steps = [int(k) for k in options.steps.split(",")]
    if unknown := {*options.names} - {*KNOWN}:
        parser.error(f"{', '.join(unknown)}: not known; use {', '.join(KNOWN)}")
    cases = {name: KNOWN[name] for name in options.names}
    if options.model is not None:
        cases[options.name] = lambda: given(options)
    for name, make in cases.items():
        case = make()
        how = {"steps": steps, "features": case.features, "progress": False}
        advice = dv.advise(case.denoiser, case.images, options.budget, **how)
        print(f"\n===== {name}\n{advice}", flush=True)
        if options.json is not None:
            options.json.write_text(json.dumps(advice.to_dict(), indent=1))
        if advice.samples is None or not options.samples:
            continue
        right = [compare(case, advice, k, options.samples) for k in steps]
        print(f"{name}: {'right' if all(right) else 'WRONG'}", flush=True)


if __name__ == "__main__":
    main()
