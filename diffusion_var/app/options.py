"""The options of every command: names, types, defaults and help, written once.

They are plain dataclasses, so that `--help` needs no heavy import. The command line makes its flags from them, and
`config.load_options` validates flags and YAML files against them with pydantic (unknown keys are errors).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal

Structures = Literal["isotropic", "channel", "pixel", "dct"]
Estimators = Literal["residual", "score_norm", "data_variance"]
OwnCovariances = Literal["beta", "beta_tilde", "analytic", "learned_range", "head", "eps_square"]
Covariances = Literal["beta", "beta_tilde", "analytic", "learned_range", "head", "eps_square", "jacobian", "lanczos"]
Derivatives = Literal["forward", "difference"]
Multisteps = Literal["auto"]
#: Covariances that take Jacobian-vector products of the network, and those that a table goes with.
WITH_PRODUCTS: Final = ("jacobian", "lanczos")
WITH_TABLE: Final = ("analytic", *WITH_PRODUCTS)
Averages = Literal["image", "batch"]
Solvers = Literal["dpm_solver_pp", "sde_dpm_solver_pp", "unipc", "heun", "euler", "euler_ancestral"]
Spacings = Literal["linspace", "leading", "trailing", "respaced", "ddim", "quadratic", "power", "log_snr", "karras"]
LikelihoodSpacings = Literal[
    "linspace", "leading", "trailing", "respaced", "ddim", "quadratic", "power", "log_snr", "karras", "optimal"
]
DecoderVariances = Literal["beta_tilde", "respaced", "sigma2", "table", "isotropic", "pixel", "covariance"]
Objectives = Literal["kl", "bound"]
Targets = Literal["npr", "sn", "ocm", "factor", "bands"]
Metrics = Literal["fid", "kid", "precision", "recall", "density", "coverage"]
BITS: Final = "bits_per_dim"  # of the model, not of its samples
CompareMetrics = Literal["fid", "kid", "precision", "recall", "density", "coverage", "bits_per_dim"]
Dtypes = Literal["float32", "bfloat16", "float16"]
_OTHER_DTYPES = {
    "fp32": "float32",
    "full": "float32",
    "fp16": "float16",
    "half": "float16",
    "bf16": "bfloat16",
    "bfloat": "bfloat16",
}

#: What an argument of a pipeline's call may be here.
Scalar = bool | int | float | str
ModelHelp = "diffusers pipeline or UNet folder, hub id, or 'digits' or 'photographs' (bundled)"
ImagesHelp = (
    "folder, pattern ('imgs/*.png', quoted), zip, npz or npy of images, file.npz:KEY, "
    "'torchvision:NAME[:train|test]', 'digits:train|table|score' or 'photographs:fit|table|score[:SIZE]', each with an "
    "optional [START:STOP] or [shuffled:START:STOP]"
)
CallHelp = (
    "arguments of the pipeline's own call, NAME=VALUE,NAME=VALUE, such as height=1024,width=1024 or num_frames=33"
)
GuidanceHelp = (
    "scale of classifier-free guidance, by default none (1); or what a network with embedded guidance is told, by "
    "default its pipeline's own"
)
DeviceHelp = "where to run, e.g. cpu or cuda:1; by default the GPU if there is one"
FeaturesHelp = "feature network: inception, digits, pixels (none), or a .safetensors file of train-features"
InceptionHelp = "file of Inception's weights; by default the one in PyTorch's cache, or a download"
AcceptHelp = "SHA-256 of an Inception weights file, other than the published one, that you trust"
ReportHelp = (
    "report the curve to trackers as well, comma-separated: tensorboard, wandb, trackio, …; they write to OUT/logs"
)
LicenseHelp = "licence of what is trained, for its model card, e.g. apache-2.0"
HeadHelp = "trained head (head.safetensors of train-head), for the covariance head"
TauHelp = "instead of eta: 1 is DDPM, 0 the ODE's step, more than 1 re-noises"
SigmasHelp = "instead of steps: noise levels by their σ/α, comma-separated, falling; a 0 at the end may be left out"
CovarianceHelp = (
    "reverse covariance; analytic needs a table, head a trained head; jacobian and lanczos follow the image by "
    "products with the network's derivative, best with a table"
)
BandsHelp = "of jacobian: bands of frequency for each channel; by default 16"
ProbesHelp = "of jacobian: products for each image and step; by default 1"
KrylovHelp = "of lanczos: products for each image and step; by default 3"
DerivativeHelp = (
    "of jacobian and lanczos: forward (the default), or difference, for networks that have no forward derivative"
)
MultistepHelp = (
    "share of a step's second order that is taken from the last evaluation, the covariance having the rest: from 0 to "
    "1 (DPM-Solver++'s), or auto; none by default"
)
AverageHelp = "a state-dependent covariance's mean over each image, or over the images of a batch"
StepsHelp = (
    "number of steps K, or the indices themselves, comma-separated, ascending (with the spacing respaced: the numbers "
    "of steps of equal parts)"
)
RhoHelp = "ρ of the spacing karras"
PowerHelp = "k of the spacing power"
SkipHelp = "leave out files that cannot be decoded, with a warning"
ChannelsHelp = "1 reads images as grey, 3 as RGB; by default files are as they are, and arrays as they are stored"
RangeHelp = "LOW,HIGH: what black and white are in images of floats"
DtypeHelp = "autocast of the network (its results and everything else stay float32)"
DecoderHelp = (
    "variance of the step to the image, or a number; by default what an optimal path was found with, else beta_tilde"
)
DecoderImagesHelp = (
    "for the spacing optimal: held-out images that the decoder's variance and the first index are found on"
)
FirstIndexHelp = "index that optimal paths begin at; by default it is found, with the decoder"
ProductCostHelp = (
    "evaluations that a forward-mode Jacobian-vector product counts for, where it comes with the mean; by default "
    "measured on the network, once"
)
ProcessesHelp = "processes of one thread that share the cells on CPUs; 0: as many as cores, at most the cells left"
Positional = "positional"  # marks an option that may also be given without its flag, in the order of the options


class Options:
    """Base of all option sets: unknown keys are errors."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    @classmethod
    def prepared(cls, values: dict[str, Any], config: Path | None) -> dict[str, Any]:
        """The values of flags and a config as they are validated: one name for each thing, and what follows of them."""
        return values


