"""All metrics at once: each equals its function on the features, images pass the network once, and sides must fit."""

import numpy as np
import pytest
import torch
from pictures import Colours, Pixels, blobs, pixels_hash

from diffusion_var.data.images import read_images, save_images, save_npz
from diffusion_var.errors import DiffusionVarWarning, InputError
from diffusion_var.metrics import (
    FeatureStatistics,
    collect,
    evaluate,
    feature_statistics,
    fid,
    frechet_distance,
    require_same_protocol,
    score_table,
    sides,
)
from diffusion_var.metrics.kid import kernel_distance
from diffusion_var.metrics.neighbours import density_coverage, precision_recall
from diffusion_var.metrics.networks import load_features
from diffusion_var.metrics.scores import METRICS
from diffusion_var.metrics.uncertainty import bootstrap_interval, fid_infinity

A, B = blobs(300, 1), blobs(250, 2, brightness=140)


def flat(images):
    return images.flatten(1).float().numpy() / np.float32(255)


class Inception(Pixels):
    """Bears the name under which published statistics are used."""

    name, fingerprint = "inception", "2" * 64


class TestMetrics:
    def test_each_is_its_function_of_the_features(self):
        a, b = flat(A), flat(B)
        found = evaluate(A, B, METRICS, Pixels(), seed=5, bootstrap=20, extrapolate=True)
        assert list(found) == [*METRICS, "fid_infinity"]
        of_b = feature_statistics(B, Pixels())
        kid, limit = kernel_distance(a, b, seed=5), fid_infinity(a, of_b, seed=5)
        precision, recall = precision_recall(b, a)  # the reference is what is real
        density, coverage = density_coverage(b, a)
        expected = {
            "fid": frechet_distance((a.mean(0), np.cov(a, rowvar=False)), (b.mean(0), np.cov(b, rowvar=False))),
            "kid": kid.value,
            "precision": precision,
            "recall": recall,
            "density": density,
            "coverage": coverage,
            "fid_infinity": limit.value,
        }
        assert {name: float(score) for name, score in found.items()} == pytest.approx(expected, rel=1e-5)
        assert 0 < precision != recall != density != coverage < 1
        assert found["kid"].standard_error == kid.standard_error > 0
        assert found["fid_infinity"].standard_error == limit.standard_error > 0
        assert found["fid"].interval == bootstrap_interval(a, of_b, repeats=20, seed=5)
        assert found["fid"].protocol["interval"]["repeats"] == 20

    def test_seeds_decide_and_are_told(self):
        first, again, other = (evaluate(A, B, ["kid"], Pixels(), seed=seed)["kid"] for seed in (0, 0, 1))
        assert first.value == again.value != other.value
        assert first.protocol["parameters"] == {"blocks": 100, "block_size": 250, "seed": 0}
        with pytest.raises(InputError, match="parameters"):
            require_same_protocol({"a": first, "b": other})
        whole = [evaluate(A[:250], B, ["kid"], Pixels(), seed=seed)["kid"] for seed in (0, 1)]
        assert whole[0].value == whole[1].value
        assert whole[0].protocol["parameters"] == {"blocks": 1, "block_size": 250}
        require_same_protocol({"a": whole[0], "b": whole[1]})

    def test_images_pass_the_network_once(self):
        network = Pixels()
        evaluate(A, B, METRICS, network, batch_size=100, bootstrap=20, extrapolate=True)
        assert network.batches == [100, 100, 100, 100, 100, 50]

    @pytest.mark.parametrize("metrics", [["recall"], ["coverage", "kid"], ["fid"], ["precision", "fid", "precision"]])
    def test_gives_what_is_asked_for_in_that_order(self, metrics):
        assert list(evaluate(A, B, metrics, Pixels())) == list(dict.fromkeys(metrics))

    def test_parameters_are_told(self):
        scores = evaluate(A, B, METRICS, Pixels())
        told = {name: score.protocol["parameters"] for name, score in scores.items()}
        assert told["precision"] == told["recall"] == {"neighbours": 3}
        assert told["density"] == told["coverage"] == {"neighbours": 5}
        for name, score in scores.items():
            assert score.protocol["metric"] == name
            assert (score.protocol["images"], score.protocol["reference"]) == (300, 250)
            assert score.protocol["reference_sha256"] == pixels_hash(B)

    def test_result_does_not_depend_on_the_batch_size(self):
        expected = {name: float(score) for name, score in evaluate(A, B, METRICS, Pixels()).items()}
        for batch_size in (1, 7):
            found = evaluate(A, B, METRICS, Pixels(), batch_size=batch_size)
            assert {name: float(score) for name, score in found.items()} == pytest.approx(expected, rel=1e-10)


