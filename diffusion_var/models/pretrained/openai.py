"""OpenAI's checkpoints: a state dict of improved-diffusion or guided-diffusion, with its hyper-parameters, becomes
diffusers' `UNet2DModel`, and what a `Denoiser` has to know of it.

Names and shapes tell most of a network (`openai_layout`). What they cannot tell is taken from its hyper-parameters, by
the names of the repositories' flags and with their defaults: the size of the images, the number of heads and the order
of their weights, the noise schedule, and what is predicted. Those that shapes do tell may be given too, and are
compared; those of training are passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from math import gcd
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import load_file

from ... import checks
from ...errors import InputError, printable
from ...files import expanded, regular_file
from ...process.schedule import NoiseSchedule
from ...process.steps import respaced
from ..prediction import Prediction
from .aligned import aligned
from .openai_layout import OpenAILayout, check_widths, converted

_MEANS: dict[str, Prediction] = {"epsilon": "epsilon", "start_x": "sample", "previous_x": "previous_x"}
_OF_TRAINING = ("use_checkpoint", "use_fp16", "use_kl", "rescale_learned_sigmas", "sigma_small")


@dataclass(frozen=True, kw_only=True)
class OpenAIFlags:
    """The hyper-parameters of a checkpoint, as the repositories name them; None: as the shapes say.

    Attributes:
        image_size: height and width, which no shape tells.
        num_heads, num_heads_upsample, num_head_channels: heads of each attention block, others in `output_blocks`, or
            channels of each head instead; −1 for none of it.
        use_new_attention_order: guided-diffusion's later order of queries, keys and values.
        diffusion_steps, noise_schedule: N, and "linear" or "cosine".
        timestep_respacing: the indices of them that are the model's own, as `steps.respaced` has it; "" for all.
        rescale_timesteps: whether the network is told n − 1 as of 1,000; None: it makes no difference.
        predict_xstart, model_mean_type: what is predicted: x_0, or "epsilon", "start_x", "previous_x".
    """

    image_size: int
    num_heads: int = 4
    num_heads_upsample: int = -1
    num_head_channels: int = -1
    use_new_attention_order: bool = False
    dropout: float = 0.0
    diffusion_steps: int = 1000
    noise_schedule: Literal["linear", "cosine"] = "linear"
    timestep_respacing: str = ""
    rescale_timesteps: bool | None = None
    predict_xstart: bool = False
    model_mean_type: str | None = None
    # What shapes tell.
    num_channels: int | None = None
    num_res_blocks: int | None = None
    channel_mult: tuple[float, ...] | None = None
    attention_resolutions: tuple[int, ...] | None = None
    class_cond: bool | None = None
    learn_sigma: bool | None = None
    use_scale_shift_norm: bool | None = None
    resblock_updown: bool | None = None

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> OpenAIFlags:
        """Checked; values may be texts, as on a command line. InputError, naming the entry, for what is not known."""
        checks.instance("hyperparameters", given, Mapping, "a mapping of the repository's flags to values")
        known = {field.name for field in fields(cls)}
        unknown = next((name for name in given if name not in known and name not in _OF_TRAINING), None)
        checks.refuse(
            unknown is not None,
            f"hyperparameters have an entry {checks.brief(unknown)} that is no flag of OpenAI's models; known are "
            f"{', '.join(sorted(known))}.",
        )
        missing = "hyperparameters have no image_size, which no weight tells; give it, e.g. 64."
        checks.refuse("image_size" not in given, missing)
        flags = cls(**{name: _READ[name](name, value) for name, value in given.items() if name in known})
        _check_flags(flags)
        return flags

    @property
    def prediction(self) -> Prediction:
        """What the network predicts."""
        return _MEANS[self.model_mean_type or ("start_x" if self.predict_xstart else "epsilon")]

    def schedule(self) -> NoiseSchedule:
        """Of all steps, or of those that are kept; told as the network was."""
        N, scale = self.diffusion_steps, 1000.0 / self.diffusion_steps
        linear = self.noise_schedule == "linear"
        full = NoiseSchedule.linear(N, 1e-4 * scale, 0.02 * scale) if linear else NoiseSchedule.cosine(N)
        kept = [0, *(respaced(N, self.timestep_respacing) if self.timestep_respacing else range(1, N + 1))]
        told = full.timestep * (scale if self.rescale_timesteps else 1.0)
        return NoiseSchedule(full.alpha[kept], full.sigma[kept], np.nan_to_num(told[kept]))

    def heads(self, block: str, width: int) -> int:
        """How many heads an attention block of this width has; by its name in the `UNet2DModel`."""
        if self.num_head_channels > 0:
            return width // self.num_head_channels
        return self.num_heads_upsample if block.startswith("up_") and self.num_heads_upsample > 0 else self.num_heads


def read_openai(
    path: str | Path, hyperparameters: Mapping[str, Any], dtype: torch.dtype | None = None
) -> dict[str, Any]:
    """The arguments of the `Denoiser` of a checkpoint: its network on the CPU, and what it is told; see
    `Denoiser.from_openai`."""
    flags = OpenAIFlags.of(hyperparameters)
    weights = _read(regular_file(expanded(path), "checkpoint"))
    layout, network = _network({key: tensor.to(dtype or torch.float32) for key, tensor in weights.items()}, flags, path)
    return {
        "network": network,
        "schedule": flags.schedule(),
        "prediction": flags.prediction,
        "shape": (layout.in_channels, flags.image_size, flags.image_size),
        "conditional": layout.classes is not None,
        "classes": layout.classes,
    }


def _network(state: Mapping[str, torch.Tensor], flags: OpenAIFlags, path: str | Path) -> tuple[OpenAILayout, Any]:
    """The layout of a state dict, and its module."""
    from diffusers.models.unets.unet_2d import UNet2DModel

    name = str(path)
    layout = OpenAILayout.of({key: tuple(tensor.shape) for key, tensor in state.items()}, name)
    check_widths(layout, name)
    _check_against(layout, flags, name)
    attentions = layout.attentions()
    heads = {block: flags.heads(block, width) for block, width in attentions.items()}
    _check_heads(attentions, heads, flags)
    widths = {width // heads[block] for block, width in attentions.items()}
    with torch.device("meta"):  # the weights come from the file, and none are drawn
        network = UNet2DModel(**layout.config(flags.image_size, gcd(*widths), flags.dropout))
    made = converted(state, layout, network.state_dict(), heads.__getitem__, flags.use_new_attention_order, name)
    network.load_state_dict(made, assign=True)
    if len(widths) > 1:
        _set_heads(network, heads)
    return layout, aligned(network.eval()).requires_grad_(False)


def _set_heads(network: Any, heads: Mapping[str, int]) -> None:
    """Heads of different widths, which the module can have and its config cannot say."""
    for block, count in heads.items():
        attention = network.get_submodule(block)
        attention.heads = attention.sliceable_head_dim = count
        attention.scale = (attention.inner_dim / count) ** -0.5
    network.register_to_config(heads=dict(heads))  # for whoever compares configs: it is none of the class's arguments
    network.save_pretrained = _refuse_to_save


def _refuse_to_save(*_: Any, **__: Any) -> None:
    raise InputError(
        "this network has attention heads of different widths, which the config of a UNet2DModel cannot say, so that "
        "it would be another network when it is loaded; keep OpenAI's file."
    )


# ---- the file -------------------------------------------------------------------------------------------------------


def _read(path: Path) -> dict[str, torch.Tensor]:
    """A state dict from a safetensors file, or from PyTorch's own format (weights alone: nothing in it is run)."""
    try:
        if path.suffix == ".safetensors":
            found: Any = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what damaged bytes lead to is not to be foreseen
        reason = printable((str(error).strip() or type(error).__name__).splitlines()[0], 160)
        if type(error).__name__ == "UnpicklingError":  # torch says how to run it all the same
            reason = "it is damaged, or holds more than weights"
        raise InputError(
            f"the checkpoint {path} could not be read ({reason}); expected a state dict, as a .pt file of weights "
            "alone or as safetensors."
        ) from error
    wrong = not isinstance(found, Mapping) or not found
    checks.refuse(wrong, f"the checkpoint {path} holds a {type(found).__name__}, not a state dict with weights.")
    for key, tensor in found.items():
        if not (isinstance(key, str) and isinstance(tensor, torch.Tensor) and tensor.is_floating_point()):
            raise InputError(
                f"the checkpoint {path} holds {checks.brief(key)}, a {type(tensor).__name__}, where a state dict has "
                "tensors of weights alone; save the network's state_dict()."
            )
    return dict(found)


