"""What a pipeline's `encode_prompt` returned, as conditions: a nest of tensors with a batch axis, and back.

Pipelines return tensors (B, L, D) and (B, D), masks, lists of (L_i, D), positions (L, 3) that all images share, tuples
of these, None, in one call or two; with guidance twice as many rows. Which is which is seen by asking for one prompt
and for the same prompt twice: what is longer then belongs to the prompts.

Prompts are encoded one at a time, so that each is what the pipeline makes of it alone; tokens of different lengths are
padded behind, and cut back to their lengths before the pipeline sees them again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ... import checks
from ...errors import InputError

#: The key of the conditions' lengths: (P, leaves) whole numbers, how long each is without what it was padded with.
LENGTHS = "lengths"


@dataclass(frozen=True)
class _Place:
    """Where tensors stand in what was returned.

    Attributes:
        kind: "rows", a tensor whose first axis is that of `count` groups of prompts; "list", a list of as many;
            "shared", a tensor that is the same for all.
    """

    kind: str
    count: int


@dataclass(frozen=True)
class _Fixed:
    """What is no tensor."""

    value: Any


@dataclass
class PromptRecord:
    """The form of what was returned for one prompt.

    Attributes:
        form: the calls, with places instead of tensors.
        shapes, dtypes: of its tensors, for one prompt, (1, …).
    """

    form: Any
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    dtypes: list[torch.dtype] = field(default_factory=list)

    @classmethod
    def of(cls, one: list[Any], two: list[Any], name: str) -> PromptRecord:
        """From the calls for one prompt, and for the same prompt twice."""
        record = cls(_form(one, two, name))
        tensors = record.flat(one)
        record.shapes = [tuple(tensor.shape) for tensor in tensors]
        record.dtypes = [tensor.dtype for tensor in tensors]
        return record

    @property
    def apart(self) -> bool:
        """Whether what stands for none is kept apart from the prompts, not in their tensors as more rows: then a
        pipeline that does not guide may be handed it, and leaves it."""
        return _apart(self.form)

    # ---- what was returned, as tensors ----------------------------------------------------------------------------

    def flat(self, calls: list[Any]) -> list[torch.Tensor]:
        """The tensors of the calls for one prompt, (1, …) each."""
        found: list[torch.Tensor] = []
        _walk(self.form, calls, found.append)
        return found

    def calls(self, tensors: Sequence[torch.Tensor], device: torch.device) -> Iterator[Any]:
        """What the calls return for a batch, from their tensors (B, …) of one length each."""
        given = iter([t.to(device, dtype) for t, dtype in zip(tensors, self.dtypes, strict=True)])
        return iter(_built(self.form, given))

    # ---- conditions -----------------------------------------------------------------------------------------------

    def conditions(self, prompts: Sequence[list[torch.Tensor]]) -> dict[str, torch.Tensor]:
        """The tensors of P prompts, as `flat` has them, as one nest on the CPU."""
        lengths = torch.tensor([[_length(tensor) for tensor in tensors] for tensors in prompts])
        found = {LENGTHS: lengths}
        for k in range(len(self.shapes)):
            longest = int(lengths[:, k].max())
            found[str(k)] = torch.cat([_padded(tensors[k].detach().cpu(), longest) for tensors in prompts])
        return found

    def leaves(self, conditions: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        """The tensors (B, …) of conditions of one length."""
        lengths = conditions[LENGTHS][0].tolist()
        found = [conditions[str(k)] for k in range(len(self.shapes))]
        return [t if t.ndim < 2 else t[:, :length] for t, length in zip(found, lengths, strict=True)]

    def check(self, conditions: Any, name: str) -> None:
        """Refuse conditions that this pipeline's prompts would not have."""
        keys = {LENGTHS, *map(str, range(len(self.shapes)))}
        checks.refuse(
            not isinstance(conditions, dict) or conditions.keys() != keys,
            f"conditions are {_described(conditions)}, but {name}, as it is called here, takes {len(self.shapes)} "
            "tensors and their lengths; encode the prompts with this denoiser (denoiser.prompts.encode).",
        )
        for k, shape in enumerate(self.shapes):
            found = tuple(conditions[str(k)].shape)
            checks.refuse(
                len(found) != len(shape) or found[2:] != shape[2:] or (len(shape) == 2 and found[1] != shape[1]),
                f"conditions[{k}] have shape {found}, but {name} takes (B, {', '.join(_axes(shape))}); encode the "
                "prompts with this denoiser (denoiser.prompts.encode).",
            )


def _described(conditions: Any) -> str:
    if isinstance(conditions, torch.Tensor):
        return f"a tensor of shape {tuple(conditions.shape)}"
    keys = [key for key in conditions if key != LENGTHS] if isinstance(conditions, dict) else []
    return f"{len(keys)} tensors" if keys else f"a {type(conditions).__name__}"


