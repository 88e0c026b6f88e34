"""Images that several processes put through a network: the result is one process's, to the byte, in each of them."""

import os
import re
import warnings

import numpy as np
import pytest
import torch
from many import Many, many
from torch.utils.data import Dataset

from diffusion_var.errors import InputError
from diffusion_var.metrics.networks import CallableFeatures
from diffusion_var.metrics.sample import collect
from diffusion_var.metrics.scores import evaluate, feature_statistics

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*are grey and the feature network wants RGB", "ignore:there are more processes"
)
GENERATOR = np.random.default_rng(3)
IMAGES = torch.from_numpy(GENERATOR.integers(0, 256, (75, 1, 6, 6), dtype=np.uint8))
WEIGHTS = torch.from_numpy(GENERATOR.normal(size=(3 * 36, 5)).astype(np.float32))
ASKED: list[int] = []  # images that this process has read by position


class Kept(Dataset):
    """Images that are read one by one, like files."""

    def __init__(self, images=IMAGES):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        ASKED.append(index)
        return self.images[index], index


def project(images):
    return torch.tanh(images.flatten(1).float() / 255 @ WEIGHTS)


def network():
    return CallableFeatures(project, fingerprint="w", channels=3)


GIVEN = {
    "data set": Kept,
    "array": IMAGES.numpy,
    "floats": lambda: IMAGES.float() / 127.5 - 1,
    "stream": lambda: (batch for batch in IMAGES.split(9)),
    "fewer batches than processes": lambda: IMAGES[:5],
}


def found(kind):
    del ASKED[:]
    sample = collect(GIVEN[kind](), network(), keep=True, batch_size=8, name=kind)
    statistics = sample.statistics
    bare = feature_statistics(GIVEN[kind](), network(), batch_size=8)
    assert bare.digest == statistics.digest
    return sample.origin, statistics.origin, statistics.count, statistics.digest, sample.features.tobytes(), [*ASKED]


@pytest.mark.parametrize("kind", GIVEN)
def test_is_what_one_process_finds(kind):
    alone = found(kind)
    for theirs in many(2, found, kind):
        assert theirs[:-1] == alone[:-1]


def asked(count_of_images):
    collect(Kept(IMAGES[:count_of_images]), network(), batch_size=8)
    return len(ASKED)


def test_a_data_sets_images_are_read_once():
    first, second = many(2, asked, 64)
    assert (first, second) == (32 + 2, 32 + 2)  # and the first one, to be compared and to be measured


def scored():
    images, reference = Kept(), Kept(255 - IMAGES)
    scores = evaluate(
        images, reference, ("fid", "kid", "recall"), network(), batch_size=8, bootstrap=20, extrapolate=True
    )
    return {name: (score.value, score.standard_error, score.interval) for name, score in scores.items()}


def test_scores_are_the_same_in_every_process():
    alone = scored()
    assert many(2, scored) == [alone, alone]


def idle():
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        collect(Kept(IMAGES[:8]), network(), batch_size=8)
    return [str(warning.message) for warning in said if "processes" in str(warning.message)]


def test_more_processes_than_batches_are_told_once():
    first, second = many(2, idle)
    assert len(first) == 1
    assert first[0].startswith("there are more processes (2) than batches of images (1) to share")
    assert second == []


def unlike(what):
    rank = int(os.environ["RANK"])
    own = IMAGES.roll(rank, dims=0)
    given = {"images": Kept(own), "stream": (image for image in own), "fewer": iter(IMAGES[: 70 - 30 * rank])}
    size = 9 + rank if what == "batch_size" else 9
    collect(given.get(what, IMAGES), network(), batch_size=size, name="mine")


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("images", "differ in first image"),
        ("stream", "differ in images"),
        ("fewer", "differ in images"),
        ("batch_size", "differ in batch_size (the batch_size of rank 0 is 9, of rank 1 10)"),
    ],
)
def test_processes_with_other_images_are_refused(what, said):
    for end in Many(2, unlike, what).ends():
        assert re.match(rf"InputError: .*{re.escape(said)}", end.error), end


def broken(where):
    def features(images):
        if int(os.environ["RANK"]) == where:
            raise InputError("the network is tired.")
        return project(images)

    collect(IMAGES, CallableFeatures(features, fingerprint="w", channels=3), batch_size=8)


def test_a_process_that_fails_ends_all():
    first, second = Many(2, broken, 1).ends()
    assert first.error == "RankError: rank 1 of 2 failed: the network is tired."
    assert second.error == "InputError: the network is tired."


def none():
    collect([], network())


def test_no_images_are_refused_by_all():
    assert [end.error for end in Many(2, none).ends()] == [
        "InputError: there are no images to score in list; pass at least 2."
    ] * 2
