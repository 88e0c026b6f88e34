"""The options of train-head."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from .options import ImagesHelp, ModelHelp, ModelOptions

Targets = Literal["npr", "sn", "ocm", "factor"]


@dataclass
class TrainHeadOptions(ModelOptions):
    """Train a head that says how much the variance of x_0 depends on the image, on a model's frozen trunk."""

    model: Annotated[str, ModelHelp]
    table: Annotated[Path, "variance table of the same model: what the head's output multiplies"]
    images: Annotated[str, "images to train on: " + ImagesHelp]
    out: Annotated[Path, "folder for the head, its curve and, while it trains, its checkpoint"]
    held_out: Annotated[str | None, "images for the curve and for --patience: " + ImagesHelp] = None
    held_out_labels: Annotated[str | None, "labels of the held-out images, file.npz:KEY; by default their own"] = None
    target: Annotated[
        Targets, "npr (right for any mean), sn, ocm; or factor: one number an image, times a structure's variances"
    ] = "npr"
    kind: Annotated[Literal["simple", "residual"], "size of the head; residual has a block that knows the time"] = (
        "simple"
    )
    structure: Annotated[Literal["dct", "pixel"] | None, "for factor: whose variances it multiplies"] = None
    output: Annotated[
        Literal["ratio", "papers"], "positive multiple of the table's variance, or the published heads' clipped output"
    ] = "ratio"
    features: Annotated[str | None, "module whose input the features are; found for diffusers UNets and DiT"] = None
    steps: Annotated[int, "optimiser steps"] = 10_000
    batch_size: Annotated[int, "images a step, over all processes together"] = 128
    learning_rate: Annotated[float, "of Adam"] = 1e-4
    rate_schedule: Annotated[Literal["constant", "cosine"], "constant, or a cosine to zero"] = "constant"
    ema_decay: Annotated[float, "decay of the moving average of the weights, which is what is saved"] = 0.9999
    weighting: Annotated[
        Literal["table", "likelihood", "papers"],
        "every index counts, or each for what it costs in bits (npr, factor), or the papers' plain squared error",
    ] = "table"
    accumulate: Annotated[int, "parts that a batch is evaluated in: less memory"] = 1
    evaluate_every: Annotated[int, "steps between points of the curve"] = 500
    patience: Annotated[int | None, "stop after so many points without a lower held-out loss; keep the best"] = None
    likelihood_images: Annotated[int, "held-out images of the curve's bits/dim; 0 for none"] = 64
    likelihood_steps: Annotated[int, "steps of the curve's bits/dim"] = 10
    seed: Annotated[int, "seed of every random number"] = 0
    download: Annotated[bool, "let torchvision download the data set"] = False
    overwrite: Annotated[bool, "write into a folder that holds something else"] = False