# ---- what is refused ------------------------------------------------------------------------------------------------


def _switch(name: str, value: Any) -> bool:
    text = str(value).lower() if isinstance(value, str) else value
    for said, meant in {"true": True, "false": False}.items():
        if text is meant or text == said:
            return meant
    raise InputError(f"{name}={checks.brief(value)} must be true or false.")


def _whole(name: str, value: Any) -> int:
    text = value.strip() if isinstance(value, str) else value
    return checks.whole(name, int(text) if isinstance(text, str) and text.lstrip("-").isdecimal() else text)


def _number(name: str, value: Any) -> float:
    try:
        return checks.number(name, float(value) if isinstance(value, str) else value)
    except ValueError:
        raise InputError(f"{name}={checks.brief(value)} must be a finite number.") from None


def _numbers(name: str, value: Any) -> tuple[float, ...] | None:
    if value == "":
        return None
    parts: Any = value.split(",") if isinstance(value, str) else [value] if checks.is_number(value) else value
    checks.instance(name, parts, Sequence, 'numbers, as a list or as a text: "1,2,2"')
    return tuple(_number(name, part) for part in parts)


def _text(name: str, value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _mean_type(name: str, value: Any) -> str:
    text = value.rpartition(".")[2].lower() if isinstance(value, str) else value
    found: str = checks.one_of(name, text, _MEANS)
    return found


def _schedule_name(name: str, value: Any) -> str:
    found: str = checks.one_of(name, value, ("linear", "cosine"))
    return found


_READ: dict[str, Callable[[str, Any], Any]] = {
    **dict.fromkeys(("image_size", "num_heads", "num_heads_upsample", "num_head_channels"), _whole),
    **dict.fromkeys(("diffusion_steps", "num_channels", "num_res_blocks"), _whole),
    **dict.fromkeys(("use_new_attention_order", "rescale_timesteps", "predict_xstart", "class_cond"), _switch),
    **dict.fromkeys(("learn_sigma", "use_scale_shift_norm", "resblock_updown"), _switch),
    **dict.fromkeys(("channel_mult", "attention_resolutions"), _numbers),
    "dropout": _number,
    "timestep_respacing": _text,
    "noise_schedule": _schedule_name,
    "model_mean_type": _mean_type,
}


def _check_flags(flags: OpenAIFlags) -> None:
    checks.whole("image_size", flags.image_size, least=1)
    checks.whole("num_heads", flags.num_heads, least=1)
    checks.whole("diffusion_steps", flags.diffusion_steps, least=1)
    checks.interval("dropout", flags.dropout, 0.0, 1.0, "it is a probability")
    for name in ("num_heads_upsample", "num_head_channels"):
        value = getattr(flags, name)
        checks.refuse(value != -1 and value < 1, f"{name}={value} must be a number of at least 1, or -1 for none.")
    if flags.diffusion_steps <= 20 and flags.noise_schedule == "linear":
        raise InputError(
            f"diffusion_steps={flags.diffusion_steps} are too few for the noise schedule linear, whose last beta would "
            f"be {20 / flags.diffusion_steps:g}; take more than 20, or cosine."
        )
    if flags.diffusion_steps != 1000 and flags.rescale_timesteps is None:
        raise InputError(
            f"diffusion_steps={flags.diffusion_steps} needs rescale_timesteps too, whether the network is told its "
            "steps as of 1,000; improved-diffusion's default is true, guided-diffusion's false."
        )
    mean = flags.model_mean_type
    checks.refuse(
        mean is not None and flags.predict_xstart and mean != "start_x",
        f"model_mean_type={mean} and predict_xstart=true contradict each other; leave one of them out.",
    )


def _check_against(layout: OpenAILayout, flags: OpenAIFlags, name: str) -> None:
    """Refuse hyper-parameters that are not those of the weights."""
    base = layout.channels[0]
    halvings = 2 ** (len(layout.channels) - 1)
    checks.refuse(
        flags.image_size % halvings != 0,
        f"image_size={flags.image_size} must be a multiple of {halvings}: {name} has {len(layout.channels)} levels.",
    )
    sizes = tuple(flags.image_size // 2**level for level, at in enumerate(layout.attention) if at)
    told = {
        "num_channels": base,
        "num_res_blocks": layout.res_blocks,
        "channel_mult": tuple(width / base for width in layout.channels),
        "class_cond": layout.classes is not None,
        "learn_sigma": layout.out_channels == 2 * layout.in_channels,
        "use_scale_shift_norm": layout.scale_shift,
        "resblock_updown": layout.updown,
    }
    if len(layout.channels) == 1:
        del told["resblock_updown"]  # nothing is halved
    given = {key: getattr(flags, key) for key in told}
    if flags.attention_resolutions is not None:  # some may be of no level
        told["attention_resolutions"] = sorted(sizes)
        every = {flags.image_size // 2**level for level in range(len(layout.channels))}
        given["attention_resolutions"] = sorted({int(size) for size in flags.attention_resolutions} & every)
    for key, value in told.items():
        if given[key] is not None and given[key] != value:
            raise InputError(
                f"{key}={_shown(given[key])} is not what the weights of {name} say, {_shown(value)}; leave it out, or "
                "give the checkpoint's own hyper-parameters."
            )


def _check_heads(attentions: Mapping[str, int], heads: Mapping[str, int], flags: OpenAIFlags) -> None:
    for block, width in attentions.items():
        if (
            heads[block] < 1
            or width % heads[block]
            or (flags.num_head_channels > 0 and width % flags.num_head_channels)
        ):
            said = (
                f"num_head_channels={flags.num_head_channels}"
                if flags.num_head_channels > 0
                else f"num_heads={heads[block]}"
            )
            raise InputError(
                f"{said} does not divide the {width} channels of an attention block; give the checkpoint's own "
                "hyper-parameters."
            )


def _shown(value: Any) -> str:
    return ",".join(f"{part:g}" for part in value) if isinstance(value, list | tuple) else str(value).lower()
