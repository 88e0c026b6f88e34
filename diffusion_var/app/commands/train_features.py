"""Training a feature classifier from options: what `scripts/train_features.py` does."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from ...errors import InputError
from ...files import make_folder
from ...progress import progress_bar
from ..claims import claimed_file, run_identity
from ..options import DeviceHelp, ImageOptions, ImagesHelp, Positional
from ..outputs import require_writable
from ..terminal import say

if TYPE_CHECKING:
    import torch

    from ...metrics.classifier import ClassifierFeatures

    Labelled = tuple[torch.Tensor, torch.Tensor]

LabelsHelp = "npz or npy of their classes, file.npz:KEY; needed for arrays (folders and zips have their own)"


@dataclass
class TrainFeaturesOptions(ImageOptions):
    """Train a small classifier whose last hidden layer serves as features for FID, KID, precision and recall."""

    images: Annotated[str, "labelled images to train on: " + ImagesHelp, Positional]
    out: Annotated[Path, "file to write, ending in .safetensors"]
    labels: Annotated[str | None, LabelsHelp] = None
    held_out: Annotated[str | None, "labelled images to measure the accuracy on; by default a tenth of the images"] = (
        None
    )
    held_out_labels: Annotated[str | None, LabelsHelp] = None
    name: Annotated[str | None, "what scores call these features; by default the file's name"] = None
    epochs: Annotated[int, "passes over the images"] = 20
    batch_size: Annotated[int, "images a step"] = 128
    learning_rate: Annotated[float, "highest learning rate (a cosine to zero)"] = 2e-3
    noise: Annotated[float, "noise of the augmentation, in units of [-1, 1]"] = 0.1
    width: Annotated[int, "channels of the first layer, a multiple of 8"] = 32
    dimension: Annotated[int, "number of features"] = 64
    bf16: Annotated[bool, "compute in bfloat16; faster on most recent processors"] = False
    seed: Annotated[int, "seed of every random number"] = 0
    device: Annotated[str | None, DeviceHelp] = None
    overwrite: Annotated[bool, "replace an existing file"] = False


def run(options: TrainFeaturesOptions) -> ClassifierFeatures:
    """Train, measure and write the network that the options ask for; or read it, where it was finished before."""
    from ...metrics.classifier import read_features

    if options.out.suffix.lower() != ".safetensors":
        raise InputError(f"the output {options.out} does not end in .safetensors; give the file that suffix.")
    require_writable(options.out.parent)
    make_folder(options.out.parent)
    this = run_identity("train-features", options)
    with claimed_file(options.out, this, lambda path: read_features(path).run, options.overwrite) as finished:
        return read_features(options.out) if finished else _train(options, this)


def _train(options: TrainFeaturesOptions, this: str) -> ClassifierFeatures:
    import torch

    from ...metrics.classifier import ClassifierFeatures, save_features
    from ...training.classifier import accuracy, train_classifier
    from ..model import open_device

    start = time.perf_counter()
    device = open_device(options.device)
    (images, labels), test = _parts(options)
    classes = int(max(labels.max(), test[1].max())) + 1
    if len(set(labels.tolist())) < 2:
        raise InputError(f"{options.images} has images of one class only; expected at least two.")
    channels, height, width = images.shape[1:]
    network = ClassifierFeatures(
        *(channels, (height, width), classes, options.width, options.dimension),
        name=options.name or options.out.stem,
        seed=options.seed,
    ).to(device)
    say(f"{len(images)} images {tuple(images.shape[1:])} of {classes} classes; {len(test[0])} held out")
    train_classifier(
        network,
        images,
        labels,
        epochs=options.epochs,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        noise=options.noise,
        autocast=torch.bfloat16 if options.bf16 else None,
        seed=options.seed,
    )
    network.accuracy, network.images, network.run = accuracy(network, *test), options.images, this
    save_features(network, options.out)
    seconds = time.perf_counter() - start
    say(f"held-out accuracy {network.accuracy}, {seconds:.0f} s; written: {options.out}")
    return network


def hold_out(labelled: Labelled, seed: int) -> tuple[Labelled, Labelled]:
    """Nine tenths to train on and the rest, at least one image, drawn by the seed."""
    import torch

    from ...randomness import generator

    images, labels = labelled
    if len(images) < 2:
        raise InputError("there is 1 image, so none can be held out; pass more images.")
    order = torch.from_numpy(generator(seed, "held-out images").permutation(len(images)))
    held_out, train = order[: max(1, len(images) // 10)], order[max(1, len(images) // 10) :]
    return (images[train], labels[train]), (images[held_out], labels[held_out])


def _parts(options: TrainFeaturesOptions) -> tuple[Labelled, Labelled]:
    """What to train on, and what to measure on."""
    if options.held_out is None and options.held_out_labels is not None:
        raise InputError("held_out_labels is given without held_out; pass both.")
    labelled = _read(options.images, options.labels, options)
    if options.held_out is None:
        return hold_out(labelled, options.seed)
    test = _read(options.held_out, options.held_out_labels, options)
    if test[0].shape[1:] != labelled[0].shape[1:]:
        raise InputError(
            f"the held-out images have shape {tuple(test[0].shape[1:])}, those to train on "
            f"{tuple(labelled[0].shape[1:])}; expected the same."
        )
    return labelled, test


def _read(images: str, labels: str | None, options: TrainFeaturesOptions) -> Labelled:
    """All images as one uint8 tensor (N, C, H, W), and their classes (N,)."""
    import torch

    from ...data.labels import open_labels
    from ..model import read

    source = read(images, options)
    classes = open_labels(images, labels, options.download)
    if len(source) != len(classes):
        raise InputError(
            f"{images} holds {len(source)} images but {len(classes)} labels; expected one label per image."
        )
    if not isinstance(source, torch.Tensor):
        with progress_bar(len(source), "reading", "image", leave=False) as bar:
            pixels = []
            for index in range(len(source)):
                pixels.append(_pixels(source[index], f"image {index} of {images}"))
                bar.update()
        source = torch.stack(pixels)
    return source, classes


def _pixels(image: torch.Tensor, name: str) -> torch.Tensor:
    """As uint8. Floats are taken to lie in [-1, 1], and refused elsewhere."""
    from ...data.images import to_uint8
    from ...data.ranges import ROUNDED, outside_range

    if image.is_floating_point() and (outside := outside_range(image[None], (-1.0, 1.0), ROUNDED)):
        raise InputError(
            f"{name} has values from {outside.least:.4g} to {outside.most:.4g}; expected 8-bit images, or floats in "
            "[-1, 1]."
        )
    return to_uint8(image)
