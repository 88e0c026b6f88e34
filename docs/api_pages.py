"""The pages of the API: every public name of the package, by what it is for.

`GROUPS` is written by hand; a name of `diffusion_var.__all__` that is in none of them, or in two, stops the build (and
a test). Modules are listed with all that is public in them.
"""

import inspect
from pathlib import Path
from types import ModuleType

import diffusion_var

#: page: (title, what is there, names)
GROUPS: dict[str, tuple[str, str, list[str]]] = {
    "models": (
        "Models",
        "A network with its schedule and conventions, and exact models; see [Your network](../your_network.md).",
        [
            "Denoiser",
            "Adapted",
            "Posterior",
            "Conditions",
            "ModelIdentity",
            "encode_latents",
            "oracles",
            "product_cost",
            "ProductCost",
        ],
    ),
    "process": (
        "Schedules, levels and steps",
        "The process that is reversed: what noise there is at which index, one reverse step, and lists of steps.",
        ["NoiseSchedule", "NoiseLevel", "ReverseKernel", "steps"],
    ),
    "variance": (
        "Measuring",
        "One pass over images gives a table; see [the table](../table.md).",
        ["estimate", "VarianceTable", "check"],
    ),
    "advice": (
        "Advice",
        "Whether a network does what is declared of it, and what to do with it; see [Advice](../advise.md).",
        ["advise", "Advice", "diagnose", "Diagnosis"],
    ),
    "covariance": (
        "Covariances",
        "What a step's noise is; see [Which variance?](../which_variance.md) and [Writing one's own](../extending.md).",
        [
            "FixedSmall",
            "FixedLarge",
            "Analytic",
            "LearnedRange",
            "LearnedVariance",
            "Head",
            "HeadSpec",
            "EpsSquare",
            "Averaged",
            "Scaled",
            "ExactCovariance",
            "Jacobian",
            "Lanczos",
            "PiGDM",
            "ReverseCovariance",
            "StructuredCovariance",
            "Structure",
            "Bands",
            "testing",
        ],
    ),
    "sampling": (
        "Sampling",
        "",
        [
            "Sampler",
            "EulerMaruyama",
            "MultistepSampler",
            "SolverSampler",
            "AnalyticScheduler",
            "AnalyticFlowScheduler",
            "analytic_scheduler",
        ],
    ),
    "restoration": (
        "Restoration",
        "x_0 given x_t and a measurement; see [Restoration](../restoration.md).",
        ["Measurement", "ConditionedDenoiser", "NetworkJacobian", "restore", "Restoration", "restoration"],
    ),
    "likelihood": (
        "Likelihoods",
        "Bounds, densities and optimal steps; see [Likelihoods](../likelihoods.md).",
        [
            "bits_per_dim",
            "density_bound",
            "Bound",
            "LikelihoodBound",
            "decoder_costs",
            "DecoderCosts",
            "step_costs",
            "StepCosts",
            "ode_likelihood",
            "OdeLikelihood",
        ],
    ),
    "data": ("Images", "Where images come from; see [images by name](../command_line.md).", ["data"]),
    "metrics": ("Scores", "The FID harness; see [Scores](../scores.md).", ["metrics"]),
    "training": ("Training", "Heads, UNets and feature networks; see [Heads](../heads.md).", ["training"]),
    "plots": ("Pictures", "Figures of Matplotlib.", ["plots"]),
    "parallel": (
        "Many processes",
        "Functions that several processes call share the work; see [Many machines](../many_machines.md).",
        ["alone", "RankError"],
    ),
    "errors": (
        "Errors",
        "What is raised, and how warnings are told from others'.",
        ["InputError", "NumericalError", "NetworkError", "DiffusionVarWarning"],
    ),
}
_LINES = {"class": ["   :members:", "   :special-members: __call__"], "exception": ["   :show-inheritance:"]}


def check_groups() -> None:
    """Refuse to build where a public name has no page, or two."""
    placed = [name for _, _, names in GROUPS.values() for name in names]
    wanted = {*diffusion_var.__all__} - {"__version__"}
    missing, unknown = sorted(wanted - {*placed}), sorted({*placed} - wanted)
    twice = sorted({name for name in placed if placed.count(name) > 1})
    for names, what in ((missing, "has no page"), (unknown, "is no public name"), (twice, "is on two pages")):
        if names:
            raise SystemExit(f"docs/api_pages.py: {', '.join(names)} {what}; see GROUPS.")


def public_names(module: ModuleType) -> list[str]:
    """What is public in a module: its `__all__`, else the classes and functions that it defines."""
    if hasattr(module, "__all__"):
        return sorted(module.__all__)
    found = [name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
    return sorted(name for name in found if name[0] != "_" and callable(vars(module)[name]))


def kind_of(value: object) -> str:
    """autodoc's word for a value."""
    if inspect.isclass(value):
        return "exception" if issubclass(value, Exception) else "class"
    return "function" if callable(value) and inspect.isroutine(value) else "data"


def entry(name: str, value: object) -> str:
    """One name, as reStructuredText inside of Markdown."""
    kind = kind_of(value)
    lines = [f".. auto{kind}:: {name}", *_LINES.get(kind, [])]
    return "\n".join(["```{eval-rst}", *lines, "```", ""])


def page(title: str, text: str, names: list[str]) -> str:
    """A page of the API."""
    parts = [f"# {title}", text]
    for name in names:
        value = getattr(diffusion_var, name)
        if isinstance(value, ModuleType):
            inside = public_names(value)
            parts.append(f"## dv.{name}")
            parts += [f"### {one}\n\n{entry(f'diffusion_var.{name}.{one}', getattr(value, one))}" for one in inside]
        else:
            parts.append(f"## {name}\n\n{entry(f'diffusion_var.{name}', value)}")
    return "\n\n".join(part for part in parts if part) + "\n"


def index() -> str:
    """The first page: every name, and where it is."""
    lines = ["# API", "Everything below is `dv.<name>` after `import diffusion_var as dv`.", ""]
    lines += ["| | |", "|---|---|"]
    for file, (title, _, names) in GROUPS.items():
        listed = ", ".join(f"`{name}`" for name in names)
        lines.append(f"| [{title}]({file}.md) | {listed} |")
    tree = ["", "```{toctree}", ":hidden:", "", *GROUPS, "```", ""]
    return "\n".join(lines + tree)


def write_api_pages(folder: Path) -> None:
    """All pages, into a folder; those that have not changed are left as they are."""
    check_groups()
    folder.mkdir(exist_ok=True)
    pages = {f"{file}.md": page(*group) for file, group in GROUPS.items()} | {"index.md": index()}
    for path in folder.iterdir():
        if path.name not in pages:
            path.unlink()
    for name, text in pages.items():
        if not (folder / name).is_file() or (folder / name).read_text() != text:
            (folder / name).write_text(text)
