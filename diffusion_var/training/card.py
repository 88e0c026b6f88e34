"""The model cards of what is trained: a network in its pipeline, a head. (Records are what `training.json` has.)"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..cards import card_text, facts_table
from ..files import expanded

_USE_NETWORK = """```python
import diffusion_var as dv

denoiser = dv.Denoiser.from_pretrained("THIS_FOLDER")                   # or diffusers' DDPMPipeline.from_pretrained
table = dv.estimate(denoiser, images)                                   # of images that it was not trained on
samples = dv.Sampler(denoiser, dv.Analytic(table, structure="dct"), steps=10, eta=0.0).sample(16)
```"""
#: What the network returns.
_PREDICTS = {"epsilon": "ε", "v_prediction": "F = α ε − σ x_0", "flow": "F = ε − x_0"}
_USE_HEAD = """```python
import diffusion_var as dv

head = dv.Head.load("head.safetensors")                                 # with what it needs of the variance table
bits = dv.bits_per_dim(denoiser, head, images, steps=10)                # denoiser: the network that it was trained on
samples = dv.Sampler(denoiser, head, steps=10).sample(16)
```"""


def network_card(record: Mapping[str, Any], license: str | None = None) -> str:
    """Of a folder of train-unet: a `DDPMPipeline`, and a head where one was trained with it."""
    head, prediction = record.get("head"), record.get("prediction", "epsilon")
    loss = "ε̂ − ε" if prediction == "epsilon" else "F̂ − F"
    facts = {
        "network": f"UNet2DModel, {record['parameters']:,} parameters, predicts {_PREDICTS[prediction]}",
        **({"variances": "learned range (2C channels)"} if record.get("learned_range") else {}),
        **({"head": f"{head}, trained with it (head.safetensors, table.safetensors)"} if head else {}),
        **_data(record),
        **_settings(record, ("steps", "batch_size", "learning_rate", "ema_decay", "flip", "mixed_precision", "seed")),
        "training loss": _number(record["train_loss"]),
        "held-out loss": _number(record.get("held_out_loss")),
        **({"loss of the head": _number(record["head_loss"])} if head else {}),
        "licence": license or "not stated",
    }
    body = (
        f"An unconditional diffusion model, its weights averaged over training. Losses are E‖{loss}‖² per dimension, "
        "averaged over the noise levels; loss.csv has their curve, training.json every setting.\n\n"
        f"{facts_table(facts)}\n\n{_USE_NETWORK}"
    )
    tags = ["diffusers", "unconditional-image-generation", "diffusion"]
    return card_text("A diffusion model", body, tags=tags, library="diffusers", license=license)


def head_card(head: Any, record: Mapping[str, Any], license: str | None = None) -> str:
    """Of a folder of train-head."""
    last = head.training.get("last") or {}
    facts = {
        "model": f"`{record['model']}`",
        "network (SHA-256 of its weights)": f"`{head.table.network}`" if head.table.network else "unknown",
        "target, size, output": f"{head.name}, {head.spec.kind}, {head.spec.output}",
        "parameters": f"{record['parameters']:,}",
        "variance table": f"`{head.table.digest}`",
        **_data(record),
        **_settings(record, ("steps", "batch_size", "learning_rate", "weighting", "ema_decay", "seed")),
        "training loss": _number(last.get("train")),
        "held-out loss": _number(last.get("held_out")),
        f"bits/dim, held-out images, K = {record['likelihood_steps']}": _number(last.get("bits_per_dim")),
        **({"stopped early": f"at step {head.training['steps_done']}"} if record.get("stopped_early") else {}),
        "licence": license or "not stated",
    }
    body = (
        "Says, from the last features of a frozen diffusion network, how uncertain the clean image is: the reverse "
        "covariance of a step (Extended-Analytic-DPM, arXiv:2206.07309; OCM, arXiv:2406.10808). It belongs "
        f"to the network named below, and refuses another.\n\n{facts_table(facts)}\n\n{_USE_HEAD}"
    )
    base = str(record["model"])
    on_hub = base.count("/") == 1 and not expanded(base).exists()
    tags = ["diffusion", "variance", "extended-analytic-dpm"]
    title = "A covariance head"
    return card_text(title, body, tags=tags, license=license, base_model=base if on_hub else None)


def _data(record: Mapping[str, Any]) -> dict[str, str]:
    held_out = record.get("held_out")
    return {"trained on": f"`{record['images']}`", "held out": f"`{held_out}`" if held_out else "none"}


def _settings(record: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, str]:
    return {"training": ", ".join(f"{name} {record[name]}" for name in names)}


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4g}"
