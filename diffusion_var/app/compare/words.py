"""The words of a report, explained: those that it uses, in the order in which a reader needs them."""

from __future__ import annotations

from collections.abc import Sequence

from ..options import BITS
from .result import Comparison

_WORDS = {
    "evaluation, K": "one run of the network for one image; K is how many of them an image takes.",
    "reverse step": "from more noise to less: a Gaussian around a mean that the network gives. How wide it is (its "
    "variance) is what is chosen here.",
    "DDPM": "steps with new noise (η = 1); likelihoods need some.",
    "β̃, β": "the two fixed variances of DDPM: right if the clean image were known, or were pure noise.",
    "DDIM": "steps without new noise (η = 0), and without any variance, unless a measured one is added.",
    "Analytic": "the measured variance (Analytic-DPM): how uncertain the clean image still is at each noise level, "
    "measured once on a few images and kept in a table.",
    "isotropic, channel, pixel, dct": "the table's structure: one variance for all, one a channel, one a pixel, or one "
    "a coefficient of the cosine transform, so that the noise is as smooth as images are.",
    "head": "a small network that makes the measured variance depend on the image.",
    "Jacobian, Lanczos": "the covariance of each image by itself, from products with the network's derivative, "
    "untrained: pooled over bands of frequency, or by a few steps of Lanczos. A product is counted as the evaluations "
    "that it costs on this network, so that K evaluations are fewer steps.",
    "cap": "a bound on the last noise, for networks whose mean is not exact there.",
    "solvers": "of the differential equation that DDIM discretises (DPM-Solver++, UniPC, Heun, Euler), or of its "
    "random form: diffusers' own code. They have no variance to choose.",
    "optimal steps": "noise levels that the table says make the likelihood bound least, with the decoder (the last "
    "step, to the image) measured; others are evenly spaced.",
    "Fréchet distance": "between the feature statistics of samples and of reference images (the FID, where the "
    "features are Inception's). Its floor, dashed, is what images of the right kind score in the same number.",
    "bits/dim": "an upper bound on −log₂ of the model's probability of held-out images, for each of their values.",
    "told apart": "all methods start from the same noise, so that two are compared seed by seed: by a paired t-test at "
    "5 %. Shaded scores are not told apart from the best of their column.",
}


def words(results: Sequence[Comparison]) -> dict[str, str]:
    """Those that reports of these comparisons use, explained."""
    methods = [method for result in results for method in result.options.methods]
    metrics = {metric for result in results for metric in result.options.metrics}
    fixed = [m for m in methods if m.covariance in ("beta", "beta_tilde")]
    used = {
        "DDPM": any(m.sampler is None and m.family == "DDPM" for m in methods),
        "β̃, β": any(m.is_noisy for m in fixed),
        "DDIM": any(m.sampler is None and m.family == "DDIM" for m in methods),
        "Analytic": any(m.covariance == "analytic" for m in methods),
        "isotropic, channel, pixel, dct": any(m.covariance == "analytic" for m in methods),
        "head": any(m.covariance == "head" for m in methods),
        "Jacobian, Lanczos": any(m.takes_products for m in methods),
        "cap": any(m.final_noise_cap is not None for m in methods),
        "solvers": any(m.sampler is not None for m in methods),
        "optimal steps": any(m.spacing == "optimal" for m in methods),
        "Fréchet distance": "fid" in metrics,
        "bits/dim": BITS in metrics,
        "told apart": any(len(result.options.seeds) > 1 for result in results),
    }
    return {word: text for word, text in _WORDS.items() if used.get(word, True)}
