"""The options of every command: names, types, defaults and help, written once.

They are plain dataclasses, so that `--help` needs no heavy import. The command line makes its flags from them, and
`config.load_options` validates flags and YAML files against them with pydantic (unknown keys are errors).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

Structures = Literal["isotropic", "channel", "pixel", "dct"]
Estimators = Literal["residual", "score_norm", "data_variance"]
Covariances = Literal["beta", "beta_tilde", "analytic"]
Spacings = Literal["linspace", "leading", "trailing", "quadratic", "log_snr"]
Dtypes = Literal["float32", "bfloat16", "float16"]

ModelHelp = "diffusers pipeline or UNet folder, hub id, or 'digits' (bundled)"
ImagesHelp = "folder, zip, npz or npy of images; 'torchvision:NAME[:train|test]'; or 'digits:train|table|score'"
DeviceHelp = "where to run, e.g. cpu or cuda:1; by default the GPU if there is one"
DtypeHelp = "autocast of the network (its results and everything else stay float32)"


class Options:
    """Base of all option sets: unknown keys are errors."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}


@dataclass
class EstimateOptions(Options):
    """Measure a model's variance table (one file) on images."""

    model: Annotated[str, ModelHelp]
    images: Annotated[str, ImagesHelp + "; neither trained on nor scored, if the table is for likelihoods"]
    out: Annotated[Path, "table to write, e.g. table.safetensors"]
    tolerance: Annotated[float, "relative standard error of the isotropic variance (others: five times that)"] = 0.01
    structures: Annotated[list[Structures], "structures to measure, comma-separated"] = field(
        default_factory=lambda: ["isotropic", "channel", "pixel", "dct"]
    )
    indices: Annotated[list[int] | None, "indices n to measure, comma-separated; by default 64, even in log-SNR"] = None
    max_evaluations: Annotated[int | None, "stop after this many network evaluations"] = None
    batch_size: Annotated[int, "network evaluations at once"] = 64
    seed: Annotated[int, "seed of every random number"] = 0
    checkpoint: Annotated[Path | None, "file to resume from; by default OUT.partial, removed at the end"] = None
    device: Annotated[str | None, DeviceHelp] = None
    dtype: Annotated[Dtypes, DtypeHelp] = "float32"
    download: Annotated[bool, "let torchvision download the data set"] = False
    overwrite: Annotated[bool, "replace an existing table"] = False


@dataclass
class ShowOptions(Options):
    """Show a variance table, as text and as a plot."""

    table: Annotated[Path, "variance table"]
    plot: Annotated[Path | None, "picture to write (png, pdf or svg): β, β̃ and the optimal variance with its error"] = (
        None
    )
    steps: Annotated[int, "number of sampling steps that the plot is for"] = 25
    overwrite: Annotated[bool, "replace an existing picture"] = False


@dataclass
class SampleOptions(Options):
    """Draw images from a model with a chosen reverse covariance."""

    model: Annotated[str, ModelHelp]
    out: Annotated[Path, "folder for PNG files, or a file ending in .npz"]
    count: Annotated[int, "number of images"] = 64
    first: Annotated[int, "index of the first image (image i of a seed is always the same)"] = 0
    steps: Annotated[int | list[int], "number of steps K, or the indices themselves, comma-separated, ascending"] = 25
    spacing: Annotated[Spacings, "how K steps are spread over 1…N"] = "linspace"
    eta: Annotated[float, "1 is DDPM, 0 is DDIM"] = 1.0
    covariance: Annotated[Covariances, "reverse covariance; analytic needs a table"] = "beta_tilde"
    table: Annotated[Path | None, "variance table, for the analytic covariance"] = None
    structure: Annotated[Structures, "structure of the analytic covariance"] = "isotropic"
    estimator: Annotated[Estimators, "estimator of the analytic covariance"] = "residual"
    final_noise_cap: Annotated[float | None, "cap of the last noise, in 255ths of the data range; none by default"] = (
        None
    )
    clipped_eps: Annotated[Literal["network", "rederived"] | None, "which ε̂ a step uses where x̂_0 is clipped"] = None
    batch_size: Annotated[int, "images at once"] = 64
    seed: Annotated[int, "seed of every random number"] = 0
    device: Annotated[str | None, DeviceHelp] = None
    dtype: Annotated[Dtypes, DtypeHelp] = "float32"
    overwrite: Annotated[bool, "write into a folder that holds something else"] = False


