"""Measurement operators by name: the linear A of y = A x_0 + noise, from one line of text.

    inpainting:mask=0.5          that share of the pixels, at random        deepinv's Inpainting
    box:size=8                   all but a square in the middle             Inpainting
    blur:sigma=1.5               a Gaussian blur that wraps around          BlurFFT
    super-resolution:factor=2    filtered, then every 2nd pixel             Downsampling
    compressed-sensing:m=0.25    random projections, that share of them     CompressedSensing
    Demosaicing:pattern=bayer    any linear operator of deepinv.physics, by the name of its class
    package.module:function      a function of the image shape (C, *spatial) that gives an operator: a callable A,
                                 a pair (A, adjoint), or one of deepinv's

Arguments are Python literals, NAME=VALUE with commas between; a word without quotes is text, and a list a tensor. What
is random is drawn on the CPU from the seed, so that one name is one operator everywhere. The operators themselves are
those of deepinv (Tachella et al. 2025, arXiv:2505.20160), which is optional: pip install 'diffusion-var[restoration]'.
"""

from __future__ import annotations

import ast
import hashlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from .. import checks
from ..errors import InputError
from ..randomness import generator
from .deepinv_physics import deepinv_module, noise_of
from .measurement import Measurement
from .operator_makers import OWN, Maker, arguments_of, by_class, deepinv_classes

Linear = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Operator:
    """A linear operator on images.

    Attributes:
        name: as it was given.
        A: (B, C, *spatial) -> (B, *m).
        adjoint: (B, *m) -> (B, C, *spatial); None: it is found by differentiation.
        physics: deepinv's object, where it is one.
        noise: the standard deviation that the object itself says of its noise; None where it says nothing.
        source: SHA-256 of the file that a function of somebody's own is in; None for others.
    """

    name: str
    A: Linear
    adjoint: Linear | None = None
    physics: Any = None
    noise: float | None = None
    source: str | None = None

    def measurement(self, y: torch.Tensor, noise: Any = None, *, through: Any = None) -> Measurement:
        """y (B, *m) as a measurement through it; see `Measurement` for the rest. `noise` None: what the object says."""
        noise = checks.given(
            self.noise if noise is None else noise, f"the operator {self.name} says nothing of its noise; give noise=."
        )
        if self.physics is None or through is not None:
            return Measurement(y, self.A, self.adjoint, noise, through=through)
        return Measurement.from_deepinv(self.physics, y, noise)


@dataclass(frozen=True)
class OperatorName:
    """An operator's name taken apart: what makes it, and the arguments for that."""

    text: str
    make: Maker
    arguments: dict[str, Any]
    source: str | None = None

    def open(self, shape: tuple[int, ...], seed: int = 0, device: torch.device | str = "cpu") -> Operator:
        """The operator on images (C, *spatial); InputError for one that cannot be made, or is not linear."""
        made = _made(self, tuple(shape), seed)
        found = _operator(self.text, made, device)
        _try(found, tuple(shape), device)
        return replace(found, source=self.source)


def parse_operator(text: str) -> OperatorName:
    """Take a name apart (see the module docstring); InputError for an operator that is not known, before it is made."""
    checks.instance("operator", text, str, "the name of an operator, such as 'inpainting:mask=0.5'")
    name, colon, rest = text.partition(":")
    if name in OWN:
        given, known = _arguments(text, rest), arguments_of(OWN[name])
        unknown = [argument for argument in given if argument not in known]
        checks.refuse(bool(unknown), f"the operator {name} has no {', '.join(unknown)}; it takes {', '.join(known)}.")
        return OperatorName(text, OWN[name], given)
    if colon and rest.isidentifier() and all(part.isidentifier() for part in name.split(".")):
        return OperatorName(text, *_entry(name, rest))
    kinds, others = deepinv_classes()
    checks.refuse(name in others, _not_linear(text, name))
    if name not in kinds:
        raise InputError(
            f"the operator {checks.brief(name)} is not known; use {', '.join(OWN)}, a linear operator of "
            f"deepinv.physics ({', '.join(kinds)}), or a Python function as package.module:function."
        )
    return OperatorName(text, by_class(kinds[name]), _arguments(text, rest))


def open_operator(text: str, shape: tuple[int, ...], seed: int = 0, device: torch.device | str = "cpu") -> Operator:
    """The operator of that name on images (C, *spatial); see the module docstring."""
    return parse_operator(text).open(shape, seed, device)


# ---- names ----------------------------------------------------------------------------------------------------------


