"""Benchmark of the estimator: evaluations it saves, and what it costs beside the network.

    python scripts/bench_estimator.py

1. Per index, network evaluations for 2 % relative standard error of the isotropic posterior variance: the published
   estimator (score_norm without control variates, predicted from the measured variance of one draw) against the default
   (residual with control variates; the draws that `estimate` really took, its least number of 256 included).
2. Time per evaluation of `estimate` over a bare forward pass of the same network at the same batch, in alternation.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

import diffusion_var as dv


def evaluations_needed(denoiser: dv.Denoiser, images: torch.Tensor, indices: list[int], tolerance: float) -> None:
    """Print part 1."""
    default = dv.estimate(
        denoiser, images, tolerance=tolerance, indices=indices, structures=("isotropic",), progress=False
    )
    # A longer run of its own for the variance of one draw, so that it is known to a few percent.
    long = dv.estimate(
        denoiser, images, tolerance=tolerance / 8, indices=indices, structures=("isotropic",), progress=False
    )
    of_one_draw = long.moments["isotropic"].draw_variance("eps_square")
    print(f"network evaluations for {tolerance:.0%} relative standard error of v_t")
    print(f"{'n':>6s}{'v_t':>12s}{'published':>16s}{'default':>10s}{'ratio':>12s}{'error reached':>15s}")
    for i, n in enumerate(indices):
        scale = (denoiser.schedule.sigma[n] / denoiser.schedule.alpha[n]) ** 2
        v = long.posterior_variance(n)
        published = (scale / v) ** 2 * of_one_draw[i] / tolerance**2
        taken = int(default.counts[i])
        error = default.standard_error(n) / default.posterior_variance(n)
        print(f"{n:>6d}{v:>12.4g}{published:>16,.0f}{taken:>10,d}{published / taken:>11,.0f}×{error:>15.2%}")


def cost_per_evaluation(denoiser: dv.Denoiser, images: torch.Tensor, batch_size: int, repeats: int) -> None:
    """Print part 2."""
    # The default 64 indices at the least number of draws: a short run, its fixed costs included.
    evaluations = 256 * 64
    x = torch.randn(batch_size, *denoiser.shape, device=denoiser.device)
    timestep = torch.randint(0, denoiser.schedule.num_steps, (batch_size,), device=denoiser.device)

    def bare() -> float:
        start = time.perf_counter()
        with torch.inference_mode():
            for _ in range(evaluations // batch_size):
                out = denoiser.network(x, timestep).sample
        float(out.sum())
        return time.perf_counter() - start

    def ours(structures: tuple[str, ...]) -> float:
        start = time.perf_counter()
        table = dv.estimate(
            denoiser,
            images,
            tolerance=1e9,
            structures=structures,
            batch_size=batch_size,
            progress=False,
        )
        elapsed = time.perf_counter() - start
        return elapsed * evaluations / table.evaluations

    print(f"\ntime per evaluation over a bare forward pass, batch {batch_size}, median of {repeats} pairs")
    for structures in (("isotropic",), ("isotropic", "channel", "pixel", "dct")):
        ours(structures), bare()  # warm up
        pairs = []
        for repeat in range(repeats):  # the order changes from pair to pair, so that drift cancels
            if repeat % 2:
                pairs.append((ours(structures), bare()))
            else:
                other = bare()
                pairs.append((ours(structures), other))
        ratio = statistics.median(a / b for a, b in pairs)
        per = statistics.median(b for _, b in pairs) / evaluations * 1e6
        print(f"{', '.join(structures):<36s} {ratio:.3f}   (forward pass {per:.0f} µs an image)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="digits")
    parser.add_argument("--images", default="digits:table")
    parser.add_argument("--tolerance", type=float, default=0.02)
    parser.add_argument("--indices", type=int, nargs="+", default=[100, 300, 500, 700])
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    denoiser = dv.Denoiser.from_pretrained(args.model)
    images = dv.data.open_images(args.images)
    evaluations_needed(denoiser, images, args.indices, args.tolerance)
    cost_per_evaluation(denoiser, images, args.batch_size, args.repeats)


if __name__ == "__main__":
    main()
