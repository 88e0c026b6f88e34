"""Small images and feature networks that the tests of the harness share."""

import hashlib

import numpy as np
import torch


class Pixels:
    """The simplest feature network: the pixels themselves, in [0, 1]."""

    name, dimension, fingerprint = "pixels", 16, "0" * 64

    def __init__(self):
        self.batches = []

    def __call__(self, images):
        assert images.dtype == torch.uint8
        self.batches.append(len(images))
        return images.flatten(1).float() / 255


class Colours(Pixels):
    """Sixteen pixels of each of three channels; says how it resizes."""

    name, dimension, fingerprint, channels, resize = "colours", 48, "1" * 64, 3, "not at all"

    def __call__(self, images):
        assert images.shape[1] == 3
        return super().__call__(images)


def blobs(count, seed, brightness=128, channels=1):
    rng = np.random.default_rng(seed)
    size = 16 * channels
    mixing = np.random.default_rng(99).normal(size=(size, size)) * 8
    pixels = brightness + rng.normal(size=(count, size)) @ mixing
    return torch.from_numpy(pixels.round().clip(0, 255).astype(np.uint8)).reshape(count, channels, 4, 4)


def pixels_hash(images):
    """SHA-256 over shape and pixels, written out."""
    return hashlib.sha256(repr(tuple(images.shape[1:])).encode() + images.numpy().tobytes()).hexdigest()
