"""The options of a comparison: its methods as data, and what is measured of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from ... import checks
from ...errors import printable
from ..options import (
    BITS,
    WITH_PRODUCTS,
    WITH_TABLE,
    AcceptHelp,
    Averages,
    CompareMetrics,
    Covariances,
    DecoderVariances,
    Derivatives,
    Estimators,
    FeaturesHelp,
    ImageOptions,
    ImagesHelp,
    InceptionHelp,
    LikelihoodSpacings,
    Metrics,
    ModelHelp,
    ModelOptions,
    Multisteps,
    Options,
    ProcessesHelp,
    ProductCostHelp,
    Solvers,
    Structures,
)

_LONGEST_NAME = 100  # of a method; more has no place in a legend


@dataclass
class Method(Options):
    """One row of a comparison: a way to sample and to bound likelihoods, as data.

    A reverse covariance; or, as a rival, one of diffusers' solvers (`sampler`), which has neither covariance nor η.
    """

    covariance: Covariances | None = None
    eta: float = 1.0
    estimator: Estimators = "residual"
    structure: Structures = "isotropic"
    final_noise_cap: float | None = None
    clipped_eps: Literal["network", "rederived"] | None = None
    spacing: LikelihoodSpacings = "linspace"
    steps: list[int] | None = None  # numbers of steps, if other than the comparison's
    head: Path | None = None  # of train-head, for the covariance head
    name: str | None = None
    tau: float | None = None  # instead of eta
    sigmas: list[float] | None = None  # noise levels by their σ/α, falling, instead of numbers of steps
    factor: float = 1.0  # the covariance times this, to see what misjudging it costs
    decoder_variance: DecoderVariances | float | None = None  # None: an optimal path's own, else beta_tilde
    first_index: int | None = None  # that optimal paths begin at; None: found
    capped_steps: int = 1  # how many of the last noises are capped
    rho: float = 7.0  # of the spacing karras
    power: float = 2.0  # k of the spacing power
    average: Averages | None = None  # of a state-dependent covariance: over each image, or over a batch
    sampler: Solvers | None = None  # a solver of diffusers, instead of a covariance
    order: int | None = None  # of the solver
    bands: int | None = None  # of the covariance jacobian, a channel; None: 16
    probes: int | None = None  # of jacobian: products an image and step; None: 1
    krylov_steps: int | None = None  # of the covariance lanczos: products an image and step; None: 3
    derivative: Derivatives | None = None  # of both; None: forward
    multistep: Multisteps | float | None = None  # a share of the step's second order from the last evaluation

    @property
    def family(self) -> str:
        """What the field calls the samplers of this η or τ."""
        if self.sampler is not None:
            return "solvers"
        if self.tau is not None:
            return f"τ={self.tau:g}"
        return "DDPM" if self.eta == 1 else "DDIM" if self.eta == 0 else f"η={self.eta:g}"

    @property
    def is_noisy(self) -> bool:
        """Whether its steps have noise of their own; without, it has no likelihood. (A solver, and a step that
        looks back at the last one, have none here.)"""
        if self.sampler is not None or self.multistep is not None:
            return False
        return self.eta > 0 if self.tau is None else self.tau > 0

    @property
    def takes_products(self) -> bool:
        """Whether its steps take Jacobian-vector products of the network, beside its evaluations."""
        return self.covariance in WITH_PRODUCTS

    @property
    def takes_table(self) -> bool:
        """Whether its covariance is made of a variance table."""
        return self.covariance in WITH_TABLE

    @property
    def label(self) -> str:
        """The name given, or one made from the rest."""
        if self.name is not None:
            return printable(self.name, _LONGEST_NAME)
        cap = "" if self.final_noise_cap is None else f", cap {self.final_noise_cap:g}"
        cap += "" if self.capped_steps == 1 else f" of {self.capped_steps} steps"
        rest = cap + ("" if self.clipped_eps is None else f", {self.clipped_eps} ε̂")
        spread = {"karras": (self.rho, 7.0, "ρ"), "power": (self.power, 0.0, "k")}.get(self.spacing, (0, 0, ""))
        usual = "linspace" if self.sampler is None else usual_spacing(self.sampler)
        rest += "" if self.spacing == usual or self.sigmas is not None else f", {self.spacing}"
        rest += "" if spread[0] == spread[1] else f" {spread[2]}={spread[0]:g}"
        rest += "" if self.first_index is None else f" from {self.first_index}"
        rest += "" if self.decoder_variance is None else f", decoder {self.decoder_variance}"
        rest += "" if self.multistep is None else f", multistep {self.multistep}"
        rest += "" if self.average is None else f", mean over the {self.average}"
        rest += ("" if self.sigmas is None else ", own levels") + ("" if self.factor == 1 else f", × {self.factor:g}")
        if self.covariance == "analytic":
            kind = "" if self.estimator == "residual" else f" ({self.estimator})"
            return f"Analytic-{self.family} {self.structure}{kind}{rest}"
        if self.covariance == "head":
            file = Path(self.head or "head")
            name = printable(file.parent.name if file.stem == "head" else file.stem, _LONGEST_NAME)
            return f"{self.family} head {name}{rest}"
        if self.takes_products:
            rest = (", by differences" if self.derivative == "difference" else "") + rest
            if self.covariance == "lanczos":
                return f"{self.family} Lanczos-{self.krylov_steps or 3}{rest}"
            probes = "" if self.probes in (None, 1) else f", {self.probes} probes"
            return f"{self.family} Jacobian-{self.bands or 16}{probes}{rest}"
        if self.sampler is not None:
            return solver_label(self.sampler, self.order) + rest
        names = {"beta": "β", "beta_tilde": "β̃", "learned_range": "learned range", "eps_square": "1 − ε̂²"}
        own = self.is_noisy or self.covariance == "eps_square"
        return f"{self.family} {names[str(self.covariance)]}{rest}" if own else f"{self.family}{rest}"


#: What a rival may be told.
OF_SOLVERS = ("sampler", "order", "spacing", "rho", "power", "sigmas", "steps", "name")


def usual_spacing(sampler: str) -> Any:
    """The steps that a solver is usually given."""
    from ...sampling.solvers import SOLVERS

    return SOLVERS[sampler].spacing


def solver_label(sampler: str, order: int | None) -> str:
    """A solver as reports call it."""
    from ...sampling.solvers import SOLVERS

    return SOLVERS[sampler].label.format(order=SOLVERS[sampler].usual_order if order is None else order)


def check_rival(method: Method, given: set[str]) -> None:
    """Refuse what makes no sense of a method; `given` are the options that it was given."""
    none = method.sampler is None
    checks.refuse(
        none and method.covariance is None,
        "a method has neither a covariance nor a sampler; give one, e.g. {covariance: analytic} or "
        "{sampler: dpm_solver_pp}.",
    )
    checks.refuse(none and method.order is not None, f"order={method.order} is for a sampler; leave it out.")
    wrong = [] if none else sorted(given - {*OF_SOLVERS})
    checks.refuse(
        bool(wrong),
        f"{' and '.join(wrong)} of the method {method.sampler} {'has' if len(wrong) == 1 else 'have'} no meaning for a "
        "solver, which has no covariance and no noise of ours; leave that out.",
    )
    checks.refuse(
        not none and method.spacing == "optimal",
        f"spacing=optimal is for likelihoods, and the solver {method.sampler} has none; choose log_snr or karras.",
    )


def rival_as_given(values: Any) -> Any:
    """A method of a config, a rival's with the steps that it is usually given; what makes no sense is refused."""
    if not isinstance(values, dict) or not isinstance(values.get("sampler"), str):
        return values
    known = {f.name for f in fields(Method)}
    if values["sampler"] not in get_args(Solvers) or not set(values) <= known:
        return values  # what is not known is told along with all other problems
    check_rival(Method(sampler=values["sampler"], spacing=values.get("spacing", "log_snr")), set(values))
    usual = "linspace" if "sigmas" in values else usual_spacing(values["sampler"])
    return {"spacing": usual, **values}


