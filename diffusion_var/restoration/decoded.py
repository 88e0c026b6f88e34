"""A measurement through a decoder: y = A D(z_0) + n, where what is denoised is a latent z_0 and A is of images.

Near the model's mean ẑ_0 it is linear, A D(z) ≈ A D(ẑ_0) + A ∂D (z − ẑ_0), so that E15 holds with A ∂D in A's place and
y − A D(ẑ_0) for the residual: exactly where D is linear. ∂D is never made, only multiplied with:

    ∂Dᵀ w    a pass back through the decoder; the activations of one pass forward are kept for it
    ∂D v     a pass forward that carries derivatives (forward mode), with attention by its formula, since the fused
             kernels have no such derivative. Where another layer has none (VQModel's distances): the derivative of
             w ↦ ∂Dᵀ w, for which the pass back is kept as well

A product with S = A ∂D Σ ∂Dᵀ Aᵀ + R takes one of each: measured on a CPU, 1.1 and 5 to 6 times what decoding takes.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from .. import checks
from ..errors import InputError, NetworkError
from ..models.network_use import failing, is_of_device
from ..process.structure import Shape
from ..randomness import generator, normal
from .linear_map import LinearMap, Map
from .measurement import Measurement
from .solver import ConjugateGradients

#: How S u = r is solved where nothing else is asked for: a product is dear, and A ∂D itself an approximation.
USUAL = ConjugateGradients(tolerance=1e-2, iterations=20)
_CLOSE = 1e-2  # relative: what half precision leaves of an equality


class Decoded:
    """A measurement's A D, linear near any latents.

    Args:
        measurement: y, A, the noise and the decoder.
        shape: (c, *spatial) of latents.
        dtype: that they are denoised in.

    Attributes: `image_shape`, (C, *spatial) of what the decoder makes of latents; `seen`, (*m), the elements of y that
    A sees in it.
    Raises InputError for a decoder that is none of batches, is random, or cannot be differentiated, and for an A that
    does not fit its images.
    """

    def __init__(self, measurement: Measurement, shape: Shape, dtype: torch.dtype) -> None:
        assert measurement.decoder is not None
        self._decode: Map = measurement.decoder
        z = normal(generator(0, "probe of a decoder"), 2, *shape).to(measurement.y.device, dtype)
        with torch.inference_mode(False):
            self.image_shape = _image_shape(self._decode, z)
            self._forward_mode = self._has_forward_mode(z[:1])
        self.seen = measurement.seen(self.image_shape, dtype)
        self._linear = measurement.map_of(self.image_shape)

    def at(self, mean: torch.Tensor) -> tuple[torch.Tensor, LinearMap]:
        """A D at latents (B, c, *spatial), and A ∂D there; its products raise NetworkError where the decoder does."""
        z = mean.detach().clone().requires_grad_()
        with torch.enable_grad(), nullcontext() if self._forward_mode else _by_formula():
            image = self._decode(z)
        derivative = self._forwards(z) if self._forward_mode else self._twice_back(z, image)

        def apply(direction: torch.Tensor) -> torch.Tensor:
            with self._failing("in a derivative", z):
                moved = derivative(direction)
            return self._linear.apply(moved)

        def adjoint(u: torch.Tensor) -> torch.Tensor:
            pulled = self._linear.adjoint(u)
            with self._failing("in the backward pass", z):
                return torch.autograd.grad(image, z, pulled, retain_graph=True)[0]

        return self._linear.apply(image.detach()), LinearMap(apply, adjoint)

    def _forwards(self, z: torch.Tensor) -> Map:
        """v ↦ ∂D v at z, in forward mode."""

        def derivative(direction: torch.Tensor) -> torch.Tensor:
            with torch.no_grad(), _by_formula(), forward_ad.dual_level():
                moved = self._decode(forward_ad.make_dual(z.detach(), direction))  # type: ignore[no-untyped-call]
                value, found = forward_ad.unpack_dual(moved)  # type: ignore[no-untyped-call]
            return torch.zeros_like(value) if found is None else found

        return derivative

    @staticmethod
    def _twice_back(z: torch.Tensor, image: torch.Tensor) -> Map:
        """The same by differentiating w ↦ ∂Dᵀ w, which is linear, at 0."""
        with torch.enable_grad():
            w = torch.zeros_like(image, requires_grad=True)
            back = torch.autograd.grad(image, z, w, create_graph=True)[0]
        return lambda direction: torch.autograd.grad(back, w, direction, retain_graph=True)[0]

    def _has_forward_mode(self, z: torch.Tensor) -> bool:
        """Whether every layer has a forward derivative; InputError where there is no derivative at all."""
        try:
            self._forwards(z)(torch.ones_like(z))
            return True
        except RuntimeError as error:  # PyTorch's NotImplementedError is one, and a codec's NetworkError
            if is_of_device(error.__cause__ or error):
                raise
        try:
            x = z.clone().requires_grad_()
            with torch.enable_grad(), _by_formula():
                self._twice_back(x, self._decode(x))(torch.ones_like(x))
        except RuntimeError as error:
            cause = error.__cause__ or error
            if is_of_device(cause):
                raise
            raise InputError(
                f"the decoder can be differentiated neither forwards nor twice ({type(cause).__name__}: "
                f"{checks.brief(str(cause))}); take attention by PyTorch (no xformers), and do not compile it."
            ) from error
        return False

    def _failing(self, where: str, z: torch.Tensor) -> Any:
        return failing(self._decode, z, lambda: f"{where}, in a batch of {len(z)}", "the decoder")


def _by_formula() -> Any:
    """Attention as matrix products and a softmax, of which every derivative is known."""
    return sdpa_kernel(SDPBackend.MATH)


# ---- what is refused ------------------------------------------------------------------------------------------------


def _image_shape(decode: Map, z: torch.Tensor) -> Shape:
    """(C, *spatial) of the images of latents."""
    x = z.clone().requires_grad_()
    with torch.enable_grad():
        images = _decoded(decode, x)
    checks.refuse(
        not images.requires_grad,
        "the decoder cannot be differentiated (its images have no gradient); it must not work under no_grad, or round.",
    )
    with torch.no_grad():
        alone = _decoded(decode, z[:1].clone())
    apart = float((alone - images[:1]).detach().abs().max()) / max(float(images.detach().abs().max()), 1e-30)
    checks.refuse(
        apart > _CLOSE,
        f"the decoder gives another image of the same latents each time, or by what is beside them (by {apart:.2g}); "
        "put it in evaluation mode.",
    )
    return tuple(images.shape[1:])


def _decoded(decode: Map, z: torch.Tensor) -> torch.Tensor:
    shape = tuple(z.shape)
    try:
        found: torch.Tensor = decode(z)
    except (InputError, NetworkError):
        raise
    except Exception as error:
        raise InputError(
            f"the decoder fails on latents {shape} ({type(error).__name__}: {checks.brief(str(error))}); it must take "
            "batches of what the model denoises."
        ) from error
    fits = isinstance(found, torch.Tensor) and found.ndim >= 2 and len(found) == len(z)
    if not fits or found.dtype != z.dtype or found.device.type != z.device.type:
        what = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, torch.Tensor) else type(found).__name__
        raise InputError(
            f"the decoder gives {what} of {z.dtype} latents {shape}, but a tensor (B, C, *spatial) of their dtype, on "
            "their device, is expected."
        )
    return found