@dataclass(kw_only=True)
class ImageOptions(Options):
    """How images are read; part of other option sets."""

    channels: Annotated[int | None, ChannelsHelp] = None
    skip_corrupt: Annotated[bool, SkipHelp] = False
    download: Annotated[bool, "let torchvision download the data set"] = False


@dataclass(kw_only=True)
class ModelOptions(Options):
    """How a model is opened, and what it is conditioned on; part of other option sets."""

    device: Annotated[str | None, DeviceHelp] = None
    dtype: Annotated[Dtypes, DtypeHelp] = "float32"
    weights_dtype: Annotated[Dtypes | None, "precision of the weights in memory; by default float32"] = None
    variant: Annotated[str | None, "variant of the weight files, e.g. fp16"] = None
    revision: Annotated[str | None, "branch, tag or commit of a hub repository"] = None
    allow_pickle: Annotated[bool, "read .bin weights where there are no safetensors"] = False
    openai: Annotated[
        Path | None, "YAML file of its hyper-parameters, if the model is a .pt or .safetensors of OpenAI's repositories"
    ] = None
    guidance_scale: Annotated[float | None, GuidanceHelp] = None
    unconditional: Annotated[
        str | None, "for guidance: class label or text that stands for none; by default the model's own, if it has one"
    ] = None
    data_range: Annotated[list[float] | None, "LOW,HIGH of the model's data; by default as its scheduler says"] = None
    call: Annotated[dict[str, Scalar] | None, CallHelp] = None
    prompts: Annotated[Path | None, "text file, one prompt a line: image i gets one, a table draws them"] = None
    classes: Annotated[list[int] | None, "class labels, comma-separated: image i gets one, a table draws them"] = None
    labels: Annotated[str | None, "labels of the table's images, file.npz:KEY; by default their own"] = None
    latents: Annotated[Path | None, "folder that keeps the encoded images of a latent model"] = None

    @classmethod
    def prepared(cls, values: dict[str, Any], config: Path | None) -> dict[str, Any]:
        """The values, with the model and the precision called as they are here."""
        if "pipeline" in values and "model" not in values:
            values = {("model" if name == "pipeline" else name): value for name, value in values.items()}
        for name in {"dtype", "weights_dtype"} & {*values}:
            if isinstance(dtype := values[name], str):
                known = dtype.lower().removeprefix("torch.")
                values = {**values, name: _OTHER_DTYPES.get(known, known)}
        return values


@dataclass
class EstimateOptions(ModelOptions, ImageOptions):
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
    overwrite: Annotated[bool, "replace an existing table"] = False


