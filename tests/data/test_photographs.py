"""The patches of the two photographs: where they are cut, that the parts share no pixel, and by name."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_images

from diffusion_var.data.labels import open_labels
from diffusion_var.data.names import open_images
from diffusion_var.data.photographs import COUNTS, STRIPS, photographs_part, read_photographs
from diffusion_var.errors import InputError


def test_photographs_are_scikit_learns():
    pictures = read_photographs()
    assert pictures.shape == (2, 3, 427, 640)
    for picture, image in zip(pictures, load_sample_images().images, strict=True):
        assert np.array_equal(picture.permute(1, 2, 0).numpy(), image)


def test_strips_are_disjoint_and_together_the_whole():
    strips = [strip for part in STRIPS.values() for strip in part]
    assert sorted(strips) == [*range(10)]


@pytest.fixture
def numbered(monkeypatch):
    """Photographs whose pixels say where they are: picture, row and column, which 8 bits could not."""
    where = torch.stack(torch.meshgrid(torch.arange(2), torch.arange(427), torch.arange(640), indexing="ij"), dim=1)
    monkeypatch.setattr("diffusion_var.data.photographs.read_photographs", lambda: where)


@pytest.mark.parametrize("part", STRIPS)
@pytest.mark.parametrize("size", [16, 64])
def test_patches_are_squares_within_their_strips(numbered, part, size):
    split = photographs_part(part, size, 2000)
    labels, (picture, row, column) = split.labels, split.images.unbind(dim=1)
    assert torch.equal(picture, labels[:, None, None].expand_as(picture))
    assert torch.equal(row, row[:, :1, :1] + torch.arange(size)[:, None].expand_as(row))
    steps = column.diff(dim=2)
    flipped = (steps == -1).all(dim=2).all(dim=1)
    assert torch.equal(steps, torch.where(flipped, -1, 1)[:, None, None].expand_as(steps))
    assert set((column // 64).unique().tolist()) == set(STRIPS[part])
    assert torch.equal(column.amin((1, 2)) // 64, column.amax((1, 2)) // 64)
    assert flipped.double().mean() == pytest.approx(0.5, abs=0.05)
    assert labels.double().mean() == pytest.approx(0.5, abs=0.05)
    # Drawn uniformly, from edge to edge: means within four of their standard errors.
    assert row.min() == 0
    assert row.max() == 426
    rest = 427 - size
    assert row[:, 0, 0].double().mean() == pytest.approx(rest / 2, abs=4 * rest / 12**0.5 / 2000**0.5)
    offsets = column.amin((1, 2)) % 64
    assert set(offsets.tolist()) == set(range(64 - size + 1))


def test_parts_share_no_pixel_even_where_they_are_long(numbered):
    seen = {}
    for part in STRIPS:
        picture, row, column = photographs_part(part, 16, 5000).images.unbind(dim=1)
        seen[part] = set(((picture * 427 + row) * 640 + column).flatten().tolist())
    assert not seen["fit"] & seen["table"]
    assert not seen["fit"] & seen["score"]
    assert not seen["table"] & seen["score"]
    assert len(seen["fit"]) > 2 * 427 * 64 * 6 * 0.9  # nearly all of its area


def test_first_patches_are_the_same_for_every_count_and_differ_by_size():
    few, many = photographs_part("table", count=20), photographs_part("table", count=500)
    assert torch.equal(few.images, many.images[:20])
    assert few.images.shape == (20, 3, 16, 16)
    assert few.images.dtype == torch.uint8
    assert photographs_part("table", 8, 20).images.shape == (20, 3, 8, 8)
    assert len(photographs_part("score").images) == COUNTS["score"] == 10_000


def test_by_name():
    score = photographs_part("score")
    assert torch.equal(open_images("photographs:score"), score.images)
    assert torch.equal(open_images("photographs:score[5:9]"), score.images[5:9])
    assert torch.equal(open_images("photographs:table:8[:7]"), photographs_part("table", 8, 7).images)
    assert torch.equal(open_labels("photographs:score[5:9]"), score.labels[5:9])


@pytest.mark.parametrize("name", ["", "train", "fit:", "fit:0", "fit:65", "fit:x", "fit:8:8"])
def test_unknown_names_say_which_there_are(name):
    with pytest.raises(InputError, match=r"choose one of photographs:fit, photographs:table, photographs:score"):
        open_images(f"photographs:{name}")


@pytest.mark.parametrize(("size", "count"), [(0, 1), (65, 1), (16, 0), (1.5, 1)])
def test_senseless_sizes_and_counts_are_refused(size, count):
    with pytest.raises(InputError, match=r"size|count"):
        photographs_part("fit", size, count)
