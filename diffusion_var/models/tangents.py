"""Forward derivatives of the layers that networks are made of, at the price that they should have.

PyTorch takes the weights of a layer for variables too: with a dual input, a convolution is evaluated a third time, for
a tangent of its weights that is zero, and a normalisation is differentiated in some thirty steps. Here the layers whose
weights have no tangent are told what theirs is:

    y = W x + b                                    ẏ = W ẋ
    y = g x̂ + b,  x̂ = (x − mean x)/s of a group    ẏ = (g/s) (ẋ − mean ẋ − x̂ mean(x̂ ẋ))
    y = x/(1 + e⁻ˣ)                                ẏ = y'(x) ẋ, in one step
    y = x + z,  y = c x,  y = x/c                  ẏ = ẋ + ż,  c ẋ,  ẋ/c
    y = P v,  P = softmax(q kᵀ c)                  ẏ = Ṗ v + P v̇,  Ṗ = P ⊙ (Ṡ − Σ P ⊙ Ṡ),  Ṡ = c (q̇ kᵀ + q k̇ᵀ)

On UNets a pass with a tangent so takes 2.4 evaluations in the place of 4. Values and tangents are PyTorch's own, to
rounding; everything else is left to it, and all of it where a derivative is taken of the derivative, or a graph kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

#: Linear in their first argument, then come weights and a bias.
_LINEAR = frozenset({torch.conv1d, torch.conv2d, torch.conv3d, F.linear})
_FULL = (torch.float32, torch.float64)
dual: Any = forward_ad  # which has no types


class CheapTangents(TorchFunctionMode):
    """Inside, the layers of the module's docstring propagate tangents by its rules."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        rule = _RULES.get(func)
        if rule is None or not args or not isinstance(args[0], torch.Tensor) or not _is_first_and_last():
            return func(*args, **kwargs)
        x, tangent = dual.unpack_dual(args[0])
        if tangent is None or (func not in _OF_SEVERAL and _any_has_tangent((*args[1:], *kwargs.values()))):
            return func(*args, **kwargs)
        found = rule(func, x, tangent, *args[1:], **kwargs)
        return func(*args, **kwargs) if found is None else dual.make_dual(*found)


def _is_first_and_last() -> bool:
    """Whether nothing is taken of a derivative but itself: the formulas above have none of their own that can be relied
    upon (a layer norm's would be wrong), and what is inside of `torch.func.vmap` shows no tangents."""
    return torch._C._functorch.maybe_current_level() == 1 and not torch.is_grad_enabled()


def _any_has_tangent(values: Iterable[Any]) -> bool:
    tensors = (value for value in values if isinstance(value, torch.Tensor))
    return any(dual.unpack_dual(tensor).tangent is not None for tensor in tensors)


Pair = tuple[torch.Tensor, torch.Tensor]


def _linear(
    func: Callable[..., torch.Tensor],
    x: torch.Tensor,
    tangent: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *rest: Any,
    **options: Any,
) -> Pair:
    return func(x, weight, bias, *rest, **options), func(tangent, weight, None, *rest, **options)


def _group_norm(
    func: Callable[..., torch.Tensor],
    x: torch.Tensor,
    tangent: torch.Tensor,
    num_groups: int,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> Pair | None:
    if not _is_plain(x):
        return None
    sizes = (x.shape[0], x.shape[1], math.prod(x.shape[2:]), num_groups)
    if not (x.device.type == "cpu" and x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)):
        x = x.contiguous()  # kernels of older versions of PyTorch take nothing else
    y, mean, scale = torch.native_group_norm(x, weight, bias, *sizes, eps)
    # Without a gain the derivative is symmetric, so that what goes backward is what goes forward.
    only_x = [True, False, False]
    moved = torch.ops.aten.native_group_norm_backward(
        tangent.contiguous(), x.contiguous(), mean, scale, None, *sizes, only_x
    )[0]
    return y, moved if weight is None else moved.mul_(weight.view(-1, *(1,) * (x.ndim - 2)))