@dataclass
class ShowOptions(Options):
    """Show a variance table, as text and as a plot."""

    table: Annotated[Path, "variance table", Positional]
    plot: Annotated[Path | None, "picture to write (png, pdf or svg): variances, their errors, and what steps cost"] = (
        None
    )
    steps: Annotated[int, "number of sampling steps that diagnosis and plot are for"] = 25
    overwrite: Annotated[bool, "replace an existing picture"] = False


@dataclass
class SampleOptions(ModelOptions):
    """Draw images from a model with a chosen reverse covariance."""

    model: Annotated[str, ModelHelp]
    out: Annotated[Path, "folder for PNG files, or a file ending in .npz"]
    count: Annotated[int, "number of images"] = 64
    first: Annotated[int, "index of the first image (image i of a seed is always the same)"] = 0
    steps: Annotated[int | list[int], StepsHelp] = 25
    spacing: Annotated[Spacings, "how K steps are spread over 1…N"] = "linspace"
    rho: Annotated[float, RhoHelp] = 7.0
    power: Annotated[float, PowerHelp] = 2.0
    sigmas: Annotated[list[float] | None, SigmasHelp] = None
    eta: Annotated[float, "1 is DDPM, 0 is DDIM"] = 1.0
    tau: Annotated[float | None, TauHelp] = None
    covariance: Annotated[
        Covariances | None, CovarianceHelp + "; by default what --table or --head is for, else beta_tilde"
    ] = None
    table: Annotated[Path | None, "variance table, for the covariances analytic, jacobian and lanczos"] = None
    head: Annotated[Path | None, HeadHelp] = None
    structure: Annotated[Structures, "structure of the analytic covariance"] = "isotropic"
    estimator: Annotated[Estimators, "estimator of the analytic covariance"] = "residual"
    average: Annotated[Averages | None, AverageHelp] = None
    bands: Annotated[int | None, BandsHelp] = None
    probes: Annotated[int | None, ProbesHelp] = None
    krylov_steps: Annotated[int | None, KrylovHelp] = None
    derivative: Annotated[Derivatives | None, DerivativeHelp] = None
    multistep: Annotated[Multisteps | float | None, MultistepHelp] = None
    final_noise_cap: Annotated[float | None, "cap of the last noise, in 255ths of the data range; none by default"] = (
        None
    )
    capped_steps: Annotated[int, "how many of the last noises are capped"] = 1
    clipped_eps: Annotated[Literal["network", "rederived"] | None, "which ε̂ a step uses where x̂_0 is clipped"] = None
    batch_size: Annotated[int, "images at once"] = 64
    seed: Annotated[int, "seed of every random number"] = 0
    overwrite: Annotated[bool, "write into a folder that holds something else"] = False


@dataclass
class NllOptions(ModelOptions, ImageOptions):
    """Bound a model's negative log-likelihood of images from above, in bits/dim."""

    model: Annotated[str, ModelHelp]
    images: Annotated[str, ImagesHelp + "; neither trained on nor part of the table"]
    covariance: Annotated[Covariances, CovarianceHelp] = "analytic"
    table: Annotated[Path | None, "variance table, for the covariances analytic, jacobian and lanczos"] = None
    head: Annotated[Path | None, HeadHelp] = None
    structure: Annotated[Structures, "structure of the analytic covariance"] = "isotropic"
    estimator: Annotated[Estimators, "estimator of the analytic covariance"] = "residual"
    average: Annotated[Averages | None, AverageHelp] = None
    bands: Annotated[int | None, BandsHelp] = None
    probes: Annotated[int | None, ProbesHelp] = None
    krylov_steps: Annotated[int | None, KrylovHelp] = None
    derivative: Annotated[Derivatives | None, DerivativeHelp] = None
    steps: Annotated[int | list[int], StepsHelp] = 25
    spacing: Annotated[LikelihoodSpacings, "how K steps are spread over 1…N; optimal needs a table"] = "linspace"
    rho: Annotated[float, RhoHelp] = 7.0
    power: Annotated[float, PowerHelp] = 2.0
    sigmas: Annotated[list[float] | None, SigmasHelp] = None
    eta: Annotated[float, "1 is DDPM; above 0"] = 1.0
    tau: Annotated[float | None, TauHelp] = None
    clipped_eps: Annotated[Literal["network", "rederived"] | None, "which ε̂ a step uses where x̂_0 is clipped"] = None
    decoder_variance: Annotated[DecoderVariances | float | None, DecoderHelp] = None
    decoder_images: Annotated[str | None, DecoderImagesHelp] = None
    first_index: Annotated[int | None, FirstIndexHelp] = None
    levels: Annotated[int, "number of values a pixel can have"] = 256
    continuous: Annotated[bool, "bound a density instead (always for latent models): another unit"] = False
    draws: Annotated[int, "noise draws for each image; 2 or more tell the error of the noise alone"] = 1
    step_samples: Annotated[int | None, "evaluate only this many of the steps for each image, at random"] = None
    batch_size: Annotated[int, "network evaluations at once"] = 64
    seed: Annotated[int, "seed of every random number"] = 0
    out: Annotated[Path | None, "JSON file to write, with every step's part and all settings"] = None
    checkpoint: Annotated[Path | None, "file to resume from; by default OUT.partial, removed at the end"] = None
    json: Annotated[bool, "print JSON"] = False
    overwrite: Annotated[bool, "replace an existing file"] = False


