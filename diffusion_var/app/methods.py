"""From options to objects: the one place where names become covariances, step lists and samplers."""

from __future__ import annotations

from ..covariance.head import Head
from ..covariance.learned_range import LearnedRange
from ..covariance.reverse import Analytic, FixedLarge, FixedSmall, ReverseCovariance
from ..errors import InputError
from ..models.denoiser import Denoiser
from ..process import steps as step_lists
from ..process.schedule import NoiseSchedule
from ..sampling.sampler import Sampler
from ..variance.table import VarianceTable
from .options import Method, NllOptions, SampleOptions


def make_covariance(options: Method | SampleOptions | NllOptions, table: VarianceTable | None) -> ReverseCovariance:
    """The reverse covariance that the options name."""
    if options.head is not None and options.covariance != "head":
        raise InputError(
            f"head={options.head} has no meaning with the covariance {options.covariance}; leave it out, or choose the "
            "covariance head."
        )
    if options.covariance == "beta":
        return FixedLarge()
    if options.covariance == "beta_tilde":
        return FixedSmall()
    if options.covariance == "learned_range":
        return LearnedRange()
    if options.covariance == "head":
        if options.head is None:
            raise InputError(
                "the covariance head needs a trained head; give its file with --head (made by `diffusion-var "
                "train-head`)."
            )
        return Head.load(options.head)
    if table is None:
        raise InputError(
            "the analytic covariance needs a variance table; give one with --table (made by `diffusion-var estimate`)."
        )
    return Analytic(table, options.estimator, options.structure)


def make_steps(schedule: NoiseSchedule, steps: int | list[int], spacing: str = "linspace") -> list[int]:
    """The step list that the options name: K steps in a spacing, or explicit indices."""
    if isinstance(steps, list):
        if spacing != "linspace":
            raise InputError(
                f"--spacing {spacing} has no meaning for a list of indices ({steps[0]}, …); give a number of steps, or "
                "leave it out."
            )
        return step_lists.resolve(schedule, steps)
    spread = {
        "linspace": step_lists.linspace,
        "leading": step_lists.leading,
        "trailing": step_lists.trailing,
        "quadratic": step_lists.quadratic,
        "log_snr": step_lists.log_snr,
    }[spacing]
    return spread(schedule, steps)


def make_sampler(
    denoiser: Denoiser, options: Method | SampleOptions, steps: list[int], table: VarianceTable | None
) -> Sampler:
    """The sampler that the options name."""
    covariance = make_covariance(options, table)
    return Sampler(denoiser, covariance, steps, options.eta, options.final_noise_cap, options.clipped_eps)