def _layer_norm(
    func: Callable[..., torch.Tensor],
    x: torch.Tensor,
    tangent: torch.Tensor,
    normalized_shape: Sequence[int],
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> Pair | None:
    if not _is_plain(x):
        return None
    sizes = tuple(normalized_shape)
    y, mean, scale = torch.native_layer_norm(x, sizes, weight, bias, eps)
    only_x = [True, False, False]
    moved = torch.ops.aten.native_layer_norm_backward(
        tangent.contiguous(), x.contiguous(), sizes, mean, scale, None, None, only_x
    )[0]
    return y, moved if weight is None else moved.mul_(weight)


def _is_plain(x: torch.Tensor) -> bool:
    """Whether an operation runs as it is called: under autocast its name decides the precision."""
    return x.dtype in _FULL and not torch.is_autocast_enabled(x.device.type)


def _silu(
    func: Callable[..., torch.Tensor], x: torch.Tensor, tangent: torch.Tensor, inplace: bool = False
) -> Pair | None:
    return None if inplace else (func(x), torch.ops.aten.silu_backward(tangent, x))


def _scaled(
    func: Callable[..., torch.Tensor], x: torch.Tensor, tangent: torch.Tensor, other: Any, **options: Any
) -> Pair | None:
    return None if options or not isinstance(other, int | float) else (func(x, other), func(tangent, other))


def _sum(
    func: Callable[..., torch.Tensor], x: torch.Tensor, tangent: torch.Tensor, other: Any, *rest: Any, **options: Any
) -> Pair | None:
    if rest or options or not isinstance(other, torch.Tensor | int | float):
        return None
    z, moved = dual.unpack_dual(other) if isinstance(other, torch.Tensor) else (other, None)
    y = func(x, z)
    if not all(t.shape == y.shape and t.dtype == y.dtype for t in (tangent, *(() if moved is None else (moved,)))):
        return None
    return y, tangent.clone() if moved is None else func(tangent, moved)


def _attention(
    func: Callable[..., torch.Tensor],
    q: torch.Tensor,
    moved_q: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **options: Any,
) -> Pair | None:
    (k, moved_k), (v, moved_v) = dual.unpack_dual(key), dual.unpack_dual(value)
    plain = attn_mask is None and not dropout_p and not is_causal and not any(options.values()) and _is_plain(q)
    if not plain or moved_k is None or moved_v is None:
        return None
    c = q.shape[-1] ** -0.5 if scale is None else scale
    weights = ((c * q) @ k.mT).softmax(-1)
    rise = torch.add((c * moved_q) @ k.mT, (c * q) @ moved_k.mT)
    # A softmax's derivative is symmetric too.
    moved = torch.ops.aten._softmax_backward_data(rise, weights, -1, rise.dtype)
    return weights @ v, (moved @ v).add_(weights @ moved_v)


_SUMS = frozenset({torch.add, torch.Tensor.add, torch.Tensor.__add__, torch.Tensor.__radd__})
_SCALINGS = frozenset({
    torch.mul, torch.Tensor.mul, torch.Tensor.__mul__, torch.Tensor.__rmul__,
    torch.div, torch.Tensor.div, torch.Tensor.__truediv__,
})  # fmt: skip
#: Whose other arguments may have tangents too.
_OF_SEVERAL = _SUMS | {F.scaled_dot_product_attention}

_RULES: dict[Any, Callable[..., Pair | None]] = {
    **dict.fromkeys(_LINEAR, _linear),
    **dict.fromkeys(_SUMS, _sum),
    **dict.fromkeys(_SCALINGS, _scaled),
    F.scaled_dot_product_attention: _attention,
    F.group_norm: _group_norm,
    F.layer_norm: _layer_norm,
    F.silu: _silu,
}