@dataclass
class StepsOptions(ModelOptions, ImageOptions):
    """Find the optimal trajectories for likelihoods: from a table, or from measured costs (objective bound)."""

    table: Annotated[Path | None, "variance table", Positional] = None
    steps: Annotated[list[int], "numbers of steps, comma-separated"] = field(default_factory=lambda: [5, 10, 25, 50])
    structure: Annotated[Structures, "structure of the analytic covariance"] = "isotropic"
    estimator: Annotated[Estimators | None, "estimator of the table; residual, or score_norm of published arrays"] = (
        None
    )
    max_relative_error: Annotated[float, "indices with a larger relative standard error are not visited"] = 0.1
    decoder_variance: Annotated[
        DecoderVariances | float | None, "for kl: what the decoder is expected to have; by default the table's v"
    ] = None
    first_index: Annotated[int | None, FirstIndexHelp] = None
    objective: Annotated[Objectives, "kl: from the table alone; bound: from costs measured on images"] = "kl"
    model: Annotated[str | None, "for bound: " + ModelHelp] = None
    images: Annotated[str | None, "for bound: " + ImagesHelp] = None
    covariance: Annotated[OwnCovariances, "for bound: the reverse covariance"] = "analytic"
    head: Annotated[Path | None, "for bound: " + HeadHelp] = None
    eta: Annotated[float, "for bound: 1 is DDPM; above 0"] = 1.0
    indices: Annotated[list[int] | None, "for bound: indices to measure; by default 64, even in log-SNR"] = None
    draws: Annotated[int, "for bound: noise draws for each image"] = 1
    batch_size: Annotated[int, "for bound: network evaluations at once"] = 64
    seed: Annotated[int, "for bound: seed of every random number"] = 0
    checkpoint: Annotated[Path | None, "for bound: file to resume from"] = None
    plot: Annotated[Path | None, "picture to write (png, pdf or svg)"] = None
    json: Annotated[bool, "print JSON, one line a number of steps"] = False
    overwrite: Annotated[bool, "replace an existing picture"] = False


@dataclass
class AdviseOptions(ModelOptions, ImageOptions):
    """Advise on a model of one's own: are its conventions right, which variance and steps, and is it worth it?"""

    model: Annotated[str, ModelHelp, Positional]
    images: Annotated[str, "a few hundred held-out images, at least 100: " + ImagesHelp, Positional]
    budget: Annotated[int, "network evaluations in all"] = 60_000
    steps: Annotated[list[int], "numbers of steps of interest, comma-separated"] = field(
        default_factory=lambda: [5, 10]
    )
    features: Annotated[str, "what samples are compared in: pixels, or a " + FeaturesHelp] = "pixels"
    inception_weights: Annotated[Path | None, InceptionHelp] = None
    accept_weights: Annotated[str | None, AcceptHelp] = None
    table: Annotated[Path | None, "variance table of the model, of other images; by default one is measured"] = None
    save_table: Annotated[Path | None, "file to write the measured table to"] = None
    trained_on: Annotated[
        str | None, "images that the network was trained on, so that none of them is taken; " + ImagesHelp
    ] = None
    batch_size: Annotated[int, "network evaluations at once"] = 64
    seed: Annotated[int, "seed of every random number"] = 0
    out: Annotated[Path | None, "JSON file to write, with all numbers"] = None
    checkpoint: Annotated[Path | None, "file to resume from; by default OUT.partial, removed at the end"] = None
    json: Annotated[bool, "print JSON"] = False
    overwrite: Annotated[bool, "replace existing files"] = False


