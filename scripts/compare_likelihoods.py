"""Bits/dim of one model under every reverse covariance and on two kinds of trajectories, everything else being equal.

    python scripts/compare_likelihoods.py --out runs/digits_likelihood                 # the bundled digits
    python scripts/compare_likelihoods.py --out runs/mnist/likelihood --model runs/mnist/model --dtype bfloat16 \\
        --table runs/mnist/likelihood.safetensors --images 'mnist.npz:test_x[shuffled::400]'

All cells share images and noise, so that differences are known better than the values. Each is kept in the output
folder as soon as it is computed: interrupted, the same command goes on. Prints Markdown.
"""

import functools
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import diffusion_var as dv
from diffusion_var.app.flags import script
from diffusion_var.app.model import open_model
from diffusion_var.app.options import ImagesHelp, ModelHelp, ModelOptions
from diffusion_var.covariance.reverse import ReverseCovariance, StructuredCovariance
from diffusion_var.data.names import open_images
from diffusion_var.files import make_folder

print = functools.partial(print, flush=True)  # the report may go to a pipe
FACTORS = (0.1, 0.25, 4.0, 10.0)
SIGNS = {"beta_tilde": "β̃", "beta": "β"}


@dataclass
class LikelihoodOptions(ModelOptions):
    """Compare reverse covariances and trajectories by their bits/dim."""

    out: Annotated[Path, "folder for the table and for the cells that an interrupted run continues from"]
    model: Annotated[str, ModelHelp] = "digits"
    table: Annotated[Path | None, "variance table; by default one is measured on table_images into OUT"] = None
    table_images: Annotated[str, "images that the table is measured on: " + ImagesHelp] = "digits:table"
    images: Annotated[str, "images to score: " + ImagesHelp] = "digits:score"
    heads: Annotated[list[Path], "heads of train-head to compare too, comma-separated"] = field(default_factory=list)
    steps: Annotated[list[int], "numbers of steps, comma-separated"] = field(default_factory=lambda: [5, 10, 25, 50])
    tolerance: Annotated[float, "tolerance of the variance table"] = 0.01
    max_evaluations: Annotated[int | None, "bound on the network evaluations of the table"] = None
    draws: Annotated[int, "noise draws for each image"] = 1
    batch_size: Annotated[int, "network evaluations at once"] = 100
    seed: Annotated[int, "seed of every random number"] = 0
    download: Annotated[bool, "let torchvision download the data set"] = False


class Scaled(ReverseCovariance):
    """A covariance times a number: to see what misjudging it costs."""

    def __init__(self, inner: ReverseCovariance, factor: float) -> None:
        self.inner, self.factor = inner, factor
        self.depends_on_image = inner.depends_on_image

    @property
    def name(self) -> str:
        return f"{self.inner.name} × {self.factor:g}"

    def identity(self) -> dict[str, Any]:
        return {"factor": self.factor, **self.inner.identity()}

    def check(self, denoiser: Any, kernels: Any) -> None:
        self.inner.check(denoiser, kernels)

    def __call__(self, posterior: Any, kernel: Any) -> StructuredCovariance | None:
        found = self.inner(posterior, kernel)
        return None if found is None else StructuredCovariance(found.structure, found.variance * self.factor)


class Comparison:
    """The model, its table and images, and the cells computed so far."""

    def __init__(self, options: LikelihoodOptions) -> None:
        self.options, self.folder = options, make_folder(options.out)
        self.model = open_model(options.model, options)
        self.table = self._table()
        self.images = self.model.inputs(open_images(options.images, options.download))
        self.conditions = self.model.table_conditions(options.images, options.download)

    def _table(self) -> dv.VarianceTable:
        options = self.options
        path = options.table or self.folder / "table.safetensors"
        if options.table is None and not path.exists():
            images = self.model.inputs(open_images(options.table_images, options.download))
            dv.estimate(
                self.model.denoiser,
                images,
                options.tolerance,
                conditions=self.model.table_conditions(options.table_images, options.download),
                max_evaluations=options.max_evaluations,
                checkpoint=self.folder / "table.partial",
            ).save(path)
        return dv.VarianceTable.load(path)

    def bound(self, label: str, covariance: ReverseCovariance, steps: list[int], spacing: str) -> dv.LikelihoodBound:
        """One cell, computed or taken from its file."""
        return dv.bits_per_dim(
            self.model.denoiser,
            covariance,
            self.images,
            steps,
            self.options.seed,
            draws=self.options.draws,
            conditions=self.conditions,
            batch_size=self.options.batch_size,
            checkpoint=self.folder / f"{label.replace(' ', '-')}-{spacing}-{len(steps)}.safetensors",
            progress=True,
        )


