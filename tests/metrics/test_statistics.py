"""Streaming mean and covariance against numpy, and the statistics file."""

import hashlib
import struct
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_var.errors import InputError
from diffusion_var.metrics.statistics import FeatureStatistics


def offset_features(count=400, dimension=6, offset=1e4, seed=0):
    """Correlated features far from zero: E[x²] − E[x]² in float64 would be wrong at 1e-8, in float32 meaningless."""
    rng = np.random.default_rng(seed)
    return offset + rng.normal(size=(count, dimension)) @ (np.eye(dimension) + 0.5 * rng.normal(size=(dimension,) * 2))


def streamed(batches, dimension):
    statistics = FeatureStatistics(dimension)
    for batch in batches:
        statistics.update(batch)
    return statistics


def assert_same(statistics, features):
    np.testing.assert_allclose(statistics.mean, features.mean(axis=0), rtol=1e-13)
    expected = np.cov(features, rowvar=False)
    assert np.abs(statistics.covariance - expected).max() < 1e-10 * np.abs(expected).max()
    assert statistics.count == len(features)


@pytest.mark.parametrize("offset", [0.0, 1e4, -1e6])
@pytest.mark.parametrize("batch_size", [1, 2, 7, 64, 400])
def test_equals_numpy_for_every_batch_size(offset, batch_size):
    features = offset_features(offset=offset)
    assert_same(streamed(np.array_split(features, range(batch_size, 400, batch_size)), 6), features)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(cuts=st.lists(st.integers(0, 120), max_size=12), order=st.randoms(use_true_random=False))
def test_does_not_depend_on_cuts_or_order(cuts, order):
    features = offset_features(120)
    batches = np.split(features, sorted(cuts))  # empty batches included
    order.shuffle(batches)
    assert_same(streamed(batches, 6), features)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(cuts=st.lists(st.integers(0, 60), min_size=1, max_size=5), order=st.randoms(use_true_random=False))
def test_merges_in_any_grouping(cuts, order):
    features = offset_features(60)
    parts = [streamed([part], 6) for part in np.split(features, sorted(cuts))]
    while len(parts) > 1:
        order.shuffle(parts)
        parts.append(parts.pop().merge(parts.pop()))
    assert_same(parts[0], features)


def test_merging_with_itself_counts_everything_twice():
    features = offset_features(30)
    statistics = streamed([features], 6)
    assert_same(statistics.merge(statistics), np.concatenate([features, features]))


def test_merging_leaves_the_other_alone():
    a, b = offset_features(30), offset_features(20, seed=1)
    first, second = streamed([a], 6), streamed([b], 6)
    first.merge(second).update(a)
    assert_same(second, b)


def test_takes_tensors_of_any_float_type_and_sums_in_float64():
    features = offset_features(200).astype(np.float32)
    assert_same(streamed(torch.from_numpy(features).split(9), 6), features.astype(np.float64))


def test_saves_and_loads(tmp_path):
    statistics = streamed([offset_features()], 6)
    statistics.save(tmp_path / "s.npz")
    loaded = FeatureStatistics.load(tmp_path / "s.npz")
    assert loaded.count == 400
    np.testing.assert_array_equal(loaded.mean, statistics.mean)
    np.testing.assert_allclose(loaded.covariance, statistics.covariance, rtol=1e-15)
    more = offset_features(50, seed=2)
    assert_same(loaded.update(more), np.concatenate([offset_features(), more]))
    with np.load(tmp_path / "s.npz") as content:  # what pytorch-fid reads
        assert content["mu"].shape == (6,)
        np.testing.assert_array_equal(content["sigma"], statistics.covariance)


def test_loads_files_of_pytorch_fid(tmp_path):
    features = offset_features()
    sigma = np.cov(features, rowvar=False)
    np.savez(tmp_path / "theirs.npz", mu=features.mean(axis=0), sigma=sigma)
    loaded = FeatureStatistics.load(tmp_path / "theirs.npz")
    assert loaded.count is None
    np.testing.assert_array_equal(loaded.covariance, 0.5 * (sigma + sigma.T))
    with pytest.raises(InputError, match="how many images"):
        loaded.update(features)
    with pytest.raises(InputError, match="how many images"):
        loaded.merge(streamed([features], 6))
    with pytest.raises(InputError, match="how many images"):
        streamed([features], 6).merge(loaded)
    loaded.save(tmp_path / "again.npz")
    with np.load(tmp_path / "again.npz") as content:
        assert sorted(content.files) == ["mu", "sigma"]


