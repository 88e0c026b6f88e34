"""The best linear denoiser of one element with data variance l: what it weighs x_t by, and its error [E5].

For x_t = α x_0 + σ ε and any data with mean μ and variance l, x̂_0 = μ + κ (x_t − α μ) has the least squared error among
linear estimates. For Gaussian data it is E[x_0|x_t] itself.
"""

from __future__ import annotations

from typing import Any


def linear_gain(data_variance: Any, alpha: Any, sigma: Any) -> Any:
    """κ = α l/(α² l + σ²), for floats, arrays or tensors that broadcast."""
    return alpha * data_variance / (alpha * alpha * data_variance + sigma * sigma)


def linear_mmse(data_variance: Any, alpha: Any, sigma: Any) -> Any:
    """l σ²/(α² l + σ²): the expected squared error of that estimate, for floats, arrays or tensors that broadcast."""
    return data_variance * sigma**2 / (alpha**2 * data_variance + sigma**2)
