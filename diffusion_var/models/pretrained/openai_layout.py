"""The layout of OpenAI's UNets (improved-diffusion's and guided-diffusion's `UNetModel`), read from a state dict's
names and shapes, and where each of their weights goes in diffusers' `UNet2DModel`.

Both are DDPM's UNet with other names, and with these conventions in common: groups of 32 channels, timesteps as cosines
before sines, scale and shift as h (1 + a) + b, queries and keys each scaled by the fourth root of a head's width.
Theirs number the blocks of all levels through: a level of R residual blocks is

    input_blocks     R × (residual, attention?), then a block that halves the size, but for the last level
    output_blocks    R + 1 × (residual, attention?), the last of which doubles the size, but for the first level

where halving and doubling are convolutions (`op`, `conv`) or residual blocks of their own (resblock_updown). One
convolution of an attention block gives queries, keys and values: head by head (q, k, v of the first head, …), or with
the new attention order all queries first.

What `UNet2DModel` cannot be: halving by averages (conv_resample=False), 3 × 3 convolutions in skip connections, a first
level of another width than the timesteps' embedding (channel_mult beginning with 0.5), channels that are no multiple of
32, images with other than two axes. Heads of different widths (`num_heads` at levels of different widths) it can be,
but its config cannot say so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ... import checks
from ...errors import InputError, printable

Shapes = Mapping[str, tuple[int, ...]]
_GROUPS = 32
_RESIDUAL = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_ATTENTION = {"norm": "group_norm", "qkv": "to_q to_k to_v", "proj_out": "to_out.0"}


@dataclass(frozen=True)
class OpenAILayout:
    """What names and shapes tell of a UNet; `channels` and `attention` are of each level, the finest first."""

    in_channels: int
    out_channels: int
    channels: tuple[int, ...]
    attention: tuple[bool, ...]
    res_blocks: int
    scale_shift: bool
    updown: bool
    classes: int | None

    @classmethod
    def of(cls, shapes: Shapes, name: str) -> OpenAILayout:
        """The layout of a state dict called `name`; InputError, naming a key, for what is no such network's."""
        look = _Shapes(shapes, name)
        blocks = look.count("output_blocks.{}.0.in_layers.2.weight")
        doubling = [i for i in range(blocks) if look.doubles(i)]
        per_level = doubling[0] + 1 if doubling else blocks
        firsts = [f"output_blocks.{i}" for i in reversed(range(0, blocks, per_level))]
        look.check_halving()
        out = look.shape(f"{firsts[0]}.0.in_layers.2.weight", 4)[0]
        return cls(
            in_channels=look.shape("input_blocks.0.0.weight", 4)[1],
            out_channels=look.shape("out.2.weight", 4)[0],
            channels=tuple(look.shape(f"{first}.0.in_layers.2.weight", 4)[0] for first in firsts),
            attention=tuple(f"{first}.1.qkv.weight" in shapes for first in firsts),
            res_blocks=per_level - 1,
            scale_shift=look.shape(f"{firsts[0]}.0.emb_layers.1.weight", 2)[0] == 2 * out,
            updown=any(f"output_blocks.{i}.{j}.in_layers.0.weight" in shapes for i in doubling for j in (1, 2)),
            classes=look.shape("label_emb.weight", 2)[0] if "label_emb.weight" in shapes else None,
        )

    # ---- the module -----------------------------------------------------------------------------------------------

    def config(self, image_size: int, head_width: int, dropout: float = 0.0) -> dict[str, Any]:
        """The arguments of its `UNet2DModel`; `head_width` where all heads have the same."""
        down, up = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D") if self.updown else ("DownBlock2D", "UpBlock2D")
        halving = "resnet" if self.updown else "conv"
        return {
            "sample_size": image_size,
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "block_out_channels": self.channels,
            "layers_per_block": self.res_blocks,
            "down_block_types": tuple("AttnDownBlock2D" if at else down for at in self.attention),
            "up_block_types": tuple("AttnUpBlock2D" if at else up for at in reversed(self.attention)),
            "downsample_type": halving,
            "upsample_type": halving,
            "resnet_time_scale_shift": "scale_shift" if self.scale_shift else "default",
            "attention_head_dim": head_width,
            "attn_norm_num_groups": _GROUPS,
            "norm_num_groups": _GROUPS,
            "norm_eps": 1e-5,
            "freq_shift": 0,
            "flip_sin_to_cos": True,
            "dropout": dropout,
            "num_class_embeds": self.classes,
        }

    def attentions(self) -> dict[str, int]:
        """The width of each attention block, by its name in the `UNet2DModel`."""
        last = len(self.channels) - 1
        found = {"mid_block.attentions.0": self.channels[-1]}
        for level, width in enumerate(self.channels):
            if self.attention[level]:
                found |= {f"down_blocks.{level}.attentions.{j}": width for j in range(self.res_blocks)}
                found |= {f"up_blocks.{last - level}.attentions.{j}": width for j in range(self.res_blocks + 1)}
        return found

    def parts(self) -> Iterator[tuple[str, str]]:
        """(theirs, ours) of every layer with weights, in their order; ours are three names for queries, keys and
        values, and may be none of the module's (skip connections)."""
        yield from (("time_embed.0", "time_embedding.linear_1"), ("time_embed.2", "time_embedding.linear_2"))
        yield from (("label_emb", "class_embedding"), ("input_blocks.0.0", "conv_in"))
        last, block = len(self.channels) - 1, 1
        for level, at in enumerate(self.attention):
            for j in range(self.res_blocks):
                yield from _residual(f"input_blocks.{block}.0", f"down_blocks.{level}.resnets.{j}")
                if at:
                    yield from _attention(f"input_blocks.{block}.1", f"down_blocks.{level}.attentions.{j}")
                block += 1
            if level < last:
                yield from self._resampling(f"input_blocks.{block}.0", f"down_blocks.{level}.downsamplers.0", "op")
                block += 1
        yield from _residual("middle_block.0", "mid_block.resnets.0")
        yield from _attention("middle_block.1", "mid_block.attentions.0")
        yield from _residual("middle_block.2", "mid_block.resnets.1")
        for level, at in enumerate(reversed(self.attention)):
            for j in range(self.res_blocks + 1):
                block = level * (self.res_blocks + 1) + j
                yield from _residual(f"output_blocks.{block}.0", f"up_blocks.{level}.resnets.{j}")
                if at:
                    yield from _attention(f"output_blocks.{block}.1", f"up_blocks.{level}.attentions.{j}")
            if level < last:
                yield from self._resampling(
                    f"output_blocks.{block}.{1 + at}", f"up_blocks.{level}.upsamplers.0", "conv"
                )
        yield from (("out.0", "conv_norm_out"), ("out.2", "conv_out"))

    def _resampling(self, theirs: str, ours: str, name: str) -> Iterator[tuple[str, str]]:
        return _residual(theirs, ours) if self.updown else iter([(f"{theirs}.{name}", f"{ours}.conv")])


