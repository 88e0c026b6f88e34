"""What kind of head a head is: plain data, all of it in its file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from pydantic import ConfigDict

from .. import checks
from ..models.heads import HeadKind, HeadNetwork, groups_of
from ..models.pooled_head import PooledHead
from ..process.bands import Bands
from .head_targets import BAND_TARGETS, TARGET_NAMES

#: How a head's output becomes ρ: a positive multiple of the table's value; or as the papers' heads, whose output is the
#: target itself, starts from random weights, is trained as it is, and in use is cut to what a variance of data in
#: [a, b] can be, [0, ((b − a)/2)²] [E9]. "bounded" are such heads from files of version 1, which were trained and used
#: with a cut at σ²/α² as well, and are used as they were trained; no new ones are made.
Output = Literal["ratio", "papers", "bounded"]
OUTPUTS: tuple[Output, ...] = ("ratio", "papers")
#: A convolution, one behind a residual block, or a `PooledHead`, which says nothing of single pixels.
Kind = HeadKind | Literal["pooled"]
KINDS = (*get_args(HeadKind), "pooled")
_STRUCTURES = ("dct", "pixel")
_BANDS = 16


@dataclass(frozen=True)
class HeadSpec:
    """What kind of head it is.

    Attributes:
        target: "npr", "sn", "ocm" (per pixel), "factor" (per image and channel, times a structure's variances) or
            "bands" (per image, channel and band of frequency, times the dct's variances).
        kind: "simple" or "residual" (see `HeadNetwork`), or, of targets "factor" and "bands", "pooled" (`PooledHead`);
            None: "pooled" of "bands", "simple" of the others.
        structure: of target "factor": "dct" or "pixel"; of "bands" it is "dct"; None for the others.
        output: "ratio" or "papers" ("bounded": of earlier files).
        module: whose input the features are; None: found for diffusers UNets and DiT.
        bands: of target "bands": how many of each channel at most, of frequency 0 and of octaves or parts of them (see
            `process.bands`); None: 16. One is "factor" on the dct. None for the others.

    Raises InputError for unknown values, and for those that do not go together.
    """

    target: str = "npr"
    kind: Kind | None = None
    structure: str | None = None
    output: Output = "ratio"
    module: str | None = None
    bands: int | None = None
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(strict=True, extra="forbid")

    def __post_init__(self) -> None:
        if self.kind is None:
            object.__setattr__(self, "kind", "pooled" if self.target == "bands" else "simple")
        for name, value, known, choices in (
            ("target", self.target, TARGET_NAMES, TARGET_NAMES),
            ("head", self.kind, KINDS, KINDS),
            ("output", self.output, get_args(Output), OUTPUTS),
        ):
            checks.refuse(value not in known, f"{name} {value!r} is not known; choose one of {', '.join(choices)}.")
        if self.target == "bands":
            object.__setattr__(self, "structure", self.structure or "dct")
            bands = _BANDS if self.bands is None else checks.whole("bands", self.bands, least=1)
            object.__setattr__(self, "bands", bands)
        factor, banded, structure = self.target == "factor", self.target in BAND_TARGETS, self.structure
        missing, idle = factor and structure is None, structure is not None and not banded
        checks.refuse(
            missing, "target='factor' multiplies a structure's variances; pass structure= as 'dct' or 'pixel'."
        )
        checks.refuse(idle, f"structure={structure!r} is for target='factor' alone, not {self.target!r}; leave it out.")
        wrong = structure is not None and structure not in _STRUCTURES
        checks.refuse(wrong, f"structure={structure!r} has no variances to multiply; use 'dct' or 'pixel'.")
        wrong = self.target == "bands" and structure != "dct"
        checks.refuse(
            wrong,
            f"target='bands' has bands of frequency, which structure={structure!r} does not know; use 'dct', or leave "
            "it out.",
        )
        wrong = self.bands is not None and self.target != "bands"
        checks.refuse(wrong, f"bands={self.bands!r} is for target='bands' alone, not {self.target!r}; leave it out.")
        wrong = self.kind == "pooled" and not banded
        checks.refuse(
            wrong,
            f"kind='pooled' says nothing of single pixels, as target={self.target!r} has to; use 'simple' or "
            "'residual'.",
        )
        wrong = banded and self.output != "ratio"
        checks.refuse(
            wrong, f"output='papers' is for the papers' targets npr, sn and ocm; use 'ratio' with {self.target!r}."
        )

    def bands_of(self, shape: Sequence[int]) -> Bands | None:
        """The bands of images (C, *spatial) that have a multiple each; None where every pixel has one.

        Raises InputError for more bands than there are frequencies.
        """
        return Bands(shape, self.bands or 1) if self.target in BAND_TARGETS else None

    def new_network(
        self, features: Sequence[int], shape: Sequence[int], groups: int | Callable[[int], int] = groups_of
    ) -> HeadNetwork | PooledHead:
        """An untrained network of this kind, for features (F, *grid) or (T, F) of images (C, *spatial); of L bands
        those with a convolution give (L, *spatial), to be averaged over the pixels."""
        assert self.kind is not None
        bands = self.bands_of(shape)
        if self.kind == "pooled":
            assert bands is not None
            return PooledHead(features, shape, bands.count)
        outputs = shape if bands is None else (bands.count, *shape[1:])
        return HeadNetwork(self.kind, features, outputs, zero=self.output == "ratio", groups=groups)

    def plain(self) -> dict[str, Any]:
        """All attributes, but `bands` only where there are: so heads without are called what they always were."""
        return {name: value for name, value in vars(self).items() if name != "bands" or value is not None}
