"""The digits feature network, fingerprints and the lookup by name."""

import subprocess
import sys

import pytest
import torch

from diffusion_var.errors import InputError
from diffusion_var.metrics import features as features_module
from diffusion_var.metrics.features import ASSET, DigitsFeatures, FeatureNetwork, fingerprint, load_features


def digits(count=3):
    return torch.arange(count * 64).reshape(count, 1, 8, 8).remainder(256).to(torch.uint8)


def test_maps_uint8_to_features_of_scaled_floats():
    network = DigitsFeatures().eval()
    images = digits()
    features = network(images)
    assert isinstance(network, FeatureNetwork)
    assert features.shape == (3, network.dimension) == (3, 64)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, network.embed(images.float() / 255 * 2 - 1))
    torch.testing.assert_close(network.head(features), network.logits(images.float() / 255 * 2 - 1))
    assert network.logits(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_refuses_other_images():
    network = DigitsFeatures().eval()
    for bad in (
        digits().float(),
        digits()[0],
        digits().repeat(1, 3, 1, 1),
        torch.zeros(2, 1, 16, 16, dtype=torch.uint8),
    ):
        with pytest.raises(InputError, match=r"expected uint8 of shape \(B, 1, 8, 8\)"):
            network(bad)


@pytest.mark.parametrize("size", [7, 16])
def test_other_sizes(size):
    assert DigitsFeatures(size, classes=5)(torch.zeros(2, 1, size, size, dtype=torch.uint8)).shape == (2, 64)


def test_initial_weights_come_from_the_seed_and_leave_the_global_generator_alone():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first = DigitsFeatures(seed=5)
    assert torch.equal(torch.rand(3), expected)
    assert first.fingerprint == DigitsFeatures(seed=5).fingerprint
    assert first.fingerprint != DigitsFeatures(seed=6).fingerprint


def test_fingerprint_sees_names_shapes_types_and_values_but_not_order():
    state = {"a": torch.arange(6.0), "b": torch.ones(2, 2)}
    base = fingerprint(state)
    assert len(base) == 64
    assert fingerprint(dict(reversed(state.items()))) == base
    assert fingerprint({"a": torch.arange(12.0)[::2] / 2, "b": torch.ones(2, 2)}) == base  # strides do not matter
    changed = torch.arange(6.0)
    changed[3] = torch.nextafter(changed[3], torch.tensor(9.0))
    for other in (
        {"a": state["a"], "c": state["b"]},
        {"a": state["a"].reshape(2, 3), "b": state["b"]},
        {"a": state["a"].view(torch.int32), "b": state["b"]},
        {"a": changed, "b": state["b"]},
        {"a": state["a"]},
    ):
        assert fingerprint(other) != base


class TestLoadFeatures:
    def test_passes_networks_through(self):
        network = DigitsFeatures()
        assert load_features(network) is network

    def test_refuses_unknown_features(self):
        with pytest.raises(InputError, match='not available yet; pass features="digits"'):
            load_features("inception")
        with pytest.raises(InputError, match="'clip'; expected \"digits\""):
            load_features("clip")
        with pytest.raises(InputError, match="features is a int"):
            load_features(3)

    @pytest.mark.parametrize("half", [False, True])
    def test_reads_weights_in_half_and_single_precision(self, tmp_path, monkeypatch, half):
        from safetensors.torch import save_file

        trained = DigitsFeatures(seed=3).eval()
        (tmp_path / "assets").mkdir()
        state = {name: value.half() if half else value for name, value in trained.state_dict().items()}
        save_file(state, tmp_path / "assets" / ASSET)
        monkeypatch.setattr(features_module.resources, "files", lambda package: tmp_path)
        network = load_features("digits")
        torch.testing.assert_close(network(digits()), trained(digits()), atol=1e-2 if half else 0, rtol=0)
        assert not network.training
        assert not any(parameter.requires_grad for parameter in network.parameters())
        assert (network.fingerprint == trained.fingerprint) is not half

    def test_says_when_weights_are_missing_or_damaged(self, tmp_path, monkeypatch):
        from safetensors.torch import save

        monkeypatch.setattr(features_module.resources, "files", lambda package: tmp_path)
        (tmp_path / "assets").mkdir()
        for content in (None, b"", b"damaged", save({"other": torch.zeros(2)})):
            if content is not None:
                (tmp_path / "assets" / ASSET).write_bytes(content)
            with pytest.raises(InputError, match=rf"{ASSET} cannot be loaded"):
                load_features("digits")

    def test_bundled_digits_weights(self):
        from diffusion_var.app.digits import digits_splits
        from diffusion_var.training.classifier import accuracy

        network = load_features("digits")
        score = digits_splits().score
        assert network(score.images).shape == (500, 64)
        assert accuracy(network, score.images, score.labels) > 0.98


def test_the_room_is_lazy_and_stands_alone():
    code = """
import sys
import diffusion_var.metrics as metrics
assert "torch" not in sys.modules and "numpy" not in sys.modules
for name in metrics.__all__: getattr(metrics, name)
import diffusion_var.metrics.fid, diffusion_var.metrics.images
assert not isinstance(metrics.fid, type(sys)) and callable(metrics.fid)
from diffusion_var.metrics import fid
assert fid is metrics.fid is sys.modules["diffusion_var.metrics.fid"].fid
assert set(metrics.__all__) <= set(dir(metrics)) and not hasattr(metrics, "nothing")
loaded = {name.split(".")[1] for name in sys.modules if name.startswith("diffusion_var.")}
assert loaded <= {"metrics", "errors", "files", "randomness"}, loaded
late = {"sklearn", "diffusers", "torchvision", "matplotlib"} & set(sys.modules)
assert not late, late
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_function_wins_over_the_file_of_the_same_name():
    code = """
from diffusion_var.metrics.fid import Score
import diffusion_var.metrics as metrics
assert metrics.fid.__class__.__name__ == "function", metrics.fid
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
