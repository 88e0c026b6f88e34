"""What kind of head a head is: plain data, all of it in its file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from pydantic import ConfigDict

from .. import checks
from ..models.heads import HeadKind
from .head_targets import TARGET_NAMES

#: How a head's output becomes ρ: a positive multiple of the table's value; or as the papers' heads, whose output is the
#: target itself, starts from random weights, is trained as it is, and in use is cut to what a variance of data in
#: [a, b] can be, [0, ((b − a)/2)²] [E9]. "bounded" are such heads from files of version 1, which were trained and used
#: with a cut at σ²/α² as well, and are used as they were trained; no new ones are made.
Output = Literal["ratio", "papers", "bounded"]
OUTPUTS: tuple[Output, ...] = ("ratio", "papers")
_STRUCTURES = ("dct", "pixel")


@dataclass(frozen=True)
class HeadSpec:
    """What kind of head it is.

    Attributes:
        target: "npr", "sn", "ocm" (per pixel) or "factor" (per image and channel, times a structure's variances).
        kind: "simple" or "residual".
        structure: of target "factor": "dct" or "pixel"; None for the others.
        output: "ratio" or "papers" ("bounded": of earlier files).
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
        for name, value, known, choices in (
            ("target", self.target, TARGET_NAMES, TARGET_NAMES),
            ("output", self.output, get_args(Output), OUTPUTS),
        ):
            checks.refuse(value not in known, f"{name} {value!r} is not known; choose one of {', '.join(choices)}.")
        factor, structure = self.target == "factor", self.structure
        missing, idle = factor and structure is None, structure is not None and not factor
        checks.refuse(
            missing, "target='factor' multiplies a structure's variances; pass structure= as 'dct' or 'pixel'."
        )
        checks.refuse(idle, f"structure={structure!r} is for target='factor' alone, not {self.target!r}; leave it out.")
        wrong = structure is not None and structure not in _STRUCTURES
        checks.refuse(wrong, f"structure={structure!r} has no variances to multiply; use 'dct' or 'pixel'.")
        wrong = factor and self.output != "ratio"
        checks.refuse(wrong, "output='papers' is for the papers' targets npr, sn and ocm; use 'ratio' with 'factor'.")