class TestSides:
    def test_samples_and_statistics_serve_in_place_of_images(self, tmp_path):
        expected = evaluate(A, B, METRICS, Pixels(), bootstrap=20)
        a, b = (collect(images, Pixels(), keep=True) for images in (A, B))
        b.statistics.save(tmp_path / "b.npz")
        for images, reference in ((a, b), (A, b), (a, B)):
            found = evaluate(images, reference, METRICS, Pixels(), bootstrap=20)
            for metric in METRICS:
                assert found[metric].value == pytest.approx(expected[metric].value, rel=1e-9)
                require_same_protocol({"here": found[metric], "there": expected[metric]})
        for reference in (b.statistics, tmp_path / "b.npz"):
            found = evaluate(A, reference, ["fid"], Pixels(), bootstrap=20)["fid"]
            assert found.interval == pytest.approx(expected["fid"].interval, rel=1e-9)
            assert found.protocol["reference_from"] == "statistics"
            score_table({"here": {"FID": found}, "there": {"FID": expected["fid"]}})

    def test_what_needs_features_says_so(self, tmp_path):
        statistics = feature_statistics(B, Pixels())
        np.savez(tmp_path / "b.npz", mu=statistics.mean, sigma=statistics.covariance)
        for side in (statistics, tmp_path / "b.npz", collect(B, Pixels())):
            with pytest.raises(InputError, match=r"reference holds a mean and a covariance only.*keep=True"):
                evaluate(A, side, ["fid", "kid"], Pixels())
            with pytest.raises(InputError, match="images holds a mean and a covariance only"):
                evaluate(side, A, ["fid"], Pixels(), bootstrap=20)
            evaluate(A, side, ["fid"], Pixels(), bootstrap=20, extrapolate=True)

    def test_statistics_of_unknown_origin_are_said_to_be_such(self, tmp_path):
        statistics = feature_statistics(B, Pixels())
        np.savez(tmp_path / "b.npz", mu=statistics.mean, sigma=statistics.covariance)
        score = evaluate(A, tmp_path / "b.npz", features=Pixels())["fid"]
        assert score.value == pytest.approx(fid(A, B, Pixels()).value, rel=1e-9)
        told = score.protocol
        assert told["reference_from"] == "statistics of unknown origin"
        assert told["reference"] is None
        assert told["reference_sha256"] == FeatureStatistics.load(tmp_path / "b.npz").digest
        assert told["features"] == "pixels"
        with pytest.raises(InputError, match="reference"):
            require_same_protocol({"file": score, "images": fid(A, B, Pixels())})

    def test_a_reference_batch_with_statistics_and_images(self, tmp_path):
        """Published Inception FIDs use the statistics (of the whole data set); all else uses the images."""
        path = tmp_path / "batch.npz"
        mu, sigma = flat(B).mean(0) + 1, np.cov(flat(B), rowvar=False)
        np.savez(path, mu=mu, sigma=sigma, mu_s=mu, sigma_s=sigma, arr_0=B.numpy().transpose(0, 2, 3, 1))
        by_images = evaluate(A, path, ["fid", "kid"], Pixels())
        assert by_images["fid"].value == pytest.approx(fid(A, B, Pixels()).value)
        assert by_images["fid"].protocol["reference_from"] == "images"
        published = evaluate(A, path, ["fid", "kid"], Inception())
        assert published["fid"].value == pytest.approx(
            frechet_distance((flat(A).mean(0), np.cov(flat(A), rowvar=False)), (mu, sigma)), rel=1e-6
        )
        assert published["fid"].protocol["reference_from"] == "statistics of unknown origin"
        assert published["fid"].protocol["reference"] is None
        assert published["kid"].value == by_images["kid"].value
        assert published["kid"].protocol["reference_from"] == "images"
        assert published["kid"].protocol["reference"] == 250
        named = evaluate(A, read_images(path, key="arr_0"), ["fid"], Inception())["fid"]
        assert named.value == pytest.approx(by_images["fid"].value)

    def test_statistics_of_other_features_are_refused(self, tmp_path):
        class Retrained(Pixels):
            fingerprint = "3" * 64

        class Resized(Pixels):
            resize = "nearest to 4x4"

        collect(B, Pixels()).statistics.save(tmp_path / "b.npz")
        for network, field in ((Retrained(), "features_sha256"), (Resized(), "resize")):
            with pytest.raises(InputError, match=rf"(?s)b\.npz.*{field}.*do not belong together"):
                fid(A, tmp_path / "b.npz", network)
            with pytest.raises(InputError, match=field):
                fid(collect(A, network), collect(B, Pixels()))
            with pytest.raises(InputError, match=field):  # both agree, but not with what was asked for
                fid(tmp_path / "b.npz", tmp_path / "b.npz", network)
        other = feature_statistics(B, Pixels())
        other.origin["number_format"] = "uint8, truncated"
        with pytest.raises(InputError, match="number_format"):
            fid(A, other, Pixels())

    def test_another_dimension(self, tmp_path):
        np.savez(tmp_path / "b.npz", mu=np.zeros(3), sigma=np.eye(3))
        with pytest.raises(InputError, match="dimensions 16 and 3"):
            fid(A, tmp_path / "b.npz", Pixels())

    def test_names(self, tmp_path):
        collect(B, Pixels(), name="theirs").statistics.save(tmp_path / "b.npz")
        told = evaluate(A, tmp_path / "b.npz", features=Pixels())["fid"].protocol
        assert (told["images_name"], told["reference_name"]) == ("Tensor", "theirs")
        told = evaluate(A, tmp_path / "b.npz", features=Pixels(), names=("x", "y"))["fid"].protocol
        assert (told["images_name"], told["reference_name"]) == ("x", "y")

    def test_colours_of_both_sides_are_told(self):
        colour = blobs(60, 3, channels=3)
        with pytest.warns(DiffusionVarWarning, match="grey"):
            told = evaluate(A, colour, features=Colours())["fid"].protocol
        assert told["colour"] == "images grey repeated to RGB, reference as given"
        with pytest.warns(DiffusionVarWarning, match="grey"):
            told = evaluate(A, B, features=Colours())["fid"].protocol
        assert told["colour"] == "grey repeated to RGB"

    def test_skipped_files_are_in_the_protocol(self, tmp_path):
        save_images(A[:30], tmp_path)
        (tmp_path / "000007.png").write_bytes(b"")
        with pytest.warns(DiffusionVarWarning):
            images = read_images(tmp_path, skip_corrupt=True)
        told = evaluate(images, B, features=Pixels())["fid"].protocol
        assert (told["images"], told["images_skipped"]) == (29, 1)
        assert "reference_skipped" not in told


