"""The digits and their three parts."""

import torch
from sklearn.datasets import load_digits

from diffusion_var.data.digits import digits_images, digits_splits


def test_images_are_scaled_to_8_bits():
    images, labels = digits_images()
    assert images.shape == (1797, 1, 8, 8)
    assert images.dtype == torch.uint8
    assert labels.dtype == torch.int64
    raw = torch.from_numpy(load_digits().images)[:, None]
    assert torch.equal((images.double() * 16 / 255).round(), raw)  # all 17 levels are told apart
    assert (images.double() - raw * 255 / 16).abs().max() <= 0.5
    assert images.max() == 255
    assert images.min() == 0


def test_parts_are_fixed_disjoint_complete_and_balanced():
    splits = digits_splits()
    parts = (splits.train, splits.table, splits.score)
    assert [len(part) for part in parts] == [997, 300, 500]
    images, labels = digits_images()

    def keyed(images, labels):
        return sorted((*image.flatten().tolist(), int(label)) for image, label in zip(images, labels, strict=True))

    together = keyed(torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts]))
    assert together == keyed(images, labels)
    for part in parts:
        share = torch.bincount(part.labels, minlength=10) / len(part)
        assert share.min() > 0.06
        assert share.max() < 0.14
    assert torch.equal(digits_splits().score.images, splits.score.images)
    # A change of the shuffle would let images be scored that an older denoiser was trained on.
    assert "".join(map(str, splits.score.labels[:8].tolist())) == "64447954"
