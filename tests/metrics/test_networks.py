"""Fingerprints, the wrapper of functions and modules, and the lookup by name."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from diffusion_var import metrics
from diffusion_var.errors import InputError
from diffusion_var.metrics import classifier as classifier_features
from diffusion_var.metrics.classifier import ASSET, DigitsFeatures
from diffusion_var.metrics.networks import CallableFeatures, FeatureNetwork, fingerprint, load_features


def digits(count=3):
    return torch.arange(count * 64).reshape(count, 1, 8, 8).remainder(256).to(torch.uint8)


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


class Mean(nn.Module):
    """Channel means, weighted: floats in, (B, C) out."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))

    def forward(self, x):
        return (nn.functional.conv2d(x, torch.eye(3)[:, :, None, None]) * self.weight[:, None, None]).mean((2, 3))


def rgb(count=4):
    return torch.randint(0, 256, (count, 3, 5, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


class TestCallableFeatures:
    def test_a_function_with_a_fingerprint(self):
        def histogram(images):
            assert images.dtype == torch.uint8
            return images.double().mean((2, 3))

        features = CallableFeatures(histogram, fingerprint="v1", channels=3, resize="none at all")
        assert isinstance(features, FeatureNetwork)
        assert load_features(features) is features
        assert features.dimension == 0
        out = features(rgb())
        torch.testing.assert_close(out, rgb().float().mean((2, 3)))
        assert out.dtype == torch.float32
        assert (features.name, features.dimension, features.fingerprint) == ("histogram", 3, "v1")
        assert (features.channels, features.resize) == (3, "none at all")

    def test_a_module_by_its_weights(self):
        module = Mean().eval()
        features = CallableFeatures(module, data_range=(-1.0, 1.0), name="means")
        expected = (rgb().double() / 127.5 - 1).mean((2, 3)).float() * torch.tensor([1.0, 2.0, 3.0])
        torch.testing.assert_close(features(rgb()).detach(), expected)
        before = features.fingerprint
        assert features.fingerprint != CallableFeatures(module, data_range=(0.0, 1.0)).fingerprint
        with torch.no_grad():
            module.weight[1] = 5
        assert features.fingerprint != before
        assert CallableFeatures(module).fingerprint == fingerprint(module.state_dict())
        assert features.to(torch.float64) is features  # a module too, so that it can be moved
        assert module.weight.dtype == torch.float64

    def test_load_features_wraps_modules(self):
        module = nn.Sequential(nn.Flatten(), nn.Linear(90, 7)).eval()
        features = load_features(module)
        assert isinstance(features, CallableFeatures)
        assert features.name == "Sequential"
        with pytest.raises(InputError, match=r"Sequential fail on torch.uint8 images.*data_range=\(-1, 1\)"):
            features(rgb())

    def test_a_module_in_training_mode_is_refused_and_left_so(self):
        module = nn.Sequential(nn.Flatten(), nn.Linear(90, 7), nn.Dropout())
        features = CallableFeatures(module, data_range=(0, 1))
        assert module.training
        with pytest.raises(InputError, match="Sequential is in training mode"):
            features(rgb())
        module.eval()
        assert features(rgb()).shape == (4, 7)
        module[2].train()
        with pytest.raises(InputError, match="training mode"):
            features(rgb())

    def test_what_cannot_be_told_apart_is_refused(self):
        for nameless in (lambda x: x, nn.Flatten()):
            with pytest.raises(InputError, match=r"no weights to tell them by.*fingerprint=\.\.\."):
                load_features(nameless)

    @pytest.mark.parametrize(
        ("function", "found"),
        [
            (lambda x: x.float(), r"\(4, 3, 5, 6\)"),
            (lambda x: x.float().mean(), r"\(\)"),
            (lambda x: x.float()[:2, :, 0, 0], r"\(2, 3\)"),
            (lambda x: (x, x), "tuple"),
        ],
    )
    def test_features_of_a_wrong_shape(self, function, found):
        with pytest.raises(InputError, match=rf"f of 4 images are {found}; expected a tensor of shape \(4, D\)"):
            CallableFeatures(function, name="f", fingerprint="1")(rgb())
        with pytest.raises(InputError, match=r"expected a tensor of shape \(4, 9\)"):
            CallableFeatures(lambda x: x.float()[:, :, 0, 0], fingerprint="1", dimension=9)(rgb())


class TestLoadFeatures:
    def test_passes_networks_through(self):
        network = DigitsFeatures()
        assert load_features(network) is network

        class Bare:
            name, dimension, fingerprint = "bare", 2, "0"

            def __call__(self, images):
                return torch.zeros(len(images), 2)

        bare = Bare()
        assert load_features(bare) is bare

    def test_refuses_unknown_features(self):
        with pytest.raises(InputError, match='\'clip\'; expected "inception", "digits", "pixels", the path'):
            load_features("clip")
        with pytest.raises(InputError, match="features is a int"):
            load_features(3)
        for given in ({"inception_weights": "w.pth"}, {"accept_weights": "ab"}):
            with pytest.raises(InputError, match="weights of Inception are given, but features is 'digits'"):
                load_features("digits", **given)

    @pytest.mark.parametrize("half", [False, True])
    def test_reads_weights_in_half_and_single_precision(self, tmp_path, monkeypatch, half):
        from safetensors.torch import save_file

        trained = DigitsFeatures(seed=3).eval()
        (tmp_path / "assets").mkdir()
        state = {name: value.half() if half else value for name, value in trained.state_dict().items()}
        save_file(state, tmp_path / "assets" / ASSET)
        monkeypatch.setattr(classifier_features.resources, "files", lambda package: tmp_path)
        network = load_features("digits")
        torch.testing.assert_close(network(digits()), trained(digits()), atol=1e-2 if half else 0, rtol=0)
        assert not network.training
        assert not any(parameter.requires_grad for parameter in network.parameters())
        assert (network.fingerprint == trained.fingerprint) is not half

    def test_says_when_weights_are_missing_or_damaged(self, tmp_path, monkeypatch):
        from safetensors.torch import save

        monkeypatch.setattr(classifier_features.resources, "files", lambda package: tmp_path)
        (tmp_path / "assets").mkdir()
        for content in (None, b"", b"damaged", save({"other": torch.zeros(2)})):
            if content is not None:
                (tmp_path / "assets" / ASSET).write_bytes(content)
            with pytest.raises(InputError, match=rf"{ASSET} cannot be loaded"):
                load_features("digits")

    def test_bundled_digits_weights(self):
        from diffusion_var.data.digits import digits_splits
        from diffusion_var.training.classifier import accuracy

        network = load_features("digits")
        score = digits_splits().score
        assert network(score.images).shape == (500, 64)
        assert accuracy(network, score.images, score.labels) > 0.98


def test_the_room_is_lazy_and_stands_alone():
    code = """
import sys
from pathlib import Path
import diffusion_var.metrics as metrics
assert "torch" not in sys.modules and "numpy" not in sys.modules
for name in metrics.__all__: getattr(metrics, name)
assert not any(isinstance(getattr(metrics, name), type(sys)) for name in metrics.__all__), "a name hides a file"
assert set(metrics.__all__) <= set(dir(metrics)) and not hasattr(metrics, "nothing")
loaded = {name.split(".")[1] for name in sys.modules if name.startswith("diffusion_var.")}
ground = {
    "array_rules", "checks", "documents", "errors", "files", "hub", "lazy", "progress", "randomness", "unwrapping",
    "exchange", "json_text", "launch", "measured", "parallel", "peers", "stopping"
}
assert loaded <= {"metrics", "data"} | ground, loaded
late = {"sklearn", "diffusers", "torchvision", "matplotlib", "torch_fidelity"} & set(sys.modules)
assert not late, late
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_no_name_of_the_room_is_a_file_of_it():
    """So that `metrics.fid` is the function, in whatever order things are imported."""
    files = {path.stem for path in Path(metrics.__file__).parent.glob("*.py")}
    assert not files & set(metrics.__all__)
