"""Square patches of the two photographs that scikit-learn ships: a temple by a lake, and a flower.

Each photograph (427 × 640 RGB, CC BY 2.0) is cut into ten upright strips of 64 pixels. Six are for denoisers (`fit`),
two for variance tables (`table`), two for scores (`score`), so that no pixel is in two parts; they alternate, so that
every part has sky, leaves, walls and petals. A patch is a uniformly drawn square within one strip, and half of them are
mirrored left to right. They come in no order: the first patches of a part are a random choice of it, the same however
many are asked for. The photographs are small: patches of a part overlap, and a large network can learn them by heart.
"""

from __future__ import annotations

import numpy as np
import torch

from .. import checks
from ..randomness import generator
from .digits import Split

STRIP = 64  # pixels; also the largest patch
STRIPS = {"fit": (0, 2, 4, 5, 7, 9), "table": (1, 6), "score": (3, 8)}
COUNTS = {"fit": 50_000, "table": 10_000, "score": 10_000}
SIZE = 16


def read_photographs() -> torch.Tensor:
    """The two photographs, (2, 3, 427, 640) uint8: the temple (china.jpg), then the flower (flower.jpg)."""
    from sklearn.datasets import load_sample_images

    return torch.from_numpy(np.stack(load_sample_images().images).transpose(0, 3, 1, 2).copy())


def photographs_part(part: str, size: int = SIZE, count: int | None = None) -> Split:
    """Patches of one part, (count, 3, size, size) uint8, with the number of their photograph as label (0 or 1).

    Args:
        part: "fit", "table" or "score".
        size: side of a patch in pixels, 1 to 64.
        count: how many; None: 50,000 of `fit`, 10,000 of the others. The first are the same for every count.

    Raises InputError for an unknown part, and for a size or count out of range.
    """
    checks.one_of("part", part, tuple(STRIPS))
    size = checks.whole("size", size, least=1, most=STRIP)
    count = COUNTS[part] if count is None else checks.whole("count", count, least=1)
    pictures, strips = read_photographs().numpy(), np.array(STRIPS[part])
    # A row of numbers a patch, so that a longer list begins as a shorter one.
    where, strip, top, left, mirrored = generator(0, f"photographs {part}", size).random((count, 5)).T
    picture = (where * len(pictures)).astype(int)
    row = (top * (pictures.shape[2] - size + 1)).astype(int)
    column = STRIP * strips[(strip * len(strips)).astype(int)] + (left * (STRIP - size + 1)).astype(int)
    windows = np.lib.stride_tricks.sliding_window_view(pictures, (size, size), axis=(2, 3))
    # The slice stands between the indices, so its axis comes second: (count, 3, size, size).
    patches = windows[picture, :, row, column]
    flipped = mirrored < 0.5
    patches[flipped] = patches[flipped, ..., ::-1]
    return Split(torch.from_numpy(patches), torch.from_numpy(picture.astype(np.int64)))
