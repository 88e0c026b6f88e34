"""What kind of head a head is: plain data, all of it in its file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from pydantic import ConfigDict

from .. import checks
from ..models.heads import HeadKind
from .head_targets import TARGET_NAMES

#: How a head's output becomes ρ: a positive multiple of the table's value; or as the papers' heads, whose output is the
#: target itself, starts from random weights, and is clipped to the bounds of [E5].
Output = Literal["ratio", "papers"]
_STRUCTURES = ("dct", "pixel")


@dataclass(frozen=True)
class HeadSpec:
    """What kind of head it is.

    Attributes:
        target: "npr", "sn", "ocm" (per pixel) or "factor" (per image and channel, times a structure's variances).
        kind: "simple" or "residual".
        structure: of target "factor": "dct" or "pixel"; None for the others.
        output: "ratio" or "papers".
        module: whose input the features are; None: found for diffusers UNets and DiT.

    Raises InputError for unknown values, and for those that do not go together.
    """

    target: str = "npr"
    kind: HeadKind = "simple"
    structure: str | None = None
    output: Output = "ratio"
    module: str | None = None
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(strict=True, extra="forbid")

    def __post_init__(self) -> None:
        for name, value, choices in (("target", self.target, TARGET_NAMES), ("output", self.output, get_args(Output))):
            checks.refuse(value not in choices, f"{name} {value!r} is not known; choose one of {', '.join(choices)}.")
        factor, structure = self.target == "factor", self.structure
        missing, idle = factor and structure is None, structure is not None and not factor
        checks.refuse(
            missing, "target='factor' multiplies a structure's variances; pass structure= as 'dct' or 'pixel'."
        )
        checks.refuse(idle, f"structure={structure!r} is for target='factor' alone, not {self.target!r}; leave it out.")
        wrong = structure is not None and structure not in _STRUCTURES
        checks.refuse(wrong, f"structure={structure!r} has no variances to multiply; use 'dct' or 'pixel'.")
        wrong = factor and self.output == "papers"
        checks.refuse(wrong, "output='papers' is for the papers' targets npr, sn and ocm; use 'ratio' with 'factor'.")
