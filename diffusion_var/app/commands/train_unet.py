"""Training a diffusers UNet from options: what `scripts/train_unet.py` does."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from ... import checks
from ...cards import CARD
from ...errors import InputError
from ...files import write_atomic, write_folder
from ...manifest import Manifest
from ...parallel import alone, is_first
from ..claims import train_into_folder
from ..options import ImageOptions, ImagesHelp, LicenseHelp, ReportHelp
from ..terminal import say

CHECKPOINT = "training.partial"
HEAD, TABLE, TABLE_CHECKPOINT = "head.safetensors", "table.safetensors", "table.partial"
LOGS = "logs"
_HALVING = "every block but the last halves height and width, which must stay whole"


@dataclass
class TrainUNetOptions(ImageOptions):
    """Train a diffusers UNet2DModel on images; writes a DDPMPipeline folder that every command takes as --model."""

    images: Annotated[str, "images to train on: " + ImagesHelp]
    out: Annotated[Path, "folder for the pipeline, its loss curve and, while it trains, its checkpoint"]
    held_out: Annotated[str | None, "images to report a loss on: " + ImagesHelp] = None
    unet: Annotated[str | dict[str, Any], "YAML mapping of UNet2DModel's arguments; sizes default to the images'"] = (
        field(default_factory=dict)
    )
    scheduler: Annotated[
        str | dict[str, Any],
        "YAML mapping of DDPMScheduler's arguments, of a flow FlowMatchEulerDiscreteScheduler's",
    ] = field(default_factory=dict)
    prediction: Annotated[
        Literal["epsilon", "v_prediction", "flow"], "what the network learns to return: ε, v, or the flow ε − x_0"
    ] = "epsilon"
    learned_range: Annotated[bool, "learn too where between β̃ and β variances lie (2C channels, hybrid loss)"] = False
    head: Annotated[
        Literal["npr", "sn", "ocm"] | None,
        "train a head for image-dependent variances together with the network; writes head.safetensors too",
    ] = None
    head_kind: Annotated[Literal["simple", "residual"], "size of the head"] = "simple"
    head_weight: Annotated[float, "of the head's loss beside the simple loss"] = 1.0
    head_gradient: Annotated[bool, "the head's loss trains the network too"] = True
    head_features: Annotated[str | None, "module whose input the head reads; found for diffusers UNets"] = None
    head_tolerance: Annotated[float, "tolerance of the variance table that belongs to the head"] = 0.05
    steps: Annotated[int, "optimiser steps"] = 10_000
    batch_size: Annotated[int, "images a step, over all processes together"] = 128
    learning_rate: Annotated[float, "highest learning rate (warm-up, then a cosine to zero)"] = 1e-3
    warmup_steps: Annotated[int, "steps of warm-up"] = 200
    weight_decay: Annotated[float, "weight decay of AdamW"] = 1e-4
    ema_decay: Annotated[float, "decay of the moving average of the weights, which is what is saved"] = 0.999
    mixed_precision: Annotated[Literal["no", "bf16"], "precision of the forward pass"] = "no"
    flip: Annotated[bool, "mirror half of the images left to right"] = False
    evaluate_every: Annotated[int, "steps between points of the loss curve"] = 500
    seed: Annotated[int, "seed of every random number"] = 0
    report_to: Annotated[list[str] | None, ReportHelp] = None
    license: Annotated[str | None, LicenseHelp] = None
    overwrite: Annotated[bool, "write into a folder that holds something else"] = False


def run(options: TrainUNetOptions) -> None:
    """Train and save; the same command continues an interrupted run."""
    train_into_folder("train-unet", options, CHECKPOINT, lambda this: _train(options, this))


def _train(options: TrainUNetOptions, this: str) -> None:
    from ...process.schedule import NoiseSchedule
    from ...training.hybrid_loss import step_coefficients
    from ...training.unet import UNetTraining, train_unet
    from ..model import read

    settings = UNetTraining(
        **{name: getattr(options, name) for name in UNetTraining.__dataclass_fields__}  # the same names in both
    )
    unet, scheduler = (
        _mapping("unet", options.unet),
        make_scheduler(_mapping("scheduler", options.scheduler), options.learned_range, options.prediction),
    )
    images = read(options.images, options)
    held_out = None if options.held_out is None else read(options.held_out, options)
    if held_out is not None and tuple(held_out[0].shape) != tuple(images[0].shape):
        raise InputError(
            f"held_out has images of shape {tuple(held_out[0].shape)} and images {tuple(images[0].shape)}; "
            "they must be the same."
        )
    _require_range("images", images)
    if held_out is not None:
        _require_range("held_out", held_out)
    shape, learned_range = tuple(images[0].shape), settings.learned_range
    network = make_unet(unet, shape, options.seed, learned_range)
    schedule = NoiseSchedule.from_diffusers(scheduler)
    if learned_range:
        step_coefficients(schedule)  # refuses some schedules, and now is before anything is written
    parameters = sum(p.numel() for p in network.parameters())
    say(f"training {parameters / 1e6:.2f} M parameters on {len(images)} images, {settings.steps} steps")
    result = train_unet(
        network,
        images,
        schedule,
        settings,
        held_out=held_out,
        checkpoint=options.out / CHECKPOINT,
        report_to=options.report_to,
        logs=options.out / LOGS,
    )
    if is_first():
        record = {"images": options.images, "held_out": options.held_out, "parameters": parameters}
        measured = images if held_out is None else held_out
        with alone():  # the others are done; a head's table is measured by this process
            _save(result, scheduler, {**vars(settings), **record}, Manifest(options.out, this), options, measured)


def make_unet(arguments: dict[str, Any], shape: tuple[int, ...], seed: int, learned_range: bool = False) -> Any:
    """A UNet2DModel for images of a shape (C, H, W), its initial weights from the seed alone; tried on one image.

    With a learned range it has 2C output channels.
    """
    import torch
    from diffusers.models.unets.unet_2d import UNet2DModel

    sizes = {"sample_size": shape[1] if shape[1] == shape[2] else list(shape[1:])}
    made_shape = (2 * shape[0] if learned_range else shape[0], *shape[1:])
    sizes |= {"in_channels": shape[0], "out_channels": made_shape[0]}
    for name, value in sizes.items():
        given = arguments.get(name, value)
        if given != value and given != list(shape[1:]):
            needs = "learned_range needs" if learned_range and name == "out_channels" else "the images have"
            raise InputError(f"unet.{name} is {given}, but {needs} {value}; leave it out.")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        try:
            network = UNet2DModel(**{**arguments, **sizes})
        except Exception as error:  # diffusers raises whatever a wrong argument leads to
            raise InputError(f"the unet's arguments do not make a UNet2DModel: {_first_line(error)}.") from error
        try:
            with torch.no_grad():
                made = tuple(network(torch.zeros(1, *shape), torch.ones(1)).sample.shape[1:])
        except Exception as error:
            raise InputError(
                f"the unet cannot take images of shape {shape}: {_first_line(error)}; {_HALVING}."
            ) from error
    if made != made_shape:
        raise InputError(f"the unet makes images of shape {made} from those of shape {shape}; {_HALVING}.")
    return network


def make_scheduler(arguments: dict[str, Any], learned_range: bool = False, prediction: str = "epsilon") -> Any:
    """A scheduler, which holds the noise schedule and, for samplers, what the network predicts and whether it has a
    learned range: a DDPMScheduler, of a flow a FlowMatchEulerDiscreteScheduler."""
    if prediction == "flow":
        return _flow_scheduler(arguments)
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    if arguments.get("prediction_type", prediction) != prediction:
        raise InputError(
            f"scheduler.prediction_type is {arguments['prediction_type']!r}; only {prediction!r} is trained: leave it "
            "out, or set prediction."
        )
    if prediction != "epsilon":
        arguments = {**arguments, "prediction_type": prediction}
    if arguments.get("thresholding"):
        raise InputError("scheduler.thresholding is true, which no command supports; leave it out.")
    kind = arguments.get("variance_type", "learned_range" if learned_range else "fixed_small")
    if learned_range and kind != "learned_range":
        raise InputError(
            f"scheduler.variance_type is {kind!r}, but with learned_range it is 'learned_range'; leave one of them out."
        )
    if not learned_range and str(kind).startswith("learned"):
        raise InputError(
            f"scheduler.variance_type is {kind!r}, but no variance is learned; leave it out, or set learned_range."
        )
    try:
        return DDPMScheduler(**({**arguments, "variance_type": kind} if learned_range else arguments))
    except (TypeError, ValueError, RuntimeError) as error:  # NotImplementedError is a RuntimeError
        raise InputError(f"the scheduler's arguments do not make a DDPMScheduler: {_first_line(error)}.") from error


def _flow_scheduler(arguments: dict[str, Any]) -> Any:
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

    checks.refuse(
        bool(arguments.get("invert_sigmas")),
        "scheduler.invert_sigmas is true, by which a network is taken to say x_0 − ε, but it learns ε − x_0; leave it "
        "out.",
    )
    try:
        return FlowMatchEulerDiscreteScheduler(**arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"the scheduler's arguments do not make a FlowMatchEulerDiscreteScheduler: {_first_line(error)}."
        ) from error


def _mapping(name: str, given: str | dict[str, Any]) -> dict[str, Any]:
    """A mapping from a config as it is, from a flag as YAML."""
    if isinstance(given, dict):
        return given
    from ..yaml_text import parse_yaml

    parsed = parse_yaml(given, f"--{name}")
    if not isinstance(parsed, dict):
        raise InputError(f'{name} is {checks.brief(given)}; expected a YAML mapping such as "{{layers_per_block: 1}}".')
    return parsed


def _require_range(name: str, images: Any) -> None:
    """Floats are taken as they are: those of another range than [-1, 1] would train a useless network."""
    from ...data.ranges import ROUNDED, outside_range
    from ...training.loss import float_images

    if not images[0].is_floating_point():
        return
    for start in range(0, len(images), 256):
        found = float_images(images, range(start, min(start + 256, len(images))))
        if not bool(found.isfinite().all()) or outside_range(found, (-1.0, 1.0), ROUNDED):
            raise InputError(
                f"{name} holds floats between {float(found.min()):.4g} and {float(found.max()):.4g} (images {start} to "
                f"{start + len(found) - 1}); expected 8-bit images, or floats in [-1, 1]."
            )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def _save(
    result: Any, scheduler: Any, record: dict[str, Any], manifest: Manifest, options: TrainUNetOptions, images: Any
) -> None:
    """The pipeline, its loss curve as csv and picture, a record of how it was made, and the head if there is one."""
    from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline

    from ... import plots
    from ...training.card import network_card

    folder = manifest.folder
    manifest.remove()
    pipeline = DDPMPipeline(result.network.cpu(), scheduler)
    names = write_folder(
        folder, lambda aside: pipeline.save_pretrained(aside, safe_serialization=True), last="model_index.json"
    )
    lines = ["step,train,held_out", *(f"{step},{train!r},{held_out!r}" for step, train, held_out in result.curve)]
    write_atomic(folder / "loss.csv", ("\n".join(lines) + "\n").encode())
    figure = plots.loss_curve(result.curve)
    write_atomic(folder / "loss.png", lambda file: figure.savefig(file, format="png"))
    record |= {"seconds": round(result.seconds, 1), "train_loss": result.curve[-1][1]}
    record["held_out_loss"] = None if result.curve[-1][2] != result.curve[-1][2] else result.curve[-1][2]
    names = [*names, "loss.csv", "loss.png", "training.json"]
    if result.head is not None:
        record |= {"head_loss": result.head_curve[-1][1]}
        names += _save_head(result, options, record, images)
    write_atomic(folder / "training.json", (json.dumps(record, indent=2) + "\n").encode())
    write_atomic(folder / CARD, network_card(record, options.license).encode())
    manifest.end([*names, CARD])
    (folder / CHECKPOINT).unlink(missing_ok=True)
    held_out = "" if record["held_out_loss"] is None else f", held-out loss {record['held_out_loss']:.4g}"
    if result.head is not None:
        say(f"written: {folder / HEAD} (of {folder}; loss {record['head_loss']:.4g})")
    say(f"written: {folder} (loss {record['train_loss']:.4g}{held_out}, {result.seconds / 60:.1f} minutes of training)")


def _save_head(result: Any, options: TrainUNetOptions, record: dict[str, Any], images: Any) -> list[str]:
    """The head that was trained with the pipeline in the folder, and a variance table of it; the files' names."""
    from ...covariance.head import Head
    from ...covariance.head_spec import HeadSpec
    from ...models.denoiser import Denoiser
    from ...variance.estimate import estimate

    # As a reader of the folder has it: what the head belongs to.
    denoiser, partial = Denoiser.from_pretrained(options.out), options.out / TABLE_CHECKPOINT
    table = estimate(
        *(denoiser, images, options.head_tolerance),
        seed=options.seed,
        structures=("isotropic",),
        checkpoint=partial,
    )
    spec = HeadSpec(str(options.head), options.head_kind, output="papers", module=options.head_features)
    Head(result.head.to(denoiser.device), table, spec, record).save(options.out / HEAD)
    table.save(options.out / TABLE)
    partial.unlink(missing_ok=True)
    return [HEAD, TABLE]
