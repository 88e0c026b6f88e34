"""From options to objects: the one place where names become covariances, step lists and samplers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from .. import checks
from ..covariance.analytic import Analytic
from ..covariance.averaged import Averaged
from ..covariance.eps_square import EpsSquare
from ..covariance.fixed import FixedLarge, FixedSmall
from ..covariance.head import Head
from ..covariance.learned_range import LearnedRange
from ..covariance.reverse import ReverseCovariance
from ..covariance.scaled import Scaled
from ..errors import InputError
from ..models.denoiser import Denoiser
from ..process import steps as step_lists
from ..process.schedule import NoiseSchedule
from ..process.steps import StepList
from ..sampling.multistep import MultistepSampler, check_share
from ..sampling.sampler import Sampler
from ..sampling.solvers import SolverSampler, steps_within
from ..variance.table import VarianceTable
from .compare.options import Method
from .options import WITH_PRODUCTS, NllOptions, SampleOptions

if TYPE_CHECKING:
    from ..likelihood.decoder_costs import DecoderCosts
    from ..likelihood.paths import Trajectory
    from ..models.product_cost import ProductCost

Way = Method | SampleOptions | NllOptions
_SPREAD: dict[str, Any] = {
    "linspace": step_lists.linspace,
    "leading": step_lists.leading,
    "trailing": step_lists.trailing,
    "respaced": step_lists.respaced,
    "quadratic": step_lists.quadratic,
    "log_snr": step_lists.log_snr,
}


def make_covariance(options: Way, table: VarianceTable | None) -> ReverseCovariance:
    """The reverse covariance that the options name."""
    _refuse_unused(options)
    found = _covariance(options, table)
    if options.average is None:
        return found
    checks.refuse(
        not found.depends_on_image,
        f"average={options.average} has no meaning for a covariance that is the same for all images; leave it out, or "
        "choose head, learned_range or eps_square.",
    )
    return Averaged(found, options.average)


def _covariance(options: Way, table: VarianceTable | None) -> ReverseCovariance:
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
    if options.covariance == "eps_square":
        return EpsSquare()
    if options.covariance == "head":
        missing = (
            "the covariance head needs a trained head; give its file as head= (made by `diffusion-var train-head`)."
        )
        return Head.load(checks.given(options.head, missing))
    if options.covariance in WITH_PRODUCTS:
        return _with_products(options, table)
    missing = "the analytic covariance needs a variance table; give one as table= (made by `diffusion-var estimate`)."
    return Analytic(checks.given(table, missing), options.estimator, options.structure)


def _with_products(options: Way, table: VarianceTable | None) -> ReverseCovariance:
    """The covariance that follows the image by products with the mean's derivative; what is not said is its default."""
    for name, value, own in (("estimator", options.estimator, "residual"), ("structure", options.structure, "dct")):
        checks.refuse(
            value not in (own, "isotropic"),  # isotropic is what an option has that was not given
            f"{name}={value} has no meaning with the covariance {options.covariance}, which takes the table's {own}; "
            "leave it out.",
        )
    names = {"bands": options.bands, "probes": options.probes, "derivative": options.derivative}
    if options.covariance == "lanczos":
        names = {"steps": options.krylov_steps, "derivative": options.derivative}
    if options.krylov_steps is not None:  # by the option's own name
        checks.whole("krylov_steps", options.krylov_steps, least=1)
    given: dict[str, Any] = {name: value for name, value in names.items() if value is not None}
    if options.covariance == "jacobian":
        from ..covariance.jacobian import Jacobian

        return Jacobian(table, **given)
    from ..covariance.lanczos import Lanczos

    wrong = options.average is not None or getattr(options, "factor", 1.0) != 1.0
    checks.refuse(
        wrong,
        "average and factor change variances, and the covariance lanczos has none of its own, but products; leave them "
        "out, or choose jacobian.",
    )
    return Lanczos(table, **given)


#: Options of covariances with products, and whose they are.
_OF_PRODUCTS: dict[str, tuple[str, ...]] = {
    "bands": ("jacobian",),
    "probes": ("jacobian",),
    "krylov_steps": ("lanczos",),
    "derivative": WITH_PRODUCTS,
}


def _refuse_unused(options: Way) -> None:
    for name, kinds in _OF_PRODUCTS.items():
        value = getattr(options, name)
        checks.refuse(
            value is not None and options.covariance not in kinds,
            f"{name}={value} has no meaning with the covariance {options.covariance}; leave it out, or choose "
            f"{' or '.join(kinds)}.",
        )


