"""A state-dependent covariance, averaged: over the elements of an image, or over the images of a batch.

    over="image"   tr Σ/d I, one variance for each image: what the image is worth, without its structure
    over="batch"   Σ's variances averaged over the images drawn together, in Σ's own structure

The first is `avg_cov` of Extended-Analytic-DPM's code (arXiv:2206.07309): the mean over the elements of one image.
(Theirs is of a head's output before it is cut to its range, this of what it gives in use: equal where nothing is cut.)
The second puts a batch in the place of an expectation over x_t, as an analytic table does, but without one; so an image
depends on those that are drawn with it. It is for a look at how much of a head's gain is in the state, not for use.
"""

from __future__ import annotations

from typing import Any, Literal

from .. import checks
from ..process.structure import Isotropic
from .reverse import ReverseCovariance, StructuredCovariance
from .wrapping import Wrapping


class Averaged(Wrapping):
    """Another covariance, averaged over each image or over the batch.

    Args:
        inner: the covariance to average; one that does not depend on the image stays as it is with over="batch".
        over: "image" or "batch". With "batch" the images of a sampler depend on the batch that they are drawn in (the
            same seed, images and batch size give the same ones), and a likelihood bound on how its evaluations are
            batched.
    """

    def __init__(self, inner: ReverseCovariance, over: Literal["image", "batch"] = "image") -> None:
        super().__init__(inner)
        self.over = checks.one_of("over", over, ("image", "batch"))

    @property
    def name(self) -> str:
        return f"{self.inner.name}, mean over the {self.over}"

    def identity(self) -> dict[str, Any]:
        return {**self.inner.identity(), "averaged": self.over}

    def changed(self, found: StructuredCovariance) -> StructuredCovariance:
        structure, variance = found.structure, found.variance.double()
        batched = variance.ndim > len(structure.shape)
        if self.over == "batch":
            pooled = variance.mean(0, keepdim=True) if batched else variance
        else:  # where variances are shared, each is of equally many elements: their mean is tr Σ/d
            structure = Isotropic(structure.shape)
            pooled = variance.mean(structure.axes, keepdim=True) if batched else variance.mean()
        return StructuredCovariance(structure, pooled.to(found.variance.dtype))