def test_keeps_its_origin_until_it_changes(tmp_path):
    statistics = streamed([offset_features()], 6)
    origin = {"name": "a – b", "sha256": "12", "shape": [1, 2, 3], "count": 400, "nested": {"x": None}}
    statistics.origin = origin
    statistics.save(tmp_path / "s.npz")
    loaded = FeatureStatistics.load(tmp_path / "s.npz")
    assert loaded.origin == origin
    assert streamed([offset_features()], 6).merge(loaded).origin is None
    assert loaded.update(np.zeros((0, 6))).origin == origin
    assert loaded.update(np.zeros((1, 6))).origin is None
    for text in ("[1]", "no json"):
        np.savez(tmp_path / "bad.npz", mu=np.zeros(2), sigma=np.eye(2), origin=np.array(text))
        with pytest.raises(InputError, match=r"bad\.npz"):
            FeatureStatistics.load(tmp_path / "bad.npz")


def test_the_digest_follows_the_moments_and_not_the_file(tmp_path):
    mu, sigma = np.arange(2.0), np.array([[2.0, 0.5], [0.5, 1.0]])
    expected = hashlib.sha256(struct.pack("<6d", 0, 1, 2, 0.5, 0.5, 1)).hexdigest()
    np.savez(tmp_path / "a.npz", mu=mu, sigma=sigma)
    np.savez_compressed(tmp_path / "b.npz", sigma=sigma.astype(">f8"), mu=mu.astype(np.float32), mu_s=mu)
    for name in ("a.npz", "b.npz"):
        assert FeatureStatistics.load(tmp_path / name).digest == expected
    sigma[0, 0] += 1e-12
    assert FeatureStatistics.from_moments(mu, sigma).digest != expected


def test_pytorch_fid_reads_and_writes_the_same_file(tmp_path):
    fid_score = pytest.importorskip("pytorch_fid.fid_score")
    statistics = streamed([offset_features()], 6)
    statistics.origin = {"name": "x"}
    statistics.save(tmp_path / "ours.npz")
    mu, sigma = fid_score.compute_statistics_of_path(str(tmp_path / "ours.npz"), None, 1, 6, "cpu")
    np.testing.assert_array_equal(mu, statistics.mean)
    np.testing.assert_array_equal(sigma, statistics.covariance)
    np.savez_compressed(tmp_path / "theirs.npz", mu=mu, sigma=sigma)  # as its save_fid_stats does
    theirs = FeatureStatistics.load(tmp_path / "theirs.npz")
    np.testing.assert_array_equal(theirs.mean, mu)
    np.testing.assert_allclose(theirs.covariance, sigma, rtol=1e-15)


def test_reads_the_reference_batches_of_adm_without_their_images(tmp_path):
    sigma = np.eye(3)
    path = tmp_path / "VIRTUAL.npz"
    np.savez(path, mu=np.zeros(3), sigma=sigma, mu_s=np.zeros(5), sigma_s=np.eye(5), arr_0=np.zeros((4, 8, 8, 3), "u1"))
    loaded = FeatureStatistics.load(path)
    assert (loaded.dimension, loaded.count, loaded.origin) == (3, None, None)


def test_one_name_twice_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(2))
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for name in ("mu.npy", "sigma.npy", "count.npy"):
            archive.write(tmp_path / "a.npy", name)
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.write(tmp_path / "a.npy", "mu.npy")
    with pytest.raises(InputError, match=r"a\.npz holds .* one name twice"):
        FeatureStatistics.load(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": np.zeros(3)}, "lacks sigma"),
        ({"images": np.zeros(3)}, "lacks mu and sigma"),
        ({"mu": np.zeros(3), "sigma": np.zeros((3, 4))}, r"\(3, 4\)"),
        ({"mu": np.zeros(2), "sigma": np.eye(3)}, r"\(2,\)"),
        ({"mu": np.zeros((1, 3)), "sigma": np.eye(3)}, r"\(1, 3\)"),
        ({"mu": np.zeros(2), "sigma": np.array([[1.0, 0.5], [0.1, 1.0]])}, "not a covariance"),
        ({"mu": np.zeros(2), "sigma": np.diag([1.0, -1.0])}, "not a covariance"),
        ({"mu": np.zeros(2), "sigma": np.array([[1.0, np.nan], [np.nan, 1.0]])}, "NaN"),
        ({"mu": np.array([0.0, np.inf]), "sigma": np.eye(2)}, "NaN or Inf"),
        ({"mu": np.array(["a", "b"]), "sigma": np.eye(2)}, "numbers"),
        ({"mu": np.zeros(2), "sigma": np.eye(2), "count": 1}, "count is 1"),
        ({"mu": np.zeros(2), "sigma": np.eye(2), "count": 2.5}, "count=2.5 must be a whole number"),
        ({"mu": np.zeros(2), "sigma": np.eye(2), "origin": "[" * 100_000}, "nested too deeply"),
    ],
)
def test_loading_refuses_what_is_no_statistics(tmp_path, arrays, message):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(InputError, match=rf"bad\.npz.*{message}"):
        FeatureStatistics.load(tmp_path / "bad.npz")