@dataclass
class TrainHeadOptions(ModelOptions, ImageOptions):
    """Train a head that says how much the variance of x_0 depends on the image, on a model's frozen trunk."""

    model: Annotated[str, ModelHelp]
    table: Annotated[Path, "variance table of the same model: what the head's output multiplies"]
    images: Annotated[str, "images to train on: " + ImagesHelp]
    out: Annotated[Path, "folder for the head, its curve and, while it trains, its checkpoint"]
    held_out: Annotated[str | None, "images for the curve and for --patience: " + ImagesHelp] = None
    held_out_labels: Annotated[str | None, "labels of the held-out images, file.npz:KEY; by default their own"] = None
    target: Annotated[
        Targets,
        "npr (right for any mean), sn, ocm; or one number an image (factor) or a band of its frequencies (bands), "
        "times a structure's variances",
    ] = "npr"
    kind: Annotated[
        Literal["simple", "residual", "pooled"] | None,
        "simple; residual, with a block that knows the time; or pooled, of averages over the image: for factor and, "
        "by default, for bands",
    ] = None
    structure: Annotated[
        Literal["dct", "pixel"] | None, "for factor: whose variances it multiplies; for bands: dct"
    ] = None
    bands: Annotated[int | None, "for bands: how many of each channel; by default 16"] = None
    output: Annotated[
        Literal["ratio", "papers"], "positive multiple of the table's variance, or the published heads' own output"
    ] = "ratio"
    features: Annotated[str | None, "module whose input the features are; found for diffusers UNets and DiT"] = None
    steps: Annotated[int, "optimiser steps"] = 10_000
    batch_size: Annotated[int, "images a step, over all processes together"] = 128
    learning_rate: Annotated[float, "of Adam"] = 1e-4
    rate_schedule: Annotated[Literal["constant", "cosine"], "constant, or a cosine to zero"] = "constant"
    ema_decay: Annotated[float, "decay of the moving average of the weights, which is what is saved"] = 0.9999
    weighting: Annotated[
        Literal["table", "likelihood", "papers"],
        "every index counts, or each for what it costs in bits (not sn, ocm), or the papers' plain squared error",
    ] = "table"
    accumulate: Annotated[int, "parts that a batch is evaluated in: less memory"] = 1
    evaluate_every: Annotated[int, "steps between points of the curve"] = 500
    patience: Annotated[int | None, "stop after so many points without a lower held-out loss; keep the best"] = None
    likelihood_images: Annotated[int, "held-out images of the curve's bits/dim; 0 for none"] = 64
    likelihood_steps: Annotated[int, "steps of the curve's bits/dim"] = 10
    seed: Annotated[int, "seed of every random number"] = 0
    report_to: Annotated[list[str] | None, ReportHelp] = None
    license: Annotated[str | None, LicenseHelp] = None
    overwrite: Annotated[bool, "write into a folder that holds something else"] = False


@dataclass
class StatsOptions(ImageOptions):
    """Write the feature statistics of images, to score against: mu and sigma, as pytorch-fid writes and reads them."""

    images: Annotated[str, ImagesHelp, Positional]
    out: Annotated[Path, "file to write, ending in .npz"]
    features: Annotated[str, FeaturesHelp] = "inception"
    inception_weights: Annotated[Path | None, InceptionHelp] = None
    accept_weights: Annotated[str | None, AcceptHelp] = None
    data_range: Annotated[list[float], RangeHelp] = field(default_factory=lambda: [-1.0, 1.0])
    batch_size: Annotated[int, "images at once"] = 256
    device: Annotated[str | None, DeviceHelp] = None
    overwrite: Annotated[bool, "replace an existing file"] = False


@dataclass
class FidOptions(ImageOptions):
    """Score images against a reference: Fréchet distance (FID), kernel distance (KID), precision and recall, ..."""

    images: Annotated[str, ImagesHelp, Positional]
    reference: Annotated[str, "the same, or an npz with mu and sigma (see stats)", Positional]
    features: Annotated[str, FeaturesHelp] = "inception"
    metrics: Annotated[list[Metrics], "what to measure, comma-separated; all but fid need images on both sides"] = (
        field(default_factory=lambda: ["fid"])
    )
    inception_weights: Annotated[Path | None, InceptionHelp] = None
    accept_weights: Annotated[str | None, AcceptHelp] = None
    bootstrap: Annotated[int, "repeats of the bootstrap that gives the FID a 95 % interval; 0 for none"] = 0
    extrapolate: Annotated[bool, "also the FID extrapolated to infinitely many images"] = False
    seed: Annotated[int, "seed of every random number (kid, bootstrap, extrapolate)"] = 0
    data_range: Annotated[list[float], RangeHelp] = field(default_factory=lambda: [-1.0, 1.0])
    batch_size: Annotated[int, "images at once"] = 256
    device: Annotated[str | None, DeviceHelp] = None
    json: Annotated[bool, "print JSON, one line a score, with its protocol"] = False
