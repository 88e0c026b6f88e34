"""Training of the digits classifier: it learns, reproducibly, and touches no global random state."""

import numpy as np
import pytest
import torch
from torch import nn

from diffusion_var.data.digits import digits_splits
from diffusion_var.errors import InputError, NumericalError
from diffusion_var.metrics.classifier import ClassifierFeatures, DigitsFeatures
from diffusion_var.randomness import generator
from diffusion_var.training.classifier import accuracy, augment, train_classifier


@pytest.fixture(scope="module")
def digits():
    return digits_splits()


def test_learns_digits_in_a_few_epochs(digits):
    network = train_classifier(
        DigitsFeatures(), digits.train.images[:600], digits.train.labels[:600], epochs=8, batch_size=64, progress=False
    )
    assert not network.training
    assert accuracy(network, digits.score.images, digits.score.labels) > 0.9


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_learns_larger_colour_images(autocast):
    """Squares of one of three colours, of any brightness and place, in 18×14 pixels: two stages."""
    stream = np.random.default_rng(0)
    labels = torch.from_numpy(np.arange(240) % 3)
    images = torch.zeros(240, 3, 18, 14, dtype=torch.uint8)
    for image, label in zip(images, labels, strict=True):
        down, right, bright = stream.integers(0, 10), stream.integers(0, 8), stream.integers(120, 256)
        image[label, down : down + 5, right : right + 5] = int(bright)
    network = ClassifierFeatures(3, (18, 14), 3, width=8, dimension=16)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    train_classifier(network, images[:180], labels[:180], epochs=6, batch_size=32, autocast=autocast, progress=False)
    assert accuracy(network, images[180:], labels[180:]) > 0.95
    for name, value in network.state_dict().items():
        assert value.dtype == torch.float32
        assert not torch.equal(value, before[name]), name


def test_autocast_computes_in_that_precision_and_nothing_else_changes(digits):
    seen = []

    class Watched(DigitsFeatures):
        def logits(self, x):
            out = super().logits(x)
            seen.append(out.dtype)
            return out

    def trained(autocast):
        return train_classifier(
            Watched(), digits.train.images[:90], digits.train.labels[:90], epochs=1, autocast=autocast, progress=False
        ).state_dict()

    full, half = trained(None), trained(torch.bfloat16)
    assert seen == [torch.float32, torch.bfloat16]
    assert all(torch.allclose(full[name], half[name], atol=5e-3) for name in full)
    assert any(not torch.equal(full[name], half[name]) for name in full)


def test_depends_on_the_seed_alone_and_leaves_global_generators_alone(digits):
    def trained(seed, global_seed):
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        network = train_classifier(
            DigitsFeatures(), digits.train.images[:90], digits.train.labels[:90], epochs=1, seed=seed, progress=False
        )
        assert torch.equal(torch.get_rng_state(), before)
        return network.fingerprint

    assert trained(0, 1) == trained(0, 2) != trained(1, 1)


def test_augmentation_shifts_by_at_most_one_pixel_over_black_and_adds_noise():
    images = torch.zeros(400, 2, 5, 6, dtype=torch.uint8)
    images[:, :, 2, 3] = 255
    x = augment(images, 0.0, generator(0, "test"))
    assert x.shape == images.shape
    assert torch.equal((x == 1).flatten(1).sum(1), torch.full((400,), 2))
    assert float(x.sum()) == pytest.approx(400 * 2 * (1 - 29))
    where = {tuple(row) for row in (x == 1).nonzero()[:, 2:].tolist()}
    assert where == {(y, z) for y in (1, 2, 3) for z in (2, 3, 4)}
    corner = torch.full((200, 1, 4, 4), 255, dtype=torch.uint8)
    lost = (augment(corner, 0.0, generator(0, "test")) == -1).flatten(1).sum(1)
    assert set(lost.tolist()) == {0, 4, 7}
    noise = augment(images, 0.1, generator(0, "test")) - x
    assert float(noise.std()) == pytest.approx(0.1, rel=0.03)


def test_accuracy_is_the_fraction_right_and_keeps_the_mode():
    class Brightest(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def logits(self, x):
            assert not self.training
            assert x.abs().max() <= 1
            return self.scale * x.flatten(1)

    images = torch.zeros(7, 1, 2, 2, dtype=torch.uint8)
    images.flatten(1)[torch.arange(7), torch.arange(7) % 4] = 255
    labels = torch.arange(7) % 4
    labels[0] = 3
    network = Brightest().train()
    assert accuracy(network, images, labels, batch_size=3) == pytest.approx(6 / 7)
    assert network.training


def test_refuses_what_does_not_fit(digits):
    images, labels = digits.table.images, digits.table.labels
    for bad in ((images.float(), labels), (images, labels[:-1]), (images[:0], labels[:0]), (images[:, 0], labels)):
        with pytest.raises(InputError, match="the classifier got"):
            train_classifier(DigitsFeatures(), *bad, progress=False)
    with pytest.raises(InputError, match="epochs is 0"):
        train_classifier(DigitsFeatures(), images, labels, epochs=0, progress=False)
    network = DigitsFeatures()
    with torch.no_grad():
        network.head.bias[0] = np.nan
    with pytest.raises(NumericalError, match="at step 0"):
        train_classifier(network, images, labels, epochs=1, progress=False)
