"""Sheets of images: every pixel of an image is a square of whole pixels, in its place."""

import io

import numpy as np
from PIL import Image

from diffusion_var.app.rendering import png
from diffusion_var.app.sheets import picture_sheet


def drawn(rows: list[tuple[str, np.ndarray]]) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png(picture_sheet(rows, slanted=1), tight=False))).convert("RGB"))


def test_images_are_shown_as_they_are() -> None:
    stream = np.random.default_rng(0)
    large = stream.integers(0, 256, (3, 3, 8, 8), dtype=np.uint8)
    small = stream.integers(0, 256, (4, 1, 4, 4), dtype=np.uint8)  # of half the sides, so twice enlarged
    page = drawn([("given", large), ("made $x_0$", small)])
    assert page.shape == (2 * 68, 230 + 3 * 68, 3)  # as many columns as the shortest row has images
    for row, images in enumerate((large, small)):
        for column in range(3):
            top, left = row * 68, 230 + column * 68
            found = page[top : top + 64, left : left + 64].astype(int)
            shown = np.broadcast_to(images[column], (3, *images.shape[2:])).transpose(1, 2, 0)
            factor = 64 // shown.shape[0]
            expected = shown.repeat(factor, 0).repeat(factor, 1).astype(int)
            assert np.abs(found - expected).max() <= 1


def test_a_row_has_ten_images_at_most() -> None:
    page = drawn([("many", np.zeros((40, 1, 16, 16), dtype=np.uint8))])
    assert page.shape[1] == 230 + 10 * 68
