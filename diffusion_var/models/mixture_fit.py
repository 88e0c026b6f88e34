"""A mixture of Gaussians fitted to images: scikit-learn's expectation–maximisation, with full covariances."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch

from .. import checks
from ..data.containers import by_position, item_at, stacked
from ..data.images import to_float
from ..process.schedule import NoiseSchedule
from .mixture import MixtureDenoiser

#: One grey level of 8-bit images in [−1, 1], squared.
GREY_LEVEL = (2.0 / 255.0) ** 2
_IMPROVEMENT = 0.5  # nats an image: below this a further round changes nothing that one could see


def fit_mixture(
    images: Any,
    components: int = 6,
    schedule: NoiseSchedule | None = None,
    *,
    regularisation: float = GREY_LEVEL,
    most_images: int = 10_000,
    rounds: int = 8,
    seed: int = 0,
    device: torch.device | str | None = None,
    data_range: tuple[float, float] | None = None,
) -> MixtureDenoiser:
    """The mixture of full-covariance Gaussians nearest to images (maximum likelihood): a model of them whose mean,
    covariances and density are exact, to try on what otherwise needs a trained network.

    Args:
        images: (M, C, *spatial), as for `estimate`: uint8 (scaled to [-1, 1]) or floats; more images than dimensions.
        components: J.
        schedule: of the denoiser; None: `NoiseSchedule.linear(1000)`.
        regularisation: variance added to every element of every component, in squared units of the images, so that no
            covariance is singular: by default one grey level of 8-bit images squared, (2/255)².
        most_images: of more images this many are used, evenly spread over them.
        rounds: of expectation and maximisation, at most; fewer where one gains less than half a nat an image.
        seed: of the first assignment of images to components (k-means).
        device: of the denoiser.
        data_range: of the denoiser; see `MixtureDenoiser`.

    Costs about 2·rounds·J·M·d² multiplications: for 10,000 images of d = 768, J = 6 and 8 rounds 30 s on one
    core. The same on one machine; between machines and numbers of threads equal up to rounding, which may move an image
    from one component to another. Raises InputError for fewer images than components, or a regularisation that is not
    positive.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    components = checks.whole("components", components, least=1)
    regularisation = checks.positive("regularisation", regularisation)
    most_images = checks.whole("most_images", most_images, least=1)
    rounds, seed = checks.whole("rounds", rounds, least=1), checks.seed(seed)
    images = by_position(images)
    chosen = np.unique(np.linspace(0, len(images) - 1, min(len(images), most_images)).round().astype(int))
    checks.refuse(
        len(chosen) < max(components, 2),
        f"there are {len(chosen)} images for {components} components; give more (a covariance of d dimensions wants "
        "more than d images a component).",
    )
    pixels = stacked([item_at(images, int(i)) for i in chosen])
    pixels = to_float(pixels) if pixels.dtype == torch.uint8 else pixels
    shape = tuple(pixels.shape[1:])
    flat = pixels.flatten(1).double().numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the rounds are bounded on purpose
        fitted = GaussianMixture(
            components,
            reg_covar=regularisation,
            max_iter=rounds,
            tol=_IMPROVEMENT,
            random_state=int(np.random.default_rng(seed).integers(2**31)),
        ).fit(flat)
    return MixtureDenoiser(
        NoiseSchedule.linear(1000) if schedule is None else schedule,
        fitted.means_.reshape(components, *shape),
        weights=fitted.weights_,
        covariances=fitted.covariances_,
        device=device,
        data_range=data_range,
    )
