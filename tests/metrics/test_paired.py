"""PSNR, SSIM and LPIPS of pairs, against their formulas written out, and LPIPS against its authors' own package."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate1d

import diffusion_var as dv
from diffusion_var.metrics import paired
from diffusion_var.metrics.paired import lpips, psnr, ssim, why_no_lpips

peak_signal_noise_ratio = pytest.importorskip("torchmetrics.functional.image").peak_signal_noise_ratio
SHAPES = [(1, 8, 8), (3, 16, 12), (1, 6, 20)]


def pairs(shape: tuple[int, ...], count: int = 5, low: float = -1.0, high: float = 1.0) -> tuple[Any, Any]:
    stream = np.random.default_rng(0)
    truth = stream.uniform(low, high, (count, *shape))
    noisy = np.clip(truth + 0.2 * (high - low) * stream.standard_normal(truth.shape), low, high)
    return torch.from_numpy(noisy), torch.from_numpy(truth)


@pytest.mark.parametrize("shape", [*SHAPES, (7,), (2, 30), (1, 4, 8, 8)])
@pytest.mark.parametrize("limits", [(-1.0, 1.0), (0.0, 255.0)])
def test_psnr_is_its_formula_and_torchmetrics(shape: tuple[int, ...], limits: tuple[float, float]) -> None:
    images, truth = pairs(shape, 5, *limits)
    error = ((images - truth) ** 2).flatten(1).mean(1)
    expected = 10 * torch.log10((limits[1] - limits[0]) ** 2 / error)
    found = psnr(images, truth, limits)
    assert found.dtype == torch.float64
    assert (found - expected).abs().max() < 1e-9
    theirs = peak_signal_noise_ratio(
        images, truth, limits[1] - limits[0], reduction="none", dim=[*range(1, truth.ndim)]
    )
    assert (found - theirs).abs().max() < 1e-5  # whose 10 in the logarithm is float32
    assert torch.isinf(psnr(truth, truth, limits)).all()


def smooth(x: np.ndarray) -> np.ndarray:
    """A Gaussian window of σ 1.5 and 11 pixels along both axes, reflected at the edges."""
    window = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    for axis in (-2, -1):
        x = correlate1d(x, window / window.sum(), axis, mode="mirror")
    return x


def naive_ssim(x: np.ndarray, y: np.ndarray, width: float) -> float:
    c1, c2 = (0.01 * width) ** 2, (0.03 * width) ** 2
    m, n = smooth(x), smooth(y)
    v, w, c = smooth(x * x) - m * m, smooth(y * y) - n * n, smooth(x * y) - m * n
    return float(np.mean((2 * m * n + c1) * (2 * c + c2) / ((m * m + n * n + c1) * (v + w + c2))))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("limits", [(-1.0, 1.0), (0.0, 1.0)])
def test_ssim_is_its_formula(shape: tuple[int, ...], limits: tuple[float, float]) -> None:
    images, truth = pairs(shape, 5, *limits)
    expected = [naive_ssim(x.numpy(), y.numpy(), limits[1] - limits[0]) for x, y in zip(images, truth, strict=True)]
    assert np.abs(ssim(images, truth, limits).numpy() - expected).max() < 1e-9
    assert (ssim(truth, truth, limits) - 1).abs().max() < 1e-12


def test_an_images_score_is_its_own() -> None:
    images, truth = pairs((3, 16, 12))
    for score in (psnr, ssim):
        alone = torch.cat([score(images[i : i + 1], truth[i : i + 1]) for i in range(len(images))])
        assert (score(images, truth) - alone).abs().max() < 1e-9


@pytest.mark.parametrize(
    ("images", "truth", "said"),
    [
        (torch.zeros(2, 1, 8, 8), torch.zeros(3, 1, 8, 8), "each image its own truth"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.zeros(2, 1, 8, 8), "to_float"),
        (torch.full((2, 1, 8, 8), torch.nan), torch.zeros(2, 1, 8, 8), "images hold NaN"),
        (torch.zeros(2, 1, 8, 8), torch.full((2, 1, 8, 8), torch.inf), "truth hold NaN"),
        (np.zeros((2, 1, 8, 8)), torch.zeros(2, 1, 8, 8), "images must be a tensor"),
        (torch.zeros(0, 1, 8, 8), torch.zeros(0, 1, 8, 8), "floats"),
    ],
)
def test_what_is_no_pair_is_refused(images: Any, truth: Any, said: str) -> None:
    for score in (psnr, ssim, lpips):
        with pytest.raises(dv.InputError, match=said):
            score(images, truth)


def test_ssim_needs_pictures() -> None:
    for shape in ((7,), (2, 30), (1, 5, 8)):
        with pytest.raises(dv.InputError, match="at least 6"):
            ssim(*pairs(shape))
    for limits in (None, (1.0, -1.0), 3):
        with pytest.raises(dv.InputError, match="data_range"):
            psnr(*pairs((1, 8, 8)), limits)  # type: ignore[arg-type]


# ---- LPIPS ----------------------------------------------------------------------------------------------------------


def test_lpips_says_why_it_is_not_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert "which is not there" in str(why_no_lpips((3, 64, 64)))
    assert "at least 32" in str(why_no_lpips((1, 8, 8)))
    assert "(1, H, W) or (3, H, W)" in str(why_no_lpips((2, 64, 64)))
    with pytest.raises(dv.InputError, match="network='resnet' is not known"):
        why_no_lpips((3, 64, 64), "resnet")
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "hub" / "checkpoints" / "alexnet-owt-7be5be79.pth").write_bytes(b"another file")
    assert "by its SHA-256 this is another one" in str(why_no_lpips((3, 64, 64)))
    with pytest.raises(dv.InputError, match="another one"):
        lpips(*pairs((3, 64, 64)))


@pytest.mark.parametrize("channels", [1, 3])
def test_lpips_is_that_of_its_authors(channels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one backbone of random weights for both, in the place of torchvision's file."""
    authors = pytest.importorskip("lpips")
    from torchvision.models import squeezenet1_1

    before = torch.random.get_rng_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = squeezenet1_1(weights=None)
        theirs = authors.LPIPS(net="squeeze", pnet_rand=True, verbose=False)
    file = tmp_path / "hub" / "checkpoints" / "squeezenet1_1-b8a52dc0.pth"
    file.parent.mkdir(parents=True)
    torch.save(backbone.state_dict(), file)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(paired, "_file_sha256", lambda path: "b8a52dc0" + "0" * 56)
    slices = [module for name, module in theirs.net.named_children() if name.startswith("slice")]
    layers = [layer for part in slices for layer in part.children()]
    for mine, theirs_too in zip(backbone.features, layers, strict=True):
        theirs_too.load_state_dict(mine.state_dict())
    images, truth = pairs((channels, 40, 48), 3, 0.0, 1.0)
    shown = [(2 * part - 1).float().expand(-1, 3, -1, -1) for part in (images, truth)]
    with torch.no_grad():
        expected = theirs.eval()(*shown).reshape(-1).double()
    found = lpips(images, truth, (0.0, 1.0), "squeeze")
    assert expected.min() > 1e-3
    assert ((found - expected) / expected).abs().max() < 1e-4
    assert lpips(truth, truth, (0.0, 1.0), "squeeze").abs().max() < 1e-7
    assert torch.equal(torch.random.get_rng_state(), before)  # no global numbers are drawn