def _usual_methods() -> list[Method]:
    fixed = [Method("beta"), Method("beta_tilde"), Method("beta_tilde", eta=0.0)]
    analytic = [
        Method("analytic", eta=eta, structure=structure, final_noise_cap=cap)
        for eta in (1.0, 0.0)
        for structure in ("isotropic", "pixel", "dct")
        for cap in (None, 1.0)
    ]
    return fixed + analytic


@dataclass
class CompareOptions(ModelOptions, ImageOptions):
    """Compare methods × numbers of steps × seeds by their scores; the defaults are the bundled digits.

    The methods are listed in a --config, under `methods`; by default all that need no training.
    """

    out: Annotated[
        Path,
        "folder for the report, and for the cells that an interrupted run continues from; by default runs/NAME of a "
        "config NAME.yaml",
    ] = Path("runs/digits")
    model: Annotated[str, ModelHelp] = "digits"
    table: Annotated[Path | None, "variance table; by default one is measured on --table-images"] = None
    table_images: Annotated[str, "images that the variance table is measured on: " + ImagesHelp] = "digits:table"
    reference: Annotated[str, "images to score against, or an npz of statistics: " + ImagesHelp] = "digits:score"
    baseline: Annotated[str | None, "real images scored the same way, as the floor of the scores"] = "digits:train"
    features: Annotated[str, FeaturesHelp] = "digits"
    inception_weights: Annotated[Path | None, InceptionHelp] = None
    accept_weights: Annotated[str | None, AcceptHelp] = None
    metrics: Annotated[list[CompareMetrics], "what to measure, comma-separated; who wins is told by the first"] = field(
        default_factory=lambda: ["fid"]
    )
    likelihood_images: Annotated[str, "for bits_per_dim: held-out images, " + ImagesHelp] = "digits:score"
    decoder_images: Annotated[
        str | None,
        "for bits_per_dim on optimal steps: images that decoder and first index are found on, by default those of the "
        "table, if it is measured; 'none': expected from the table alone",
    ] = None
    tolerance: Annotated[float, "tolerance of the variance table"] = 0.02
    max_evaluations: Annotated[int | None, "bound on the network evaluations of the variance table"] = None
    steps: Annotated[
        list[int],
        "numbers of network evaluations: of steps, where a step takes one; of others (Heun's, and those with "
        "Jacobian-vector products) as many as fit",
    ] = field(default_factory=lambda: [5, 10, 25])
    product_cost: Annotated[float | None, ProductCostHelp] = None
    seeds: Annotated[list[int], "seeds, comma-separated"] = field(default_factory=lambda: [0, 1, 2])
    count: Annotated[int, "images per method, number of steps and seed"] = 400
    batch_size: Annotated[int, "images at once"] = 200
    methods: list[Method] = field(default_factory=_usual_methods)
    processes: Annotated[int, ProcessesHelp] = 0
    overwrite: Annotated[bool, "replace another comparison's report, or write beside other files"] = False

    @classmethod
    def prepared(cls, values: dict[str, Any], config: Path | None) -> dict[str, Any]:
        """The values, with an output that is called after the config: two experiments get two folders."""
        named = {} if config is None else {"out": Path("runs") / config.stem}
        found = named | super().prepared(values, config)
        if isinstance(found.get("methods"), list):
            found["methods"] = [rival_as_given(method) for method in found["methods"]]
        return found

    @property
    def image_metrics(self) -> list[Metrics]:
        """What is measured of samples: all metrics but bits/dim."""
        return [metric for metric in self.metrics if metric != BITS]

    def method_steps(self, method: Method) -> list[int]:
        """The numbers of evaluations that a method is run at: of steps, each of which takes one (Heun's take two, and
        those with products what these cost)."""
        if method.sigmas is not None:
            steps = sum(sigma > 0 for sigma in method.sigmas)
            return [2 * steps - 1 if method.sampler == "heun" else steps]
        return self.steps if method.steps is None else method.steps

    @property
    def needs_table(self) -> bool:
        """Whether a method needs a variance table."""
        return any(m.takes_table or m.spacing == "optimal" for m in self.methods)

    @property
    def decoders_from(self) -> str | None:
        """The images that decoders are measured on; None: on none."""
        wanted = BITS in self.metrics and any(
            m.spacing == "optimal" and m.decoder_variance is None and m.is_noisy for m in self.methods
        )
        own = self.table_images if self.table is None else None
        return None if not wanted or self.decoder_images == "none" else self.decoder_images or own

    def cells_left(self) -> int:
        """How many cells are to be measured, by the names of those that are there."""
        from ..cell_files import files_of

        planned: Counter[str] = Counter()
        for method in self.methods:
            kinds = bool(self.image_metrics) + (BITS in self.metrics and method.is_noisy)
            for k, seed in product(self.method_steps(method), self.seeds):
                planned[f"{method.label} K={k} seed={seed}"] += kinds
        return sum(max(kinds - len(files_of(self.out, label)), 0) for label, kinds in planned.items())

    @property
    def all_steps(self) -> list[int]:
        """Every number of evaluations of the comparison, ascending."""
        return sorted({k for method in self.methods for k in self.method_steps(method)})