def run(options: LikelihoodOptions) -> None:
    """Compute all cells and print them."""
    if min(options.steps) < 2:
        raise dv.InputError("--steps holds 1: one step has no step between indices to compare; leave it out.")
    work = Comparison(options)
    # With one channel its structure is the isotropic one.
    structures = [name for name in work.table.structures if name != "channel" or work.model.denoiser.shape[0] > 1]
    fixed: dict[str, ReverseCovariance] = {"beta_tilde": dv.FixedSmall(), "beta": dv.FixedLarge()}
    heads: dict[str, ReverseCovariance] = {head_label(path): dv.Head.load(path) for path in options.heads}
    if len(heads) < len(options.heads):
        raise dv.InputError(
            "two of --heads have the same name; the name is the file's, or of head.safetensors the folder's."
        )
    methods = fixed | {name: dv.Analytic(work.table, structure=name) for name in structures} | heads
    cells: dict[tuple[str, str, int], dv.LikelihoodBound] = {}
    for label, covariance in methods.items():
        path_of = label if label in structures else "isotropic"
        for count in options.steps:
            even, best = (
                dv.steps.linspace(work.table, count),
                dv.steps.optimal(work.table, count, structure=path_of),
            )
            cells[label, "even", count] = work.bound(label, covariance, even, "even")
            cells[label, "optimal", count] = work.bound(label, covariance, best, "optimal")
    print_cells(cells, list(methods), options.steps)
    print_gains(cells, [name for name in (*structures, *heads) if name != "isotropic"], options.steps)
    rows = []
    for factor in FACTORS:
        covariance = Scaled(methods["isotropic"], factor)
        row = [
            work.bound(f"isotropic_times_{factor:g}", covariance, dv.steps.linspace(work.table, k), "even").value
            for k in options.steps
        ]
        rows.append([f"{factor:g}", *(f"{value:.4f}" for value in row)])
    print("\nIsotropic variance times a factor, even steps (bits/dim):\n")
    print_rows(["factor", *(f"K = {k}" for k in options.steps)], rows)


def head_label(path: Path) -> str:
    """The file's name, or where all are called head, the folder's."""
    return f"head {path.parent.name if path.stem == 'head' else path.stem}"


def print_cells(cells: dict[tuple[str, str, int], dv.LikelihoodBound], labels: list[str], counts: list[int]) -> None:
    """Bits/dim ± standard error, one row a method and trajectory."""
    some = next(iter(cells.values()))
    print(f"\nBits/dim ± standard error over {some.images:,} images, {some.draws} noise draw(s) each:\n")
    rows = [
        [
            SIGNS.get(label, label if label.startswith("head ") else f"analytic {label}"),
            spacing,
            *(f"{(cell := cells[label, spacing, k]).value:.4f} ± {cell.standard_error:.4f}" for k in counts),
        ]
        for spacing in ("even", "optimal")
        for label in labels
    ]
    print_rows(["covariance", "steps", *(f"K = {k}" for k in counts)], rows)
    decoder = {k: cells[labels[0], "even", k].decoder for k in counts}
    assert all(math.isclose(v, some.decoder, rel_tol=1e-6) for v in decoder.values())
    print(f"\nThe decoder's part is {some.decoder:.4f} and the prior's {some.prior:.6f} in every cell.")


def print_gains(
    cells: dict[tuple[str, str, int], dv.LikelihoodBound], structures: list[str], counts: list[int]
) -> None:
    """What a structure gains over one variance."""
    rows = [
        [
            name,
            spacing,
            *(f"{cells['isotropic', spacing, k].value - cells[name, spacing, k].value:+.4f}" for k in counts),
        ]
        for spacing in ("even", "optimal")
        for name in structures
    ]
    print("\nBits/dim gained over isotropic, same images and noise:\n")
    print_rows(["structure", "steps", *(f"K = {k}" for k in counts)], rows)


def print_rows(head: list[str], rows: list[list[str]]) -> None:
    """A Markdown table."""
    for row in (head, ["---"] * len(head), *rows):
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    script(LikelihoodOptions, "compare_likelihoods", run)
