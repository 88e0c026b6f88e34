"""Features of a small classifier: the network for every size of image, and its file."""

import json

import numpy as np
import pytest
import torch
from signed import contents, sign
from torch import nn

from diffusion_var.errors import InputError
from diffusion_var.metrics.classifier import (
    FORM,
    ClassifierFeatures,
    DigitsFeatures,
    read_features,
    save_features,
)
from diffusion_var.metrics.networks import FeatureNetwork, load_features


def digits(count=3):
    return torch.arange(count * 64).reshape(count, 1, 8, 8).remainder(256).to(torch.uint8)


class TestClassifierFeatures:
    def test_maps_uint8_to_features_of_scaled_floats(self):
        network = DigitsFeatures().eval()
        images = digits()
        features = network(images)
        assert isinstance(network, FeatureNetwork)
        assert (network.name, network.resize, network.channels) == ("digits", "none", 1)
        assert features.shape == (3, network.dimension) == (3, 64)
        assert features.dtype == torch.float32
        torch.testing.assert_close(features, network.embed(images.float() / 255 * 2 - 1))
        torch.testing.assert_close(network.head(features), network.logits(images.float() / 255 * 2 - 1))
        assert network.logits(torch.zeros(2, 1, 8, 8)).shape == (2, 10)

    def test_refuses_other_images(self):
        network = DigitsFeatures().eval()
        for bad in (
            digits().float(),
            digits()[0],
            digits().repeat(1, 3, 1, 1),
            torch.zeros(2, 1, 16, 16, dtype=torch.uint8),
        ):
            with pytest.raises(InputError, match=r"expected uint8 of shape \(B, 1, 8, 8\)"):
                network(bad)

    @pytest.mark.parametrize(
        ("channels", "size", "stages", "last"),
        [
            (1, 8, 1, 4),
            (1, 7, 1, 4),
            (3, 16, 2, 4),
            (1, 28, 2, 7),
            (3, (32, 20), 3, 4),
            (2, (3, 29), 3, 4),
            (1, 2, 1, 1),
        ],
    )
    def test_stages_halve_until_the_longer_side_is_at_most_7(self, channels, size, stages, last):
        network = ClassifierFeatures(channels, size, 5, width=8, dimension=12).eval()
        height, width = network.size
        convolutions = [layer for layer in network.trunk if isinstance(layer, nn.Conv2d)]
        assert sum(layer.stride == (2, 2) for layer in convolutions) == stages
        assert [layer.out_channels for layer in convolutions] == [8, 16, 16, 32, 32, 32, 32][: 1 + 2 * stages]
        maps = network.trunk[: 3 * len(convolutions)](torch.zeros(1, channels, height, width))
        assert max(maps.shape[2:]) == last
        assert network(torch.zeros(2, channels, height, width, dtype=torch.uint8)).shape == (2, 12)
        assert network.logits(torch.zeros(2, channels, height, width)).shape == (2, 5)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((0, 8, 10), "channels of a feature classifier is 0"),
            ((1, (8, 0), 10), "width of the images of a feature classifier is 0"),
            ((1, 10**9, 10), "height of a feature classifier is 1000000000; expected 2 to 4096"),
            ((1, 8, 0), "classes"),
            ((1, 8, 10, 12), "is 12; expected a multiple of 8"),
            ((1, 8, 10, 0), "multiple of 8"),
            ((1, 8, 10, 8, 0), "dimension"),
        ],
    )
    def test_refuses_numbers_that_make_no_network(self, arguments, message):
        with pytest.raises(InputError, match=message):
            ClassifierFeatures(*arguments)

    def test_initial_weights_come_from_the_seed_and_leave_the_global_generator_alone(self):
        torch.manual_seed(1)
        expected = torch.rand(3)
        torch.manual_seed(1)
        first = DigitsFeatures(seed=5)
        assert torch.equal(torch.rand(3), expected)
        assert first.fingerprint == DigitsFeatures(seed=5).fingerprint
        assert first.fingerprint != DigitsFeatures(seed=6).fingerprint

    def test_features_do_not_depend_on_autocast(self):
        network = DigitsFeatures().eval()
        expected = network(digits())
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(network(digits()), expected)
            assert network.logits(torch.zeros(1, 1, 8, 8)).dtype == torch.bfloat16  # training may use it


