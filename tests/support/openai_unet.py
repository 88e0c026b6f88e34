"""OpenAI's UNet written out plainly from its published architecture, with the names of their checkpoints.

Improved DDPM (arXiv:2102.09672) and Dhariwal and Nichol (arXiv:2105.05233, on its architecture). It is slow and has no
options of training; what diffusers' module gives for the same weights is compared with it.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A network's hyper-parameters."""

    channels: int = 32
    mult: tuple[float, ...] = (1, 2)
    res_blocks: int = 1
    attention: tuple[int, ...] = (2,)  # at these factors of halving
    heads: int = 4
    heads_up: int = -1
    head_channels: int = -1
    new_order: bool = False
    scale_shift: bool = True
    updown: bool = False
    conv_resample: bool = True
    classes: int | None = None
    images: int = 3
    out: int = 3

    def heads_of(self, width: int, up: bool = False) -> int:
        if self.head_channels != -1:
            return width // self.head_channels
        return self.heads_up if up and self.heads_up != -1 else self.heads


def embedding(timestep: torch.Tensor, width: int) -> torch.Tensor:
    half = width // 2
    rates = torch.tensor([10000 ** (-i / half) for i in range(half)])
    angles = timestep.float().reshape(-1, 1) * rates
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class Residual(nn.Module):
    def __init__(self, kind: Kind, width: int, out: int, change: str = "") -> None:
        super().__init__()
        self.change, self.scale_shift = change, kind.scale_shift
        told = 4 * kind.channels
        self.in_layers = nn.ModuleList([nn.GroupNorm(32, width), nn.SiLU(), nn.Conv2d(width, out, 3, padding=1)])
        self.emb_layers = nn.ModuleList([nn.SiLU(), nn.Linear(told, out * (2 if kind.scale_shift else 1))])
        last = nn.Conv2d(out, out, 3, padding=1)
        self.out_layers = nn.ModuleList([nn.GroupNorm(32, out), nn.SiLU(), nn.Dropout(0.3), last])
        self.skip_connection = nn.Identity() if width == out else nn.Conv2d(width, out, 1)

    def resized(self, x: torch.Tensor) -> torch.Tensor:
        if self.change == "up":
            return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        return F.avg_pool2d(x, 2) if self.change == "down" else x

    def forward(self, x: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
        h = self.in_layers[2](self.resized(F.silu(self.in_layers[0](x))))
        told = self.emb_layers[1](F.silu(told))[:, :, None, None]
        if self.scale_shift:
            scale, shift = told[:, : h.shape[1]], told[:, h.shape[1] :]
            h = self.out_layers[0](h) * (1 + scale) + shift
        else:
            h = self.out_layers[0](h + told)
        return self.skip_connection(self.resized(x)) + self.out_layers[3](self.out_layers[2](F.silu(h)))


class Attention(nn.Module):
    def __init__(self, kind: Kind, width: int, up: bool = False) -> None:
        super().__init__()
        self.heads, self.new_order = kind.heads_of(width, up), kind.new_order
        self.norm, self.qkv = nn.GroupNorm(32, width), nn.Conv1d(width, 3 * width, 1)
        self.proj_out = nn.Conv1d(width, width, 1)

    def forward(self, x: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
        width, places = x.shape[1] // self.heads, x.flatten(2)
        all_three = self.qkv(self.norm(places))
        out = []
        for head in range(self.heads):
            if self.new_order:
                first = [part * x.shape[1] + head * width for part in range(3)]
            else:
                first = [(3 * head + part) * width for part in range(3)]
            q, k, v = (all_three[:, start : start + width] for start in first)
            weight = ((q / width**0.25).transpose(1, 2) @ (k / width**0.25)).softmax(dim=2)
            out.append(v @ weight.transpose(1, 2))
        return (places + self.proj_out(torch.cat(out, dim=1))).view_as(x)


class Halved(nn.Module):
    def __init__(self, width: int, conv: bool) -> None:
        super().__init__()
        self.op = nn.Conv2d(width, width, 3, stride=2, padding=1) if conv else nn.AvgPool2d(2)

    def forward(self, x: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
        return self.op(x)


class Doubled(nn.Module):
    def __init__(self, width: int, conv: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1) if conv else nn.Identity()

    def forward(self, x: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
        return self.conv(x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))


class First(nn.Conv2d):
    def forward(self, x: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
        return super().forward(x)


class OpenAIUNet(nn.Module):
    """Random weights, of which none are 0; seeded, and in evaluation mode."""

    def __init__(self, kind: Kind, seed: int = 0) -> None:
        super().__init__()
        self.kind = kind
        wide, told = int(kind.mult[0] * kind.channels), 4 * kind.channels
        self.time_embed = nn.ModuleList([nn.Linear(kind.channels, told), nn.SiLU(), nn.Linear(told, told)])
        if kind.classes is not None:
            self.label_emb = nn.Embedding(kind.classes, told)
        self.input_blocks = nn.ModuleList([nn.ModuleList([First(kind.images, wide, 3, padding=1)])])
        width, factor, kept = wide, 1, [wide]
        for level, mult in enumerate(kind.mult):
            for _ in range(kind.res_blocks):
                out = int(mult * kind.channels)
                layers: list[nn.Module] = [Residual(kind, width, out)]
                width = out
                if factor in kind.attention:
                    layers.append(Attention(kind, width))
                self.input_blocks.append(nn.ModuleList(layers))
                kept.append(width)
            if level < len(kind.mult) - 1:
                halving = Residual(kind, width, width, "down") if kind.updown else Halved(width, kind.conv_resample)
                self.input_blocks.append(nn.ModuleList([halving]))
                kept.append(width)
                factor *= 2
        self.middle_block = nn.ModuleList(
            [Residual(kind, width, width), Attention(kind, width), Residual(kind, width, width)]
        )
        self.output_blocks = nn.ModuleList()
        for level, mult in reversed(list(enumerate(kind.mult))):
            for i in range(kind.res_blocks + 1):
                out = int(mult * kind.channels)
                layers = [Residual(kind, width + kept.pop(), out)]
                width = out
                if factor in kind.attention:
                    layers.append(Attention(kind, width, up=True))
                if level and i == kind.res_blocks:
                    updown = Residual(kind, width, width, "up") if kind.updown else Doubled(width, kind.conv_resample)
                    layers.append(updown)
                    factor //= 2
                self.output_blocks.append(nn.ModuleList(layers))
        self.out = nn.ModuleList([nn.GroupNorm(32, width), nn.SiLU(), nn.Conv2d(wide, kind.out, 3, padding=1)])
        stream = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            spread = 0.3 if parameter.ndim == 1 else 1.2 / math.sqrt(parameter[0].numel())
            offset = 1.0 if parameter.ndim == 1 and name.endswith("weight") else 0.0
            parameter.data = offset + spread * torch.randn(parameter.shape, generator=stream)
        self.eval().requires_grad_(False)

    def forward(self, x: torch.Tensor, timestep: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        told = self.time_embed[2](F.silu(self.time_embed[0](embedding(timestep, self.kind.channels))))
        if y is not None:
            told = told + self.label_emb(y)
        kept: list[Any] = []
        for block in self.input_blocks:
            for layer in block:
                x = layer(x, told)
            kept.append(x)
        for layer in self.middle_block:
            x = layer(x, told)
        for block in self.output_blocks:
            x = torch.cat([x, kept.pop()], dim=1)
            for layer in block:
                x = layer(x, told)
        return self.out[2](F.silu(self.out[0](x)))
