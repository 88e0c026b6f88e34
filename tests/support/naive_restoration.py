"""What restoration is compared with: dense matrices of one image, and the published formulas as they are published.

Images are flat, (d,) float64; A is (m, d), covariances (d, d), R (m, m), J = ∂x̂_0/∂x_t (d, d).
"""

import numpy as np
import torch


def naive_type_1(mean, jacobian, alpha, sigma, covariance, A, R, y):
    """x̂_0 + (σ²/α) Jᵀ Aᵀ (A Σ Aᵀ + R)⁻¹ (y − A x̂_0)."""
    u = np.linalg.solve(A @ covariance @ A.T + R, y - A @ mean)
    return mean + sigma**2 / alpha * jacobian.T @ A.T @ u


def naive_step_length(mean, J, alpha, sigma, sigma_0, A, R, y):
    """f: what a step along u takes of the residual, by the network's own derivative."""
    r = y - A @ mean
    u = np.linalg.solve(A @ sigma_0 @ A.T + R, r)
    return min(1.0, u @ r / (u @ (A @ (sigma**2 / alpha * J.T) @ A.T + R) @ u))


def naive_type_2(mean, covariance, A, R, y):
    """x̂_0 + Σ Aᵀ (A Σ Aᵀ + R)⁻¹ (y − A x̂_0)."""
    u = np.linalg.solve(A @ covariance @ A.T + R, y - A @ mean)
    return mean + covariance @ A.T @ u


def gaussian_given_both(mean_0, covariance_0, alpha, sigma, x_t, A, R, y):
    """E and Cov of x_0 ~ N(mean_0, covariance_0) given x_t and y, by their joint precision.

    `sigma` None: given y alone.
    """
    precision = np.linalg.inv(covariance_0) + A.T @ np.linalg.solve(R, A)
    told = np.linalg.solve(covariance_0, mean_0) + A.T @ np.linalg.solve(R, y)
    if sigma is not None:
        precision = precision + (alpha / sigma) ** 2 * np.eye(len(mean_0))
        told = told + alpha / sigma**2 * x_t
    covariance = np.linalg.inv(precision)
    return covariance @ told, covariance


def conjugate_gradients(S, r, tolerance):
    """Hestenes and Stiefel's (1952) for one image: u, and the products it took."""
    u, left, p, products = np.zeros_like(r), r.copy(), r.copy(), 0
    while np.linalg.norm(left) > tolerance * np.linalg.norm(r):
        step = left @ left / (p @ S @ p)
        u, after = u + step * p, left - step * S @ p
        p, left, products = after + (after @ after) / (left @ left) * p, after, products + 1
    return u, products


# ---- Peng et al. (arXiv:2402.02149): one variance r² for all of x_0 given x_t, images (H, W) and α = 1 ---------------


def peng_inpainting_2(x_0, r2, mask, y, std):
    """Type II: what was seen is averaged with x̂_0 by precision."""
    rho = std**2 / r2
    return (mask * y + rho * x_0) / (mask + rho)


def peng_inpainting_v(x_0, r2, mask, y, std):
    """Type I: v of the guidance σ_t² Jᵀ v."""
    return mask * (y - x_0) / (std**2 + r2)


def peng_blur_2(x_0, r2, kernel, y, std):
    """Type II of a circular blur, `kernel` (H, W) with its centre at (0, 0)."""
    F, rho = np.fft.fft2(kernel), std**2 / r2
    return np.fft.ifft2((F.conj() * np.fft.fft2(y) + rho * np.fft.fft2(x_0)) / (np.abs(F) ** 2 + rho)).real


def peng_blur_v(x_0, r2, kernel, y, std):
    """Type I of a circular blur."""
    F = np.fft.fft2(kernel)
    gap = np.fft.fft2(y) - F * np.fft.fft2(x_0)
    return np.fft.ifft2(F.conj() * gap / (std**2 + r2 * np.abs(F) ** 2)).real


def peng_super_resolution_v(x_0, r2, kernel, factor, y, std):
    """Type I of a circular blur of which every `factor`-th pixel is kept: |F|² is averaged over its distinct blocks."""
    F = np.fft.fft2(kernel)
    H, W = kernel.shape
    low = np.fft.ifft2(F * np.fft.fft2(x_0)).real[::factor, ::factor]
    blocks = (np.abs(F) ** 2).reshape(factor, H // factor, factor, W // factor).mean((0, 2))
    small = np.fft.ifft2(np.fft.fft2(y - low) / (std**2 + r2 * blocks)).real
    raised = np.zeros((H, W))
    raised[::factor, ::factor] = small
    return np.fft.ifft2(F.conj() * np.fft.fft2(raised)).real


# ---- TMPD (arXiv:2310.06721): the rows of (σ²/α) J, summed, for its diagonal ----------------------------------------


def tmpd_mean(network_mean, x_t, alpha, sigma, A, y, std):
    """x̂_0 + (σ²/α) Jᵀ Aᵀ v, v = (y − A x̂_0)/(A (σ²/α) Jᵀ Aᵀ 1 + σ_y²): `network_mean` of one image (d,)."""
    x = torch.from_numpy(x_t).requires_grad_()
    mean, A = network_mean(x), torch.from_numpy(A)
    (sums,) = torch.autograd.grad(mean, x, A.T @ torch.ones(len(A), dtype=torch.float64), retain_graph=True)
    v = (torch.from_numpy(y) - A @ mean) / (sigma**2 / alpha * A @ sums + std**2)
    (pulled,) = torch.autograd.grad(mean, x, (A.T @ v).detach())
    return (mean + sigma**2 / alpha * pulled).detach().numpy()
