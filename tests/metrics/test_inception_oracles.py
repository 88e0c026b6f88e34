"""Inception features against torch-fidelity's and pytorch-fid's own.

The weights are random, in the published file's layout; see `inception_weights.py`.
"""

import numpy as np
import pytest
import torch
from inception_weights import random_weights, write_random_weights
from torch import nn

from diffusion_var.errors import InputError
from diffusion_var.metrics.inception import InceptionFeatures
from diffusion_var.metrics.networks import FeatureNetwork, load_features
from diffusion_var.metrics.weights import file_hash, fingerprint


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_random_weights(tmp_path_factory.mktemp("inception") / "weights.pth")


@pytest.fixture(scope="module")
def network(weights):
    return InceptionFeatures(weights, file_hash(weights.read_bytes()))


@pytest.fixture(scope="module")
def theirs(weights):
    """torch-fidelity's extractor, made by its own code."""
    from torch_fidelity import FeatureExtractorInceptionV3

    return FeatureExtractorInceptionV3("theirs", ["2048"], feature_extractor_weights_path=str(weights))


def images(count, height, width, seed=0):
    """Noise of a different colour and contrast in each image, so that features differ a lot between images."""
    stream = np.random.default_rng(seed)
    centre, spread = stream.uniform(0, 255, (count, 3, 1, 1)), stream.uniform(5, 120, (count, 3, 1, 1))
    noise = centre + spread * stream.standard_normal((count, 3, height, width))
    return torch.from_numpy(noise.clip(0, 255).astype(np.uint8))


def assert_same(features, expected):
    assert features.dtype == torch.float32
    assert features.shape == expected.shape
    assert float((expected - expected.mean(0)).abs().max()) > 0.1  # the test sees differences between images
    assert float((features - expected).abs().max()) < 1e-5


def test_random_weights_have_the_published_layout_and_keep_activations_of_order_1(theirs):
    state = random_weights()
    assert len(state) == 566
    assert state.keys() == theirs.state_dict().keys()
    assert fingerprint(state) == fingerprint(random_weights()) != fingerprint(random_weights(seed=1))
    assert 4 * sum(value.numel() for value in state.values()) == pytest.approx(95_628_359, rel=2e-3)  # the file's size
    assert all(value.numel() == 1 or float(value.std()) > 0 for value in state.values())
    scales = []
    hooks = [
        module.register_forward_hook(lambda module, given, out: scales.append(float(out.square().mean().sqrt())))
        for module in theirs.modules()
        if isinstance(module, nn.BatchNorm2d)
    ]
    with torch.inference_mode():
        theirs(images(1, 32, 32))
    for hook in hooks:
        hook.remove()
    assert len(scales) == 94
    assert 0.4 < min(scales) < max(scales) < 2


@pytest.mark.parametrize("size", [(32, 32), (299, 299), (301, 350)])
def test_equals_torch_fidelity(network, theirs, size):
    pixels = images(3, *size)
    with torch.inference_mode():
        assert_same(network(pixels), theirs(pixels)[0])


def test_equals_pytorch_fid_where_nothing_is_resized(network, weights, monkeypatch):
    from pytorch_fid import inception as reference

    monkeypatch.setattr(reference, "load_state_dict_from_url", lambda *_, **__: torch.load(weights, weights_only=True))
    published = reference.InceptionV3([3]).eval()
    pixels = images(3, 299, 299, seed=1)
    with torch.inference_mode():
        # It maps [0, 1] to 2y − 1; the TensorFlow graph maps p to (p − 128)/128, which is y = p/256 and not p/255.
        (expected,) = published(pixels.float() / 256)
        (usual,) = published(pixels.float() / 255)
        assert_same(network(pixels), expected[:, :, 0, 0])
    assert float((expected - usual).abs().max()) > 1e-4


def test_does_not_depend_on_the_batch_nor_on_autocast(network):
    pixels = images(5, 40, 24)
    with torch.inference_mode():
        together = network(pixels)
        apart = torch.cat([network(batch) for batch in torch.split(pixels.flip(0), 2)]).flip(0)
        assert float((together - apart).abs().max()) < 1e-5
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(network(pixels), together)


def test_is_a_feature_network_ready_to_use(network, theirs):
    assert isinstance(network, FeatureNetwork)
    assert (network.name, network.dimension, network.channels) == ("inception", 2048, 3)
    assert network.resize == "bilinear to 299x299, TF1 (torch-fidelity)"
    assert not any(module.training for module in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert load_features(network) is network
    assert network.fingerprint == fingerprint(random_weights()) == fingerprint(theirs.state_dict())


def test_refuses_other_images(network):
    with pytest.raises(InputError, match=r"shape \(2, 1, 8, 8\); expected uint8 RGB.*repeat the grey channel"):
        network(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))
    for bad in (
        torch.zeros(2, 3, 8, 8),
        torch.zeros(3, 8, 8, dtype=torch.uint8),
        torch.zeros(2, 4, 8, 8, dtype=torch.uint8),
        torch.zeros(2, 3, 0, 8, dtype=torch.uint8),
    ):
        with pytest.raises(InputError, match=r"expected uint8 RGB of shape \(B, 3, H, W\): convert"):
            network(bad)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_equals_the_cpu_on_a_gpu(weights, network, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    moved = InceptionFeatures(weights, file_hash(weights.read_bytes())).to("cuda")
    pixels = images(3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(moved(pixels.cuda()).cpu(), network(pixels), atol=1e-4, rtol=1e-4)
    assert moved.fingerprint == network.fingerprint
