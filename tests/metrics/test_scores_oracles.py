"""FID end to end: every kind of input gives the same number, which moves with the images as it should."""

import dataclasses

import numpy as np
import pytest
import torch
from pictures import Pixels, blobs, pixels_hash
from torch.utils.data import Dataset, TensorDataset

from diffusion_var.data.images import save_images, save_npz, to_float
from diffusion_var.errors import DiffusionVarWarning, InputError
from diffusion_var.metrics import FeatureStatistics, Score, feature_statistics, fid, frechet_distance, sides
from diffusion_var.metrics.networks import DigitsFeatures


class Items(Dataset):
    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):  # no IndexError: its length alone says where it ends
        return self.images[index % len(self.images)]


A, B = blobs(300, 1), blobs(250, 2)


STATISTICS = feature_statistics(A, Pixels())


@pytest.fixture(scope="module")
def expected():
    pairs = []
    for images in (A, B):
        x = images.numpy().reshape(len(images), -1).astype(np.float64) / 255
        pairs.append((x.mean(axis=0), np.cov(x, rowvar=False)))
    return frechet_distance(*pairs)


def sources(tmp_path):
    save_images(A, tmp_path / "folder")
    save_npz(A, tmp_path / "a.npz")
    feature_statistics(A, Pixels()).save(tmp_path / "statistics.npz")
    return {
        "tensor": A,
        "array": A.numpy(),
        "floats": to_float(A),
        "dataset": Items(A),
        "labelled": TensorDataset(A, torch.zeros(len(A))),
        "list of images": list(A),
        "list of arrays": list(A.numpy()),
        "batches": A.split(70),
        "generator of float batches": (to_float(batch) for batch in A.split(7)),
        "loader": torch.utils.data.DataLoader(TensorDataset(A, torch.zeros(len(A))), batch_size=64),
        "folder": str(tmp_path / "folder"),
        "npz": tmp_path / "a.npz",
        "statistics": feature_statistics(A, Pixels()),
        "statistics file": tmp_path / "statistics.npz",
    }


def test_every_kind_of_input_gives_the_same_score(tmp_path, expected):
    for kind, source in sources(tmp_path).items():
        assert float(fid(source, B, Pixels())) == pytest.approx(expected, rel=1e-6), kind
    for kind, source in sources(tmp_path).items():
        assert fid(B, source, Pixels()).value == pytest.approx(expected, rel=1e-6), kind


@pytest.mark.parametrize("batch_size", [1, 7, 64, 1000])
def test_does_not_depend_on_the_batch_size_and_never_exceeds_it(expected, batch_size):
    for source in (A, list(A), A.split(100)):
        pixels = Pixels()
        assert fid(source, B, pixels, batch_size=batch_size).value == pytest.approx(expected, rel=1e-6)
        assert max(pixels.batches) <= batch_size
        assert sum(pixels.batches) == len(A) + len(B)


def test_uses_each_batch_before_asking_for_the_next():
    asked, seen = [], []

    def stream():
        for seed in range(20):
            asked.append(seed)
            yield blobs(10, seed)

    class Spy(Pixels):
        def __call__(self, images):
            seen.append(len(asked))
            return super().__call__(images)

    assert feature_statistics(stream(), Spy()).count == 200
    assert seen == list(range(1, 21))


def test_small_for_equal_distributions_and_large_for_shifted_ones():
    same = fid(A, B, Pixels()).value
    brighter = fid(A, blobs(250, 3, brightness=160), Pixels()).value
    noise = 40 * torch.randn(B.shape, generator=torch.Generator().manual_seed(0))
    noisier = fid(A, ((B + noise) / 255).clamp(0, 1), Pixels(), data_range=(0.0, 1.0)).value
    assert 0 < same < 0.05 * brighter
    assert same < 0.1 * noisier
    assert brighter - same == pytest.approx(16 * (32 / 255) ** 2, rel=0.1)
    assert fid(A, A, Pixels()).value == 0.0


def test_floats_are_rounded_to_8_bits_in_their_range():
    floats = A.float() / 255 + 0.4 / 255
    assert fid(floats, A, Pixels(), data_range=(0.0, 1.0)).value == 0.0
    assert fid(floats - 0.5, A, Pixels(), data_range=(-0.5, 0.5)).value == 0.0
    with pytest.warns(DiffusionVarWarning, match=r"upper half of the data range \[-1, 1\]"):
        assert fid(floats, A, Pixels()).value > 1
    with pytest.raises(
        InputError, match=r"from 11\.4 to 237\.4, but the data range is \[-1, 1\]; pass their data_range"
    ):
        fid(255 * floats, A, Pixels())


