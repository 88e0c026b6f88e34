"""Benchmark of the FID harness: the Fréchet distance, and features a second, beside what others use, in one run.

    python scripts/bench_fid.py                                   # both parts, random Inception weights
    python scripts/bench_fid.py --part distance --dimension 2048
    python scripts/bench_fid.py --part features --inception-weights weights-inception-2015-12-05-6726825d.pth

Distance: ours, `scipy.linalg.sqrtm(S1 @ S2)` (pytorch-fid), and `numpy.linalg.eigvals(S1 @ S2)` (torch-fidelity),
of the same statistics of n = 2 d and of n = d/2 images; their order changes from repeat to repeat.
Features: `collect` with the Inception network, and torch-fidelity's own loop with its own, over the same uint8 images
in memory, same weights, batch size, device and threads, in alternating pairs.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from diffusion_var.metrics import collect, frechet_distance, load_features

Array = npt.NDArray[np.float64]
Moments = tuple[Array, Array]


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of one call, the device idle before and after, and its result."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def features(count: int, dimension: int, side: int) -> Array:
    """Correlated features in mildly different units, the second side a little off the first."""
    mixing = np.random.default_rng([0, 9]).standard_normal((dimension, dimension)) / dimension**0.5
    scale = np.exp(0.3 * np.random.default_rng([0, 8]).standard_normal(dimension))
    noise = np.random.default_rng([0, side]).standard_normal((count, dimension))
    return np.asarray((noise + 0.3 * noise @ mixing) * scale * (1 + 0.1 * side) + 0.1 * side)


def moments(x: Array) -> Moments:
    return x.mean(axis=0), np.cov(x, rowvar=False)


def others(a: Moments, b: Moments, root: Callable[[Array], Any]) -> float:
    """The usual formula; `root` gives tr (S1 S2)^{1/2}, with whatever imaginary part."""
    return float(np.square(a[0] - b[0]).sum() + np.trace(a[1]) + np.trace(b[1]) - 2 * root(a[1] @ b[1]).real)


def by_sqrtm(product: Array) -> Any:
    from scipy.linalg import sqrtm

    return np.trace(sqrtm(product))


def by_eigvals(product: Array) -> Any:
    return np.sqrt(np.linalg.eigvals(product).astype(complex)).sum()


def from_the_data(x: Array, y: Array) -> float:
    """The distance without covariances, by the singular values of the product of the centred data."""
    from scipy.linalg import svdvals

    a, b = ((z - z.mean(axis=0)) / np.sqrt(len(z) - 1) for z in (x, y))
    means = np.square(x.mean(axis=0) - y.mean(axis=0)).sum()
    return float(means + (a**2).sum() + (b**2).sum() - 2 * svdvals(a @ b.T).sum())


def compare_distances(dimension: int, count: int, repeats: int) -> None:
    x, y = features(count, dimension, 0), features(count + 5, dimension, 1)
    a, b = moments(x), moments(y)
    methods: dict[str, Callable[[], float]] = {
        "ours": lambda: frechet_distance(a, b),
        "scipy.linalg.sqrtm": lambda: others(a, b, by_sqrtm),
        "numpy.linalg.eigvals": lambda: others(a, b, by_eigvals),
    }
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    values: dict[str, float] = {}
    for repeat in range(repeats):
        for name in list(methods)[:: -1 if repeat % 2 else 1]:
            elapsed, values[name] = timed(methods[name])
            seconds[name].append(elapsed)
    print(f"\nd = {dimension}, n = {count}, medians of {repeats} alternating repeats")
    print(f"{'':<22s}{'value':>22s}{'relative to ours':>18s}{'time':>10s}{'their time/ours':>17s}")
    for name, value in values.items():
        ratio = statistics.median(other / own for other, own in zip(seconds[name], seconds["ours"], strict=True))
        difference = value / values["ours"] - 1
        print(f"{name:<22s}{value:>22.12f}{difference:>18.1e}{statistics.median(seconds[name]):>8.2f} s{ratio:>17.2f}")
    if count <= dimension:
        value = from_the_data(x, y)
        print(f"{'from the data':<22s}{value:>22.12f}{value / values['ours'] - 1:>18.1e}")


class Pictures(Dataset[Tensor]):
    """Random uint8 images (count, 3, size, size) in memory."""

    def __init__(self, count: int, size: int) -> None:
        numbers = np.random.default_rng(0).integers(0, 256, (count, 3, size, size), dtype=np.uint8)
        self.images = torch.from_numpy(numbers)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


def random_weights(folder: str) -> Path:
    """The random weights file of the tests, in the published layout."""
    sys.path.append(str(Path(__file__).parents[1] / "tests" / "support"))
    from inception_weights import write_random_weights  # type: ignore[import-not-found]

    path = Path(folder) / "random.pth"
    write_random_weights(path)
    return path


def compare_throughput(args: argparse.Namespace, weights: Path) -> None:
    from hashlib import sha256

    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    from torch_fidelity.utils import get_featuresdict_from_dataset

    accepted = sha256(weights.read_bytes()).hexdigest()
    network = load_features("inception", inception_weights=weights, accept_weights=accepted)
    extractor = FeatureExtractorInceptionV3("bench", ["2048"], feature_extractor_weights_path=str(weights))
    extractor.requires_grad_(False).eval().to(args.device)
    pictures = Pictures(args.images, args.size)
    on_gpu = args.device.startswith("cuda")

    def ours() -> Any:
        return collect(pictures, network, keep=True, batch_size=args.batch_size, device=args.device).features

    def theirs() -> Any:
        out = get_featuresdict_from_dataset(pictures, extractor, args.batch_size, on_gpu, not args.workers, False)
        return out["2048"].numpy()

    timed(ours), timed(theirs)  # warm up
    pairs = []
    for pair in range(args.pairs):
        if pair % 2:
            (mine, a), (other, b) = timed(ours), timed(theirs)
        else:
            (other, b), (mine, a) = timed(theirs), timed(ours)
        pairs.append((mine, other))
    ratio = statistics.median(other / mine for mine, other in pairs)
    rates = [args.images / statistics.median(column) for column in zip(*pairs, strict=True)]
    print(f"\n{args.images} images {args.size}×{args.size}, batch {args.batch_size}, {args.device}, {args.pairs} pairs")
    print(f"images a second: ours {rates[0]:.1f}, torch-fidelity {rates[1]:.1f}, ratio {ratio:.3f} (median of pairs)")
    print(f"largest difference of features {np.abs(a - b).max():.1e} (largest feature {np.abs(b).max():.2g})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["both", "distance", "features"], default="both")
    parser.add_argument("--dimension", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--inception-weights", type=Path, help="by default random ones in the published layout")
    parser.add_argument("--workers", action="store_true", help="torch-fidelity loads in worker processes, its default")
    args = parser.parse_args()
    print(f"torch threads {torch.get_num_threads()}")
    if args.part != "features":
        warnings.filterwarnings("ignore", message="Matrix is singular")  # sqrtm, of few images
        compare_distances(args.dimension, 2 * args.dimension, args.repeats)
        compare_distances(args.dimension, args.dimension // 2, args.repeats)
    if args.part != "distance":
        with tempfile.TemporaryDirectory() as folder:
            compare_throughput(args, args.inception_weights or random_weights(folder))


if __name__ == "__main__":
    main()