class TestBadInput:
    def test_identical_images_have_a_distance(self):
        with pytest.warns(DiffusionVarWarning, match="identical"):
            score = fid(A[:1].repeat(40, 1, 1, 1), B, Pixels())
        b = flat(B).astype(np.float64)
        assert score.value == pytest.approx(
            np.square(flat(A[:1])[0] - b.mean(0)).sum() + np.trace(np.cov(b, rowvar=False)), rel=1e-5
        )

    @pytest.mark.parametrize("metrics", [["fid"], ["kid"], ["precision"], ["coverage"]])
    def test_fewer_than_two_images(self, metrics):
        with pytest.raises(InputError, match="at least 2 images on each side, but images holds 1"):
            evaluate(A[:1], B, metrics, Pixels())
        with pytest.raises(InputError, match="but reference holds 1"):
            evaluate(A, B[:1], metrics, Pixels())

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"metrics": ["fid", "is"]}, "metrics holds is; expected some of fid"),
            ({"metrics": "fid"}, "metrics holds fid"),
            ({"metrics": []}, "metrics holds nothing"),
            ({"bootstrap": 3}, "bootstrap is 3"),
            ({"bootstrap": -1}, "bootstrap is -1"),
            ({"metrics": ["kid"], "bootstrap": 30}, "add fid"),
            ({"metrics": ["kid"], "extrapolate": True}, "add fid"),
            ({"batch_size": 0}, "batch_size=0 must be a whole number of at least 1"),
        ],
    )
    def test_options(self, options, said):
        with pytest.raises(InputError, match=said):
            evaluate(A, B, features=Pixels(), **options)

    def test_unreadable_npz(self, tmp_path):
        save_npz(A, tmp_path / "a.npz")
        (tmp_path / "cut.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:500])
        for name in ("cut.npz", "missing.npz"):
            with pytest.raises(InputError, match=name):
                fid(tmp_path / name, B, Pixels())

    def test_moved_networks_stay_where_they_are_put(self):
        class Net(torch.nn.Module):
            name, dimension, fingerprint = "net", 16, "4" * 64

            def forward(self, images):
                return images.flatten(1).float()

        assert fid(A, A, Net().eval(), device="cpu").value == 0
        with pytest.raises(InputError, match="training mode"):
            fid(A, A, Net())


def test_statistics_of_other_features_are_refused_before_inception_is_sought(tmp_path, monkeypatch):

    images = torch.arange(3 * 64, dtype=torch.uint8).reshape(3, 1, 8, 8)
    collect(images, load_features("digits")).statistics.save(tmp_path / "ref.npz")
    monkeypatch.setattr(sides, "load_features", lambda *_: pytest.fail("loaded"))
    with pytest.raises(InputError, match=r"reference was made with the features 'digits'.*pass features='digits'"):
        evaluate(images, tmp_path / "ref.npz")
