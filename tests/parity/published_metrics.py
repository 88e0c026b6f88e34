"""Scores of features as published, in plain loops.

Sources: FID (arXiv:1706.08500), KID (arXiv:1801.01401), precision and recall (arXiv:1904.06991), density and coverage
(arXiv:2002.09797).
"""

import numpy as np


def moments(features):
    """Mean (D,) and covariance (D, D), divided by count − 1."""
    count, D = features.shape
    mean = [sum(float(row[j]) for row in features) / count for j in range(D)]
    covariance = [
        [sum((float(r[i]) - mean[i]) * (float(r[j]) - mean[j]) for r in features) / (count - 1) for j in range(D)]
        for i in range(D)
    ]
    return np.array(mean), np.array(covariance)


def fid(a, b):
    """‖μ_a − μ_b‖² + tr Σ_a + tr Σ_b − 2 tr (Σ_a Σ_b)^½, the trace as the sum of the roots of the product's
    eigenvalues."""
    (mean_a, sigma_a), (mean_b, sigma_b) = moments(a), moments(b)
    roots = np.sqrt(np.linalg.eigvals(sigma_a @ sigma_b).real)
    distance = sum((x - y) ** 2 for x, y in zip(mean_a, mean_b, strict=True))
    return float(distance + np.trace(sigma_a) + np.trace(sigma_b) - 2.0 * roots.sum())


def kid(a, b):
    """The unbiased estimate of MMD² with the kernel (x·y/D + 1)³."""

    def kernel(x, y):
        return (sum(float(p) * float(q) for p, q in zip(x, y, strict=True)) / len(x) + 1.0) ** 3

    n, m = len(a), len(b)
    of_a = sum(kernel(a[i], a[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    of_b = sum(kernel(b[i], b[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return of_a + of_b - 2.0 * sum(kernel(x, y) for x in a for y in b) / (n * m)


def prdc(real, fake, k, closed=True):
    """Precision, recall, density and coverage, with balls of the radius of the k-th neighbour: closed, or open as in
    the code of density and coverage."""

    def distance(x, y):
        return float(np.sqrt(np.sum((x - y) ** 2)))

    def radii(points):
        return [sorted(distance(x, y) for j, y in enumerate(points) if j != i)[k - 1] for i, x in enumerate(points)]

    def inside(x, y, radius):
        return distance(x, y) <= radius if closed else distance(x, y) < radius

    of_real, of_fake = radii(real), radii(fake)
    held = [sum(inside(x, y, r) for x, r in zip(real, of_real, strict=True)) for y in fake]
    back = [any(inside(x, y, r) for y, r in zip(fake, of_fake, strict=True)) for x in real]
    reached = [any(inside(x, y, r) for y in fake) for x, r in zip(real, of_real, strict=True)]
    return {
        "precision": sum(h > 0 for h in held) / len(fake),
        "recall": sum(back) / len(real),
        "density": sum(held) / (k * len(fake)),
        "coverage": sum(reached) / len(real),
    }