def _axes(shape: tuple[int, ...]) -> list[str]:
    return [str(shape[1])] if len(shape) == 2 else ["tokens", *map(str, shape[2:])]


def _length(tensor: torch.Tensor) -> int:
    return tensor.shape[1] if tensor.ndim > 1 else 0


def _padded(tensor: torch.Tensor, length: int) -> torch.Tensor:
    if tensor.ndim < 2 or tensor.shape[1] == length:
        return tensor
    return torch.cat([tensor, tensor.new_zeros(len(tensor), length - tensor.shape[1], *tensor.shape[2:])], dim=1)


class PipelinePrompts:
    """The prompts of a pipeline, encoded by the pipeline itself; `encoded` gives the conditions of some."""

    def __init__(self, encoded: Callable[[Sequence[str]], dict[str, torch.Tensor]]) -> None:
        self._encoded = encoded

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], batch_size: int = 1) -> dict[str, torch.Tensor]:
        """The conditions of P prompts, a nest of tensors (P, …) on the CPU; "" is a prompt. Each is encoded alone, as
        the pipeline would for one image (`batch_size` changes nothing). Afterwards the text encoders lie on the CPU."""
        if isinstance(prompts, str) or len(prompts) == 0 or not all(isinstance(p, str) for p in prompts):
            raise InputError(f"prompts={prompts!r} must be a list of at least one text.")
        return self._encoded(prompts)


# ---- forms ----------------------------------------------------------------------------------------------------------


def _form(one: Any, two: Any, name: str) -> Any:
    if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        if one.shape == two.shape:
            return _Place("shared", 1)
        checks.refuse(2 * len(one) != len(two), _unknown(name, one, two))
        return _Place("rows", len(one))
    if isinstance(one, list) and isinstance(two, list) and 2 * len(one) == len(two) > 0:
        checks.refuse(not all(isinstance(t, torch.Tensor) for t in two), _unknown(name, one, two))
        return _Place("list", len(one))
    if isinstance(one, list | tuple) and isinstance(two, list | tuple) and len(one) == len(two):
        return type(one)([_form(a, b, name) for a, b in zip(one, two, strict=True)])
    return _Fixed(one)


def _apart(form: Any) -> bool:
    if isinstance(form, list | tuple):
        return all(map(_apart, form))
    return not isinstance(form, _Place) or form.count == 1


def _unknown(name: str, one: Any, two: Any) -> str:
    sizes = [tuple(x.shape) if isinstance(x, torch.Tensor) else f"a list of {len(x)}" for x in (one, two)]
    return (
        f"what encode_prompt of {name} returns for a prompt ({sizes[0]}) and for it twice ({sizes[1]}) is not known to "
        "belong to its prompts; wrap its network by hand (dv.Denoiser(callable, schedule, …))."
    )


def _walk(form: Any, said: Any, keep: Callable[[torch.Tensor], Any]) -> None:
    if isinstance(form, list | tuple):
        if not isinstance(said, list | tuple) or len(said) != len(form):
            raise InputError(_OTHER)
        for part, value in zip(form, said, strict=True):
            _walk(part, value, keep)
    elif isinstance(form, _Place):
        checks.refuse(not isinstance(said, list if form.kind == "list" else torch.Tensor), _OTHER)
        checks.refuse(form.kind != "shared" and len(said) != form.count, _OTHER)
        for value in said if form.kind == "list" else [said] if form.kind == "shared" else said.split(1):
            keep(value if form.kind == "rows" else value.unsqueeze(0))
    else:
        unlike = isinstance(said, torch.Tensor) or type(said) is not type(form.value)
        checks.refuse(unlike or (isinstance(said, _PLAIN) and said != form.value), _OTHER)


_PLAIN = (bool, int, float, str)
_OTHER = "encode_prompt returned something else for this prompt than for the empty one; give another prompt."


def _built(form: Any, tensors: Iterator[torch.Tensor]) -> Any:
    if isinstance(form, list | tuple):
        return type(form)([_built(part, tensors) for part in form])
    if isinstance(form, _Fixed):
        return form.value
    if form.kind == "shared":
        shared = next(tensors)
        checks.refuse(
            not torch.equal(shared, shared[:1].expand_as(shared)),
            "encode_prompt returned a tensor that all images share, which is not the same for these prompts; give "
            "images of one prompt at a time.",
        )
        return shared[0]
    found = [next(tensors) for _ in range(form.count)]
    if form.kind == "list":
        return [row for tensor in found for row in tensor.unbind(0)]
    return torch.cat(found)