@dataclass
class FidOptions(Options):
    """Fréchet distance between two sets of images, in the space of a feature network."""

    images: Annotated[str, ImagesHelp]
    reference: Annotated[str, "the same, or an npz with mu and sigma"]
    features: Annotated[str, "feature network: digits"] = "inception"
    batch_size: Annotated[int, "images at once"] = 256
    device: Annotated[str | None, DeviceHelp] = None
    download: Annotated[bool, "let torchvision download the data set"] = False
    json: Annotated[bool, "print value and protocol as JSON"] = False


@dataclass
class Method(Options):
    """One row of a comparison: a way to sample, as data."""

    covariance: Covariances
    eta: float = 1.0
    estimator: Estimators = "residual"
    structure: Structures = "isotropic"
    final_noise_cap: float | None = None
    clipped_eps: Literal["network", "rederived"] | None = None
    name: str | None = None

    @property
    def label(self) -> str:
        """The name given, or one made from the rest."""
        if self.name is not None:
            return self.name
        family = "DDPM" if self.eta == 1 else "DDIM" if self.eta == 0 else f"η={self.eta:g}"
        if self.covariance == "analytic":
            cap = "" if self.final_noise_cap is None else f", cap {self.final_noise_cap:g}"
            kind = "" if self.estimator == "residual" else f" ({self.estimator})"
            return f"Analytic-{family} {self.structure}{kind}{cap}"
        sign = {"beta": "β", "beta_tilde": "β̃"}[self.covariance]
        return family if self.eta == 0 else f"{family} {sign}"


def _demo_methods() -> list[Method]:
    fixed = [Method("beta"), Method("beta_tilde"), Method("beta_tilde", eta=0.0)]
    analytic = [
        Method("analytic", eta=eta, structure=structure, final_noise_cap=cap)
        for eta in (1.0, 0.0)
        for structure in ("isotropic", "pixel", "dct")
        for cap in (None, 1.0)
    ]
    return fixed + analytic


@dataclass
class CompareOptions(Options):
    """Compare methods by Fréchet distance at several numbers of steps; the defaults are the bundled digits."""

    out: Annotated[Path, "folder for the report"] = Path("runs/demo")
    model: Annotated[str, ModelHelp] = "digits"
    table_images: Annotated[str, "images that the variance table is measured on: " + ImagesHelp] = "digits:table"
    reference: Annotated[str, "images to score against: " + ImagesHelp] = "digits:score"
    baseline: Annotated[str | None, "real images scored the same way, as the floor of the scores"] = "digits:train"
    features: Annotated[str, "feature network: digits"] = "digits"
    tolerance: Annotated[float, "tolerance of the variance table"] = 0.02
    max_evaluations: Annotated[int | None, "bound on the network evaluations of the variance table"] = None
    steps: Annotated[list[int], "numbers of steps, comma-separated"] = field(default_factory=lambda: [5, 10, 25])
    seeds: Annotated[list[int], "seeds, comma-separated"] = field(default_factory=lambda: [0, 1, 2])
    count: Annotated[int, "images per method, number of steps and seed"] = 400
    batch_size: Annotated[int, "images at once"] = 200
    methods: list[Method] = field(default_factory=_demo_methods)
    device: Annotated[str | None, DeviceHelp] = None
    dtype: Annotated[Dtypes, DtypeHelp] = "float32"
    download: Annotated[bool, "let torchvision download the data set"] = False
    overwrite: Annotated[bool, "write into a folder that is not empty"] = False