def test_score_carries_its_protocol():
    network = DigitsFeatures().eval()
    images = torch.zeros(3, 1, 8, 8, dtype=torch.uint8)
    images[1:, :, 2:5] = 200
    score = fid(images, feature_statistics(images.flip(0, 2), network), network)
    assert isinstance(score, Score)
    assert float(score) == score.value > 0
    assert score.protocol == {
        "metric": "fid",
        "features": "digits",
        "features_sha256": network.fingerprint,
        "parameters": {},
        "resize": "none",
        "colour": "as given",
        "number_format": "uint8, round half to even",
        "images": 3,
        "images_from": "images",
        "images_name": "Tensor",
        "images_sha256": pixels_hash(images),
        "reference": 3,
        "reference_from": "statistics",
        "reference_name": "Tensor",
        "reference_sha256": pixels_hash(images.flip(0, 2)),
        "versions": score.protocol["versions"],
    }
    assert score.protocol["versions"]["torch"] == torch.__version__
    assert "diffusion_var" in score.protocol["versions"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        score.value = 1.0


def test_given_statistics_need_no_network(tmp_path, monkeypatch):
    monkeypatch.setattr(sides, "load_features", None)  # a call would fail
    np.savez(tmp_path / "theirs.npz", mu=np.zeros(16), sigma=np.eye(16))
    score = fid(STATISTICS, tmp_path / "theirs.npz")  # features="inception" by default
    assert score.protocol["features"] == "pixels"
    assert score.protocol["reference_from"] == "statistics of unknown origin"
    assert score.protocol["reference"] is None
    assert score.protocol["images"] == 300
    nobodys = fid(FeatureStatistics.from_moments(np.ones(16), np.eye(16)), tmp_path / "theirs.npz")
    assert nobodys.value == pytest.approx(16)
    assert nobodys.protocol["features"] is nobodys.protocol["colour"] is nobodys.protocol["resize"] is None


def test_pytorch_fid_agrees_on_the_files(tmp_path):
    """The statistics that stats writes give pytorch-fid the same score."""
    fid_score = pytest.importorskip("pytorch_fid.fid_score")
    pairs = []
    for images, name in ((A, "a.npz"), (B, "b.npz")):
        feature_statistics(images, Pixels()).save(tmp_path / name)
        with np.load(tmp_path / name) as content:
            pairs += [content["mu"], content["sigma"]]
    try:
        theirs = fid_score.calculate_frechet_distance(*pairs)
    except TypeError:  # scipy has removed sqrtm's disp=
        pytest.skip("pytorch-fid does not run with this scipy")
    assert fid(tmp_path / "a.npz", tmp_path / "b.npz").value == pytest.approx(theirs, rel=1e-8)


class TestRefusals:
    @pytest.mark.parametrize("few", [A[:1], A[:0], [], list(A[:1])])
    def test_fewer_than_two_images(self, few):
        with pytest.raises(InputError, match="at least 2"):
            fid(few, B, Pixels())
        with pytest.raises(InputError, match="at least 2"):
            fid(B, few, Pixels())

    def test_nan_images(self):
        images = to_float(A)
        images[17, 0, 1, 1] = torch.nan
        with pytest.raises(InputError, match="NaN"):
            fid(images, B, Pixels())

    def test_shapes_and_types(self):
        with pytest.raises(InputError, match=r"\(300, 4, 4\)"):
            fid(A[:, 0], B, Pixels())
        with pytest.raises(InputError, match="must share one"):
            fid([A[0], A[1, :, :2]], B, Pixels())
        with pytest.raises(InputError, match=r"shape \(4, 4\)"):
            fid([A[0, 0]], B, Pixels())
        with pytest.raises(InputError, match="image is a dict with label, none of which is a decoded image"):
            fid([{"label": 3}], B, Pixels())
        with pytest.raises(InputError, match="images is a int"):
            fid(3, B, Pixels())
        with pytest.raises(InputError, match="batch_size=0 must be a whole number of at least 1"):
            fid(A, B, Pixels(), batch_size=0)
        with pytest.raises(InputError, match="no file or folder"):
            fid("nowhere.npz", B, Pixels())

    def test_features_of_another_dimension(self):
        with pytest.raises(InputError, match="dimensions 16 and 3"):
            fid(A, FeatureStatistics(3).update(np.eye(3)), Pixels())

    def test_networks_in_training_mode(self):
        with pytest.raises(InputError, match="training mode"):
            fid(torch.zeros(3, 1, 8, 8), torch.zeros(3, 1, 8, 8), DigitsFeatures())