def _residual(theirs: str, ours: str) -> Iterator[tuple[str, str]]:
    return ((f"{theirs}.{a}", f"{ours}.{b}") for a, b in _RESIDUAL.items())


def _attention(theirs: str, ours: str) -> Iterator[tuple[str, str]]:
    return ((f"{theirs}.{a}", " ".join(f"{ours}.{one}" for one in b.split())) for a, b in _ATTENTION.items())


def converted(
    state: Mapping[str, torch.Tensor],
    layout: OpenAILayout,
    ours: Mapping[str, torch.Tensor],
    heads: Callable[[str], int],
    new_order: bool,
    name: str,
) -> dict[str, torch.Tensor]:
    """The state dict of the `UNet2DModel` of a layout.

    Args:
        state: OpenAI's, called `name` in messages.
        ours: the module's own, for its names and shapes.
        heads: how many heads an attention block of the module has, by its name.
        new_order: whether all queries come first, instead of head by head.

    Raises InputError, naming the first key that does not fit, where the two differ.
    """
    made: dict[str, torch.Tensor] = {}
    known: set[str] = set()
    for layer, names in layout.parts():
        for kind in ("weight", "bias"):
            targets = [f"{one}.{kind}" for one in names.split() if f"{one}.{kind}" in ours]
            if not targets:
                continue
            key, shape = f"{layer}.{kind}", tuple(ours[targets[0]].shape)
            known.add(key)
            expected = (len(targets) * shape[0], *shape[1:])
            conv = layer.endswith((".qkv", ".proj_out")) and kind == "weight"  # over positions: a last axis of 1
            tensor = state.get(key)
            found = None if tensor is None else tuple(tensor.shape)
            fits = tensor is not None and (found == expected or (conv and found == (*expected, 1)))
            _check(fits, name, key, found, (*expected, 1) if conv else expected)
            assert tensor is not None
            if len(targets) == 1:
                made[targets[0]] = tensor.reshape(shape)
            else:
                block = names.split()[0].rpartition(".")[0]
                made |= zip(targets, _queries_keys_values(tensor, shape, heads(block), new_order), strict=True)
    unknown = next((key for key in state if key not in known), None)
    _check(unknown is None, name, unknown, None if unknown is None else tuple(state[unknown].shape), None)
    assert made.keys() == ours.keys()
    return made