def _arguments(text: str, rest: str) -> dict[str, Any]:
    """NAME=VALUE,… as Python has it: literals, words, and lists as tensors."""
    wrong = f"the operator {checks.brief(text)} has to be NAME:ARGUMENT=VALUE,ARGUMENT=VALUE with literals as values."
    try:
        call = ast.parse(f"f({rest})", mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(wrong) from error
    if not isinstance(call, ast.Call) or call.args or any(keyword.arg is None for keyword in call.keywords):
        raise InputError(wrong)
    found: dict[str, Any] = {}
    for keyword in call.keywords:
        try:
            name, value = str(keyword.arg), keyword.value
            found[name] = value.id if isinstance(value, ast.Name) else ast.literal_eval(value)
            if isinstance(found[name], list):
                found[name] = torch.tensor(found[name], dtype=torch.float32)
        except (ValueError, TypeError, RecursionError, MemoryError) as error:
            raise InputError(wrong) from error
    return found


def _entry(module: str, function: str) -> tuple[Maker, dict[str, Any], str | None]:
    """A function of somebody's own, looked for in the folder that the program runs in too; no arguments; its source."""
    try:
        with _here_too():
            home = import_module(module)
            found, file = getattr(home, function), getattr(home, "__file__", None)
            source = None if file is None else hashlib.sha256(Path(file).read_bytes()).hexdigest()
    except Exception as error:  # whatever the module does
        reason = f"{type(error).__name__}: {error}"
        raise InputError(
            f"the operator {module}:{function} cannot be imported ({reason}); check the name, and PYTHONPATH."
        ) from error
    checks.refuse(not callable(found), f"the operator {module}:{function} must be a function of the image shape.")
    return lambda shape, seed, stream: found(shape), {}, source


@contextmanager
def _here_too() -> Iterator[None]:
    """Inside, modules are also found where the program runs."""
    before = list(sys.path)
    sys.path.append(os.getcwd())
    try:
        yield
    finally:
        sys.path[:] = before


def _not_linear(text: str, kind: str) -> str:
    return (
        f"the operator {text} is deepinv's {kind}, which is not linear, but E[x_0 | x_t, y] is known for linear ones "
        "alone; choose another operator."
    )


# ---- making and refusing --------------------------------------------------------------------------------------------


def _made(name: OperatorName, shape: tuple[int, ...], seed: int) -> Any:
    """What the name's function makes, with random numbers of the seed and no others."""
    wrong = name.make in OWN.values() and len(shape) != 3
    checks.refuse(
        wrong,
        f"the operator {checks.brief(name.text)} is for images (C, H, W), but the shape is {shape}; give one of your "
        "own as package.module:function.",
    )
    drawn = int(generator(seed, "measurement operator").integers(2**62))
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            torch.manual_seed(drawn)  # of the fork: for what draws from the global generator
            made = name.make(shape=shape, seed=seed, stream=torch.Generator().manual_seed(drawn), **name.arguments)
    except InputError:
        raise
    except Exception as error:  # of deepinv, or somebody's own
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(
            f"the operator {checks.brief(name.text)} cannot be made for images {shape} ({reason}); check its arguments."
        ) from error
    ignored = [str(warning.message) for warning in said if "ignored" in str(warning.message)]
    checks.refuse(
        bool(ignored), f"the operator {checks.brief(name.text)} has arguments that are not its own: {ignored}."
    )
    return made


def _operator(text: str, made: Any, device: torch.device | str) -> Operator:
    """What was made, as an operator; refused where it is none, or not linear with Gaussian noise."""
    if "deepinv" in sys.modules and isinstance(made, deepinv_module("deepinv.physics").Physics):
        return _of_deepinv(text, made, device)
    pair = made if isinstance(made, tuple | list) else (made, None)
    wrong = len(pair) != 2 or not callable(pair[0]) or not (pair[1] is None or callable(pair[1]))
    checks.refuse(
        wrong,
        f"the operator {text} gives {checks.brief(made)}, but a callable A, a pair (A, adjoint) or one of deepinv's "
        "operators is expected.",
    )
    return Operator(text, *pair)


def _of_deepinv(text: str, made: Any, device: torch.device | str) -> Operator:
    physics, kind = deepinv_module("deepinv.physics"), type(made).__name__
    checks.refuse(not isinstance(made, physics.LinearPhysics), _not_linear(text, kind))
    there = made.to(device)
    return Operator(text, there.A, there.A_adjoint, there, noise_of(made, f"the operator {text}"))


def _try(operator: Operator, shape: tuple[int, ...], device: torch.device | str) -> None:
    """One image of zeros, there and back: an operator of other images fails here, before anything long."""
    back = None
    try:
        found = operator.A(torch.zeros((1, *shape), device=device))
        if operator.adjoint is not None:
            back = operator.adjoint(found)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"the operator {operator.name} does not take images {shape} ({reason}).") from error
    wrong = not isinstance(found, torch.Tensor) or found.ndim < 2 or len(found) != 1 or found.is_complex()
    checks.refuse(
        wrong,
        f"the operator {operator.name} gives {checks.brief(found)} of one image, but a tensor (1, *m) of real numbers "
        "is expected.",
    )
    checks.refuse(
        back is not None and tuple(getattr(back, "shape", ())) != (1, *shape),
        f"the adjoint of the operator {operator.name} gives {tuple(getattr(back, 'shape', ()))} of one measurement, "
        f"but an image {(1, *shape)} is expected.",
    )
