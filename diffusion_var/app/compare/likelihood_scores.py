"""How the cells of a comparison get their likelihoods: one set of images, every method that has a bound on it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from ...data.fixed_images import FixedImages
from ...errors import InputError
from ...likelihood.bound import Bound
from ...metrics.score import Score
from ...sampling.sampler import Sampler
from ..model import Model
from ..options import BITS
from .options import CompareOptions, Method

LEVELS: Final = 256


class LikelihoodScoring:
    """Bits/dim of `likelihood_images` under a sampler's covariance, steps and η.

    Attributes:
        images: the images, M of them.
        identity: what decides the numbers, besides sampler and seed: plain data.

    Raises InputError for images or methods that cannot have any.
    """

    def __init__(self, options: CompareOptions, model: Model, images: Mapping[str, Any]) -> None:
        self.options, self.denoiser = options, model.denoiser
        if not any(method.is_noisy for method in options.methods):
            raise InputError(
                f"every method has η = 0, whose bound on the likelihood is infinite; leave {BITS} out, or add a method "
                "with η above 0."
            )
        if self.denoiser.codec is not None:
            raise InputError(
                f"{BITS} is for models of pixels, but {options.model} works on latents; leave it out, and use "
                "`diffusion-var nll` for a density of latents."
            )
        self.images: Any = model.inputs(images[options.likelihood_images])
        self.conditions = model.table_conditions(options.likelihood_images, options.download, own=True)
        self._fingerprint = FixedImages(self.images, self.denoiser.shape, self.denoiser.data_range).scan()
        given = {} if self.conditions is None else {"conditions_of_images": self.conditions.fingerprint}
        self.identity = {BITS: {"images": self._fingerprint, "levels": LEVELS, **given}}

    def score(self, sampler: Sampler, steps: Any, method: Method, seed: int, checkpoint: Path) -> Score:
        """The bound, with the noise of one seed; interrupted, it goes on from `checkpoint`.

        Args:
            steps: of the sampler; an optimal path brings its decoder.
        """
        bound = Bound(
            self.denoiser,
            sampler.covariance,
            steps,
            sampler.eta,
            decoder_of(method, steps),
            levels=LEVELS,
            clipped_eps=method.clipped_eps,
            tau=sampler.tau,
        ).evaluate(
            self.images,
            seed,
            conditions=self.conditions,
            batch_size=self.options.batch_size,
            checkpoint=checkpoint,
        )
        protocol = {
            "metric": BITS,
            "parameters": {"levels": LEVELS, "decoder_variance": "the method's", "noise_draws": 1},
            "images": bound.images,
            "reference": self.options.likelihood_images,
            "reference_sha256": self._fingerprint,
        }
        return Score(bound.value, protocol, bound.standard_error)


def decoder_of(method: Method, steps: Any) -> Any:
    """A method's `decoder_variance`, as `Bound` takes it: an optimal path was found with the one that it brings."""
    from ...likelihood.paths import Trajectory

    return None if isinstance(steps, Trajectory) else method.decoder_variance