def _queries_keys_values(
    tensor: torch.Tensor, shape: tuple[int, ...], heads: int, new_order: bool
) -> Iterator[torch.Tensor]:
    """Three tensors of this shape, whose first axis is head by head."""
    width = shape[0] // heads
    split = tensor.reshape(3, heads, width, -1) if new_order else tensor.reshape(heads, 3, width, -1).transpose(0, 1)
    return (one.reshape(shape).contiguous() for one in split)


# ---- what is refused ------------------------------------------------------------------------------------------------


class _Shapes:
    """Looks up shapes, and refuses what cannot be found."""

    def __init__(self, shapes: Shapes, name: str) -> None:
        self._shapes, self._name = shapes, name

    def shape(self, key: str, axes: int) -> tuple[int, ...]:
        found = self._shapes.get(key)
        fits = found is not None and len(found) == axes and math.prod(found) > 0
        _check(fits, self._name, key, found, f"{axes} axes", next(iter(self._shapes), ""))
        assert found is not None
        return found

    def count(self, pattern: str) -> int:
        self.shape(pattern.format(0), 4)
        return next(i for i in range(1, len(self._shapes) + 1) if pattern.format(i) not in self._shapes)

    def doubles(self, block: int) -> bool:
        names = [f"output_blocks.{block}.{j}.{part}.weight" for j in (1, 2) for part in ("conv", "in_layers.0")]
        return any(name in self._shapes for name in names)

    def check_halving(self) -> None:
        """Refuse networks that halve by averages: a number of their input_blocks has no weights."""
        numbers = {key.split(".")[1] for key in self._shapes if key.startswith("input_blocks.")}
        missing = next((i for i in range(len(numbers)) if str(i) not in numbers), None)
        checks.refuse(
            missing is not None,
            f"{self._name} has no weights for input_blocks.{missing}: it halves its images by averages "
            "(conv_resample=False), for which diffusers' UNet2DModel has no block.",
        )


def check_widths(layout: OpenAILayout, name: str) -> None:
    """Refuse channels that are no multiple of the groups of 32 that they are normalised in, and odd outputs."""
    odd = next((width for width in layout.channels if width % _GROUPS), None)
    checks.refuse(
        odd is not None,
        f"{name} has a level of {odd} channels, but they are normalised in groups of {_GROUPS}, of which it must be a "
        "multiple; it is another network's.",
    )
    checks.refuse(layout.res_blocks < 1, f"{name} has no residual blocks in input_blocks; it is another network's.")
    checks.refuse(
        layout.out_channels not in (layout.in_channels, 2 * layout.in_channels),
        f"{name} takes {layout.in_channels} channels (input_blocks.0.0.weight) and returns {layout.out_channels} "
        "(out.2.weight), but the same number or twice as many are expected; networks that take a second image, for "
        "super-resolution, are not supported.",
    )


def _check(
    fits: bool, name: str, key: str | None, found: tuple[int, ...] | None, expected: Any, first: str = ""
) -> None:
    if fits:
        return
    if expected is None:
        raise InputError(
            f"{name} is no state dict of OpenAI's UNet of its size: it has a key {key}, of shape {found}, that such a "
            "network has not."
        )
    what = f"shape {expected}" if isinstance(expected, tuple) else expected
    has = f"its key {key} has shape {found}" if found is not None else f"it has no key {key}"
    also = f" (its first is {printable(first, 100)})" if first and found is None else ""
    raise InputError(
        f"{name} is no state dict of OpenAI's UNet that diffusers' could be: {has}{also}, but one of {what} is "
        "expected."
    )
