"""The options of restorations: what was measured, and how it is restored."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from ..options import Estimators, HeadHelp, ImageOptions, ImagesHelp, ModelHelp, ModelOptions

Covariances = Literal[
    "isotropic", "channel", "pixel", "dct", "pigdm", "head", "learned_range", "jacobian", "bands", "lanczos", "exact"
]
Guidances = Literal["I", "II"]
#: Those that are structures of a variance table.
OF_TABLES = ("isotropic", "channel", "pixel", "dct")
#: Those that follow the image by products with the mean's derivative, and what a table helps.
WITH_PRODUCTS = ("bands", "lanczos")
#: Covariances that are made of products with the network's derivative, which cost about an evaluation each.
OF_DERIVATIVES = (*WITH_PRODUCTS, "jacobian")

_OperatorHelp = (
    "what was measured: inpainting:mask=0.5, box:size=8, blur:sigma=1.5, super-resolution:factor=2, "
    "compressed-sensing:m=0.25, CLASS:NAME=VALUE,… of deepinv.physics, or package.module:function, which is given the "
    "images' shape"
)
_ImagesHelp = "clean images, measured here (with --measurements: their truth, to score against); " + ImagesHelp
_CovariancesHelp = (
    "Cov[x_0|x_t], comma-separated: isotropic, channel, pixel, dct of the table, pigdm, head, learned_range, jacobian "
    "(the network's own, by products), bands and lanczos (of the same, as of steps), exact (of a mixture); by default "
    "pigdm, and with a table isotropic and dct"
)


@dataclass
class RestoreOptions(ModelOptions, ImageOptions):
    """Restore images from linear measurements, by measured covariances and others side by side: pictures and scores."""

    model: Annotated[str, ModelHelp]
    operator: Annotated[str, _OperatorHelp]
    out: Annotated[Path, "folder for pictures and report, and for the cells that an interrupted run goes on from"]
    images: Annotated[str | None, _ImagesHelp] = None
    measurements: Annotated[Path | None, "npz or safetensors file of measurements, (B, …) floats called y"] = None
    noise: Annotated[float, "standard deviation of the measurements' noise, in the images' units (range -1 to 1)"] = (
        0.05
    )
    covariances: Annotated[list[Covariances] | None, _CovariancesHelp] = None
    table: Annotated[Path | None, "variance table of the model"] = None
    head: Annotated[Path | None, HeadHelp] = None
    estimator: Annotated[Estimators, "estimator of the table"] = "residual"
    pigdm_variance: Annotated[float, "of pigdm: variance of the data"] = 1.0
    guidance: Annotated[
        list[Guidances], "I (through the network, a backward pass a step), II (by the covariance), or both"
    ] = field(default_factory=lambda: ["I"])
    below: Annotated[float | None, "σ/α above which pigdm is used in any case; by default nowhere"] = None
    checkpointing: Annotated[bool, "of guidance I: less memory, and a third more time (diffusers' networks)"] = False
    steps: Annotated[list[int], "numbers of steps, comma-separated"] = field(default_factory=lambda: [20])
    spacing: Annotated[Literal["log_snr", "linspace"], "how K steps are spread over 1…N"] = "log_snr"
    eta: Annotated[float | None, "instead of tau: 1 is DDPM, 0 is DDIM"] = None
    tau: Annotated[float | None, "1 is DDPM, 0 the ODE's step, more than 1 re-noises; by default 10"] = None
    posterior_noise: Annotated[bool, "add what is left unknown given the measurement to the noise of the steps"] = False
    draws: Annotated[int, "images for each measurement; 2 or more tell what is uncertain"] = 4
    calibrate: Annotated[
        bool, "also measure which covariance explains the measurements, noise level by noise level"
    ] = False
    levels: Annotated[int, "of --calibrate: how many noise levels, even in log-SNR"] = 12
    pictures: Annotated[int | None, "of how many images pictures are written; by default of all"] = None
    batch_size: Annotated[int, "images at once"] = 64
    seed: Annotated[int, "seed of every random number, the measurements' noise and the operator's included"] = 0
    overwrite: Annotated[bool, "replace another run's report, or write beside other files"] = False

    @property
    def all_covariances(self) -> list[Covariances]:
        """Those that are compared, in their order: the first is what others are compared with."""
        if self.covariances is not None:
            return self.covariances
        return ["pigdm"] if self.table is None else ["pigdm", "isotropic", "dct"]