def test_loading_refuses_unreadable_files(tmp_path):
    streamed([offset_features()], 6).save(tmp_path / "s.npz")
    content = (tmp_path / "s.npz").read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 0xFF
    for damaged in (b"", content[:40], content[: len(content) // 2], bytes(flipped), b"not an npz"):
        (tmp_path / "bad.npz").write_bytes(damaged)
        with pytest.raises(InputError, match=r"bad\.npz cannot be read"):
            FeatureStatistics.load(tmp_path / "bad.npz")
    with pytest.raises(InputError, match="no file"):
        FeatureStatistics.load(tmp_path / "missing.npz")
    np.savez(tmp_path / "pickled.npz", mu=np.array([{}], dtype=object), sigma=np.eye(1))
    with pytest.raises(InputError, match=r"pickled\.npz cannot be read"):
        FeatureStatistics.load(tmp_path / "pickled.npz")


def test_refuses_bad_features():
    statistics = FeatureStatistics(3)
    for bad in (np.zeros((2, 4)), np.zeros(3), np.zeros((2, 3, 1))):
        with pytest.raises(InputError, match=r"expected \(B, 3\)"):
            statistics.update(bad)
    for number in (np.nan, np.inf):
        with pytest.raises(InputError, match="NaN or Inf"):
            statistics.update(np.array([[0.0, 1.0, number]]))
    assert statistics.count == 0
    with pytest.raises(InputError, match="dimensions 3 and 4"):
        statistics.merge(FeatureStatistics(4))
    with pytest.raises(InputError, match="dimension is 0"):
        FeatureStatistics(0)


def test_needs_two_images(tmp_path):
    statistics = FeatureStatistics(3)
    with pytest.raises(InputError, match="no features"):
        _ = statistics.mean
    statistics.update(np.ones((1, 3)))
    np.testing.assert_array_equal(statistics.mean, np.ones(3))
    with pytest.raises(InputError, match="at least 2"):
        _ = statistics.covariance
    with pytest.raises(InputError, match="at least 2"):
        statistics.save(tmp_path / "s.npz")
    with pytest.raises(InputError, match=r"\.npz"):
        statistics.update(np.zeros((1, 3))).save(tmp_path / "s.bin")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"count": np.array(2.5)}, "count"),
        ({"count": np.array([3, 4])}, "cannot be read"),
        ({"count": np.array(-3)}, "count is -3"),
        ({"count": np.array(True)}, "count"),
        ({"sigma": np.array([[1.0, 5.0], [5.0, 1.0]])}, "its variances do not allow"),
        ({"sigma": np.array([[-1.0, 0.0], [0.0, 1.0]])}, "a negative variance"),
        ({"mu": np.array([0.0, np.nan])}, "NaN or Inf"),
        ({"mu": np.zeros(3)}, "expected"),
        ({"origin": np.array("[" * 100_000)}, "cannot be read"),
        ({"origin": np.array("5")}, "no record of how it was made"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_files_that_make_no_sense(tmp_path, changed, said):
    path = tmp_path / "s.npz"
    np.savez(path, **{"mu": np.zeros(2), "sigma": np.eye(2), "count": np.array(9), **changed})
    with pytest.raises(InputError, match=r"s\.npz|count") as error:
        FeatureStatistics.load(path)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_members_that_lie_about_their_shape(tmp_path):
    import zipfile

    path = tmp_path / "s.npz"
    np.savez(path, mu=np.zeros(2), sigma=np.eye(2))
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["mu.npy"] = members["mu.npy"].replace(b"(2,)", b"(9,)")
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(InputError, match=r"s\.npz cannot be read as feature statistics \(it declares \(9,\) float64"):
        FeatureStatistics.load(path)