def make_steps(
    schedule: NoiseSchedule,
    options: Any,
    steps: int | list[int],
    table: VarianceTable | None = None,
    decoders: DecoderCosts | None = None,
    levels: int | None = 256,
    cost: ProductCost | None = None,
) -> StepList | Trajectory:
    """The step list that the options name: K steps in a spacing, explicit indices, or levels by their σ/α.

    Args:
        options: whose spacing, sigmas, structure and estimator are read, and for the spacing optimal what they say of
            the first index and the decoder.
        steps: K, or indices. Of a method that is a solver, or takes products, K are its evaluations: of its steps, as
            many as fit.
        table, decoders, levels: for the spacing optimal; what was measured of decoders, unless the options name one.
        cost: of the products of a method that takes some; None: K are steps.
    """
    spacing = options.spacing
    if isinstance(options, Method) and options.sampler is not None and isinstance(steps, int):
        steps = steps_within(options.sampler, steps)
    if cost is not None and isinstance(steps, int):
        covariance = make_covariance(options, table)
        steps = cost.steps_within(steps, covariance.products, covariance.products_with_mean)
    if spacing != "optimal" and getattr(options, "first_index", None) is not None:
        raise InputError(f"first_index={options.first_index} is for the spacing optimal, but it is {spacing}.")
    for name, only, default in (("rho", "karras", 7.0), ("power", "power", 2.0)):
        unused = spacing != only and getattr(options, name) != default
        checks.refuse(
            unused, f"{name}={getattr(options, name):g} has no meaning with the spacing {spacing}; leave it out."
        )
    if options.sigmas is not None:
        checks.refuse(spacing != "linspace", f"spacing={spacing} has no meaning for a list of sigmas; leave it out.")
        return step_lists.sigmas(schedule, options.sigmas)
    if isinstance(steps, list) and spacing == "respaced":
        return step_lists.respaced(schedule, steps)
    if isinstance(steps, list):
        checks.refuse(
            spacing != "linspace",
            f"spacing={spacing} has no meaning for a list of indices ({steps[0]}, …); give a number of steps, or "
            "leave it out.",
        )
        return step_lists.resolve(schedule, steps)
    if spacing == "optimal":
        from ..likelihood.trajectories import optimal

        missing = "the spacing optimal needs a variance table; give one as table=, or indices as steps=."
        named = options.decoder_variance
        check_first_index(options, schedule)
        return optimal(
            checks.given(table, missing),
            steps,
            structure=options.structure,
            estimator=options.estimator,
            first=options.first_index,
            decoder_variance=decoders if named is None else named,
            levels=levels,
        )
    if spacing == "karras":
        return step_lists.karras(schedule, steps, options.rho)
    if spacing == "power":
        return step_lists.power(schedule, steps, options.power)
    if spacing == "ddim":
        return step_lists.respaced(schedule, f"ddim{steps}")
    found: StepList = _SPREAD[spacing](schedule, steps)
    return found


def check_first_index(options: Any, schedule: NoiseSchedule) -> None:
    """Refuse, in the option's own name, a first index that the schedule does not have."""
    if options.first_index is not None:
        checks.whole("first_index", options.first_index, 1, schedule.num_steps)


def make_noise(options: Any) -> dict[str, float | None]:
    """η or τ of the options, as `Sampler` and `Bound` take them."""
    wrong = options.tau is not None and options.eta != 1
    checks.refuse(wrong, f"eta={options.eta:g} and tau={options.tau} both say how much noise a step adds; give one.")
    return {"eta": options.eta, "tau": None} if options.tau is None else {"eta": None, "tau": options.tau}


def make_sampler(
    denoiser: Denoiser, options: Method | SampleOptions, steps: StepList | Trajectory, table: VarianceTable | None
) -> Sampler:
    """The sampler that the options name."""
    if isinstance(options, Method) and options.sampler is not None:
        return SolverSampler(denoiser, options.sampler, steps, options.order)
    covariance = make_covariance(options, table)
    if isinstance(options, Method) and options.factor != 1:
        covariance = Scaled(covariance, options.factor)
    noise = make_noise(options)
    own: dict[str, Any] = {
        **noise,
        "final_noise_cap": options.final_noise_cap,
        "clipped_eps": options.clipped_eps,
        "capped_steps": options.capped_steps,
    }
    if options.multistep is None:
        return Sampler(denoiser, covariance, steps, **own)
    return MultistepSampler(denoiser, covariance, steps, **own, share=check_share(options.multistep, "multistep"))


def refuse_set(options: Any, names: Sequence[str], where: str) -> None:
    """Refuse options that were given and would be ignored."""
    defaults = {f.name: f.default for f in fields(options)}
    given = [name for name in names if getattr(options, name) != defaults[name]]
    flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
    checks.refuse(bool(given), f"{flags} would have no meaning with {where}; leave out one or the other.")