def network(**changes):
    made = ClassifierFeatures(**{"channels": 3, "size": (10, 9), "classes": 4, "width": 8, "dimension": 6, **changes})
    made.name, made.accuracy, made.images = "mine", 0.75, "some.npz:x"
    return made


class TestFile:
    def test_saves_and_loads_everything(self, tmp_path):
        saved = network(seed=3).eval()
        save_features(saved, tmp_path / "f.safetensors")
        loaded = load_features(tmp_path / "f.safetensors")
        assert isinstance(loaded, ClassifierFeatures)
        for name in ("name", "channels", "size", "classes", "width", "dimension", "accuracy", "images", "fingerprint"):
            assert getattr(loaded, name) == getattr(saved, name), name
        images = torch.randint(0, 256, (4, 3, 10, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        assert torch.equal(loaded(images), saved(images))
        assert not loaded.training
        assert not any(parameter.requires_grad for parameter in loaded.parameters())
        assert loaded.to("cpu") is loaded

    def test_the_same_network_gives_the_same_bytes(self, tmp_path):
        for name in "ab":
            save_features(network(), tmp_path / f"{name}.safetensors")
        assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()

    def test_loading_leaves_the_global_generator_alone(self, tmp_path):
        save_features(network(), tmp_path / "f.safetensors")
        before = torch.get_rng_state()
        read_features(tmp_path / "f.safetensors")
        assert torch.equal(torch.get_rng_state(), before)

    def test_refuses_damaged_files(self, tmp_path):
        path = tmp_path / "f.safetensors"
        save_features(network(), path)
        content = path.read_bytes()
        header = 8 + int.from_bytes(content[:8], "little")
        for position in (3, 20, header - 30, header + 1, len(content) // 2, len(content) - 1):
            flipped = bytearray(content)
            flipped[position] ^= 0x10
            path.write_bytes(flipped)
            with pytest.raises(InputError, match=r"f\.safetensors"):
                load_features(str(path))
        for cut in (b"", content[:5], content[:header], content[:-1], b"not a file of this kind"):
            path.write_bytes(cut)
            with pytest.raises(InputError, match=r"f\.safetensors is not a readable feature file"):
                load_features(str(path))

    def test_refuses_files_of_another_kind_and_newer_ones(self, tmp_path):
        path = tmp_path / "f.safetensors"
        with pytest.raises(InputError, match=r"no feature file at .*f\.safetensors"):
            load_features(path)
        sign(path, {"a": np.zeros(2)}, {"format": "something else", "format_version": 1})
        with pytest.raises(InputError, match="not a feature file"):
            load_features(path)
        sign(path, {"a": np.zeros(2)}, {"format": FORM.name, "format_version": FORM.version + 1})
        with pytest.raises(InputError, match=rf"version {FORM.version + 1}.*update"):
            load_features(path)
        with pytest.raises(InputError, match=r"f\.bin does not end in \.safetensors"):
            save_features(network(), tmp_path / "f.bin")

    @pytest.mark.parametrize(
        "changes",
        [{"classes": 5}, {"width": 16}, {"size": [10]}, {"size": [80, 80]}, {"dimension": 10**9}, {"channels": None}],
    )
    def test_refuses_what_is_well_written_but_no_network(self, tmp_path, changes):
        path = tmp_path / "f.safetensors"
        save_features(network(), path)
        arrays, record = contents(path)
        sign(path, arrays, {**record, **changes})
        with pytest.raises(InputError, match=r"f\.safetensors (describes|is) no .+make it again"):
            load_features(path)
        arrays.pop("head.bias")
        sign(path, arrays, record)
        with pytest.raises(InputError, match=r"describes no network"):
            load_features(path)
        sign(path, arrays, {key: record[key] for key in record if key != "classes"})
        with pytest.raises(InputError, match=r"its classes is .* \(Field required\)"):
            load_features(path)

    def test_has_one_metadata_key(self, tmp_path):
        save_features(network(), tmp_path / "f.safetensors")
        content = (tmp_path / "f.safetensors").read_bytes()
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        assert len(header["__metadata__"]) == 1
