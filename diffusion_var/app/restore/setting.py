"""What all cells of a restoration share: the model, the operator, the measurements, and the truth where it is known."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import metadata
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ... import checks
from ...covariance.analytic import Analytic
from ...covariance.exact import ExactCovariance
from ...covariance.head import Head
from ...covariance.jacobian import Jacobian
from ...covariance.lanczos import Lanczos
from ...covariance.learned_range import LearnedRange
from ...covariance.pigdm import PiGDM
from ...data.fixed_images import FixedImages
from ...data.images import writable_shape
from ...metrics.paired import SSIM_SIDE, why_no_lpips
from ...process.steps import linspace
from ...restoration.conditioned import ConditionedDenoiser
from ...restoration.jacobian import NetworkJacobian
from ...restoration.measurement import Measurement
from ...restoration.operators import Operator, OperatorName, parse_operator
from ...restoration.restore import restoring_sampler
from ...sampling.sampler import Sampler
from ...variance.table import VarianceTable
from ..compare.exact import mixture_of
from ..model import Model, check_model_options, open_model, open_schedule, read
from .measurements import kept, measured, read_measurements
from .options import OF_TABLES, WITH_PRODUCTS, RestoreOptions


@dataclass(frozen=True)
class Setting:
    """What is restored.

    Attributes:
        operator: on the model's images.
        y: (B, *m), on the model's device.
        truth: (B, C, H, W) float32 in the images' range, on the CPU; None where it is not known.
    """

    options: RestoreOptions
    model: Model
    operator: Operator
    y: torch.Tensor
    truth: torch.Tensor | None
    table: VarianceTable | None

    @property
    def rows(self) -> int:
        """B, how many measurements there are."""
        return len(self.y)

    @cached_property
    def measurement(self) -> Measurement:
        """All measurements; of a latent model through its decoder."""
        return self.operator.measurement(self.y, self.options.noise, through=self.model.denoiser.codec)

    @cached_property
    def seen(self) -> torch.Tensor:
        """Which elements (*m) of a measurement the operator sees, on the CPU."""
        return self.measurement.seen(self.model.image_shape, self.y.dtype).cpu()

    def denoiser(self, covariance: str, guidance: Any) -> ConditionedDenoiser:
        """The model that follows the measurements, by a covariance's name."""
        options = self.options
        found = make_covariance(covariance, options, self.table, self.model)
        return ConditionedDenoiser(
            self.model.denoiser,
            found,
            self.measurement,
            guidance,
            below=None if covariance == "jacobian" else options.below,
            checkpointing=options.checkpointing,
        )

    def with_kept(self, folder: Path) -> Setting:
        """The same, with the measurements that were made of the same images before, if there are any."""
        if self.options.measurements is not None:
            return self
        options = self.options
        identity = {
            "operator": [options.operator, self.operator.source],
            "noise": options.noise,
            "seed": options.seed,
            "truth": self.truth_digest,
        }
        return replace(self, y=kept(self.y, folder, identity))

    def sampler(self, denoiser: ConditionedDenoiser, steps: int) -> Sampler:
        """As `restore` has it."""
        options = self.options
        noise = denoiser.posterior_noise() if options.posterior_noise else None
        return restoring_sampler(denoiser, noise, steps, options.eta, options.tau, options.spacing)

    def conditions(self, rows: Sequence[int] | None = None) -> Any:
        """The conditions of measurements (by default of all), by slices; None for a model without."""
        return self.model.sample_conditions(range(self.rows) if rows is None else rows)

    @cached_property
    def metrics(self) -> tuple[list[str], list[str]]:
        """What images are scored by against the truth, and sentences on what they are not."""
        if self.truth is None:
            return [], []
        shape, names, without = self.model.image_shape, ["psnr"], []
        if find_spec("torchmetrics") is None:
            return names, ["SSIM and LPIPS need torchmetrics: pip install 'diffusion-var[restoration]'"]
        if min(shape[1:]) < SSIM_SIDE:
            without.append(f"SSIM needs images with sides of at least {SSIM_SIDE}, but these are {shape}")
        else:
            names.append("ssim")
        if (reason := why_no_lpips(shape)) is None:
            names.append("lpips")
        else:
            without.append(reason)
        return names, without

    @cached_property
    def truth_digest(self) -> str | None:
        """SHA-256 of the true images."""
        return None if self.truth is None else hashlib.sha256(self.truth.numpy().tobytes()).hexdigest()

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What decides every cell, as plain data."""
        return {
            "version": metadata.version("diffusion-var"),
            **self.model.denoiser.identity().plain(),
            "dtype": self.options.dtype,
            "operator": [self.options.operator, self.operator.source],
            "measurement": self.measurement.digest,
            "truth": self.truth_digest,
            "conditions": self.model.conditions_digest,
            "seed": self.options.seed,
            "metrics": self.metrics[0],
        }


def open_setting(options: RestoreOptions) -> Setting:
    """Everything that a restoration needs; what can be wrong without the model is told before it is loaded.

    Raises InputError for options that cannot be carried out.
    """
    check_model_options(options)
    _check(options)
    table = None if options.table is None else VarianceTable.load(options.table)
    for name in options.all_covariances:
        if name not in ("exact", "jacobian"):
            make_covariance(name, options, table, None)
    images = None if options.images is None else read(options.images, options)
    y = None if options.measurements is None else read_measurements(options.measurements)
    schedule = open_schedule(options.model, options)
    for k in options.steps:
        linspace(schedule, k)
    operator = parse_operator(options.operator)
    model = open_model(options.model, options)
    return _opened(options, model, operator, images, y, table)


def _opened(
    options: RestoreOptions, model: Model, name: OperatorName, images: Any, y: torch.Tensor | None, table: Any
) -> Setting:
    writable_shape(f"the images of {options.model}", model.image_shape)
    checks.refuse(
        options.calibrate and model.denoiser.codec is not None,
        "--calibrate is for models on pixels, and this one works on latents; leave it out.",
    )
    device = model.denoiser.device
    operator = name.open(model.image_shape, options.seed, device)
    truth = None
    if images is not None:
        source = FixedImages(images, model.image_shape, model.image_range)
        truth = source.take(np.arange(len(source)))
    if y is None:
        assert truth is not None
        y = measured(operator, truth, options, device)
    differ = truth is not None and len(truth) != len(y)
    checks.refuse(
        differ, f"there are {len(y)} measurements and {0 if truth is None else len(truth)} images; give each its truth."
    )
    model.sample_conditions([0])  # refuses what is missing before the work
    setting = Setting(options, model, operator, y.to(device), truth, table)
    for covariance, guidance in product(options.all_covariances, options.guidance):
        setting.sampler(setting.denoiser(covariance, guidance), options.steps[0])
    return setting


def _check(options: RestoreOptions) -> None:
    """Refuse what is wrong in itself."""
    checks.refuse(
        options.images is None and options.measurements is None,
        "there is nothing to restore; give clean images, which are measured here (--images), or measurements "
        "(--measurements).",
    )
    checks.refuse(
        options.calibrate and options.images is None,
        "--calibrate compares measurements with noisy versions of the true images; give these as --images.",
    )
    lists: list[tuple[str, Any]] = [("steps", options.steps), ("guidance", options.guidance)]
    for name, values in (*lists, ("covariances", options.all_covariances)):
        wrong = not values or len({*values}) != len(values)
        checks.refuse(wrong, f"{name} must hold at least one value and none twice, but it is {checks.brief(values)}.")
    for name, least in (("draws", 1), ("batch_size", 1), ("levels", 2)):
        checks.whole(name, getattr(options, name), least)
    checks.number("noise", options.noise, "a standard deviation of at least 0", least=0.0)
    if options.pictures is not None:
        checks.whole("pictures", options.pictures, 0)
    for name in ("labels", "latents"):
        given = getattr(options, name) is not None
        checks.refuse(given, f"--{name} is for the images of a variance table, and has no meaning here; leave it out.")
    unlike = options.posterior_noise and "jacobian" in options.all_covariances
    checks.refuse(
        unlike,
        "--posterior-noise needs covariances that can be drawn from, and jacobian is none; leave out one of the two.",
    )
    unused = options.table is not None and not {*OF_TABLES, *WITH_PRODUCTS} & {*options.all_covariances}
    checks.refuse(
        unused, f"--table has no meaning with --covariances {','.join(options.all_covariances)}; leave it out."
    )
    unused = options.head is not None and "head" not in options.all_covariances
    checks.refuse(unused, "--head has no meaning without the covariance head; add it to --covariances.")


def make_covariance(name: str, options: RestoreOptions, table: VarianceTable | None, model: Model | None) -> Any:
    """Cov[x_0|x_t] by its name; `model` is asked for by the exact one alone."""
    if name in OF_TABLES:
        missing = f"the covariance {name} needs a variance table; give one as table= (`diffusion-var estimate`)."
        return Analytic(checks.given(table, missing), options.estimator, name)
    if name == "pigdm":
        return PiGDM(options.pigdm_variance)
    if name == "head":
        missing = "the covariance head needs a trained head; give its file as head= (`diffusion-var train-head`)."
        return Head.load(checks.given(options.head, missing))
    if name == "learned_range":
        return LearnedRange()
    if name == "jacobian":
        return NetworkJacobian()
    if name == "bands":
        return Jacobian(table)
    if name == "lanczos":
        return Lanczos(table)
    assert model is not None
    return ExactCovariance(mixture_of(model.denoiser, name), per_image=True)
