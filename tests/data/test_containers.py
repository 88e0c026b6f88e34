"""What images come in, at every function that takes them: all of them are read, or one sentence says why not."""

import itertools
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from small_training import SCHEDULE, SETTINGS, small_unet
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, TensorDataset

import diffusion_var as dv
from diffusion_var.data.containers import by_position, image_of, in_passing
from diffusion_var.data.fixed_images import FixedImages
from diffusion_var.training.unet import UNetTraining, train_unet

COUNT = 24
X = torch.from_numpy(np.random.default_rng(3).integers(0, 256, (COUNT, 1, 8, 8), dtype=np.uint8))
Y = torch.arange(COUNT)
PICTURES = [Image.fromarray(image[0].numpy()) for image in X]


class Rows(Dataset):
    """A map-style data set, which goes on for ever where it is only iterated over."""

    def __init__(self, row):
        self.row = row

    def __len__(self):
        return COUNT

    def __getitem__(self, index):
        return self.row(index % COUNT)


class Alike:
    """Behaves like a map-style data set, and is none of torch's."""

    __init__, __len__, __getitem__ = Rows.__init__, Rows.__len__, Rows.__getitem__


class Foreign(Alike):
    """As `datasets.Dataset` does: rows by position and in turn, columns by name, slices as dicts of columns."""

    def __getitem__(self, key):
        if isinstance(key, slice):
            rows = [self.row(index) for index in range(*key.indices(COUNT))]
            return {name: [row[name] for row in rows] for name in rows[0]}
        return self.row(key)

    def __iter__(self):
        return (self.row(index) for index in range(COUNT))


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(X, Y, strict=True))


class LongStream(Stream):
    def __len__(self):
        return COUNT


def batches(kind):
    return [kind(X[start : start + 6]) for start in range(0, COUNT, 6)]


def row(index):
    return {"image": PICTURES[index], "label": index}


def loader(**options):
    return DataLoader(TensorDataset(X, Y), batch_size=5, **options)


def named(rows):
    return {"pixel_values": torch.stack([image for image, _ in rows]), "labels": torch.tensor([y for _, y in rows])}


POSITION, PASSING = "by position and in passing", "in passing"
READ = {
    "tensor": (POSITION, lambda: X),
    "array": (POSITION, lambda: X.numpy()),
    "read-only big-endian floats": (POSITION, lambda: dv.data.to_float(X).numpy().astype(">f4")),
    "object array": (POSITION, lambda: np.array([*PICTURES, None], dtype=object)[:-1]),
    "list of tensors": (POSITION, lambda: list(X)),
    "list of PIL images": (POSITION, lambda: PICTURES),
    "list of dict rows": (POSITION, lambda: [row(index) for index in range(COUNT)]),
    "list of pairs": (POSITION, lambda: list(zip(X, Y, strict=True))),
    "data set": (POSITION, lambda: Rows(lambda index: X[index])),
    "labelled data set": (POSITION, lambda: Rows(lambda index: (X[index], index, "a name"))),
    "data set of dicts": (POSITION, lambda: Rows(row)),
    "data set of images and masks": (POSITION, lambda: Rows(lambda index: (X[index], X[index].repeat(3, 1, 1)))),
    "data set of dicts with masks": (POSITION, lambda: Rows(lambda index: {"mask": X[0], "image": X[index]})),
    "what behaves like a data set": (POSITION, lambda: Alike(lambda index: X[index])),
    "foreign rows of PIL images": (POSITION, lambda: Foreign(row)),
    "foreign slice": (POSITION, lambda: Foreign(row)[:]),
    "dict of columns": (POSITION, lambda: {"image": X, "label": Y}),
    "part": (POSITION, lambda: Subset(Rows(row), range(COUNT))),
    "parts": (POSITION, lambda: ConcatDataset([TensorDataset(X[:9], Y[:9]), TensorDataset(X[9:], Y[9:])])),
    "loader": (POSITION, lambda: DataLoader(X, batch_size=5)),
    "labelled loader": (POSITION, loader),
    "loader without batches": (POSITION, lambda: DataLoader(TensorDataset(X, Y), batch_size=None)),
    "loader of lists of pairs": (PASSING, lambda: loader(collate_fn=list)),
    "loader of tuples of tuples": (PASSING, lambda: loader(collate_fn=lambda rows: tuple(zip(*rows, strict=True)))),
    "loader of dicts": (PASSING, lambda: loader(collate_fn=named)),
    "loader of dict rows": (PASSING, lambda: DataLoader(Rows(row), batch_size=5, collate_fn=list)),
    "loader in another order": (PASSING, lambda: loader(sampler=range(COUNT - 1, -1, -1))),
    "stream": (PASSING, Stream),
    "stream with a length": (PASSING, LongStream),
    "loader of a stream": (PASSING, lambda: DataLoader(Stream(), batch_size=7)),
    "generator": (PASSING, lambda: (image for image in X)),
    "zip": (PASSING, lambda: zip(X, Y, strict=True)),
    "batches": (PASSING, lambda: X.split(7)),
    "batches that are lists": (PASSING, lambda: batches(list)),
    "batches that are lists of PIL images": (PASSING, lambda: [PICTURES[:20], PICTURES[20:]]),
    "labelled batches that are lists": (PASSING, lambda: [(list(part), Y[:6]) for part in X.split(6)]),
    "batches with embeddings": (PASSING, lambda: [(part, torch.zeros(6, 4, 5)) for part in X.split(6)]),
    "dict of batches that are lists": (PASSING, lambda: [{"images": list(part), "y": [0] * 6} for part in X.split(6)]),
}
REFUSED = {
    "batches that are tuples": (lambda: batches(tuple), "6 images"),
    "tuples of images without labels beside": (lambda: [(tuple(part), 3) for part in X.split(6)], "6 images"),
    "pairs of images": (lambda: Rows(lambda index: (X[index], X[index])), "2 images"),
    "zip of images": (lambda: zip(X, X, strict=True), "2 images|in passing"),
    "lists of crops": (lambda: Rows(lambda index: [X[index], X[index][:, :4]]), "list of 2 images"),
    "loader of pairs of images": (lambda: DataLoader(TensorDataset(X, X), batch_size=5), "2 images"),
    "one image": (lambda: X[0], r"shape \((1, )?8, 8\)"),
    "one PIL image": (lambda: PICTURES[0], "Image"),
    "images of several sizes": (lambda: [X[0], X[1][:, :4]], r"\(1, 4, 8\)"),
    "a list of images of several sizes": (lambda: [[X[0], X[1][:, :4]]], r"\(1, 4, 8\)|2 images"),
    "channels last": (lambda: X.repeat(1, 3, 1, 1).permute(0, 2, 3, 1).numpy(), r"\(.*8, 8, 3\)"),
    "splits": (lambda: {"train": Rows(row), "test": Rows(row)}, "dict with train, test"),
    "rows without an image": (lambda: [{"label": 3}] * 4, "dict with label"),
    "undecoded rows": (lambda: [{"image": {"bytes": b"", "path": "a.png"}}] * 4, "dict with image"),
    "names of files": (lambda: ["a.png"] * 4, "is a str"),
    "a missing folder": (lambda: "nowhere", "no file or folder nowhere"),
    "a length that lies": (lambda: Rows(lambda index: [*X[:5]][index]), "length of 24, but gives no item"),
    "a class": (lambda: Rows, "Rows|type"),
    "nothing": (lambda: None, "None"),
    "a number": (lambda: 3, "is a int|got int"),
    "an empty list": (list, "no images|empty"),
    "an empty dict": (dict, "nothing in it"),
    "without end": (lambda: itertools.cycle([X[0]]), "never ends|in passing"),
}


DIGITS = dv.Denoiser.from_pretrained("digits")
FEATURES = dv.metrics.load_features("digits")


def collected(images):
    sample = dv.metrics.collect(images, FEATURES)
    return sample.statistics.count, sample.origin["sha256"]


def scored(images):
    protocol = dv.metrics.fid(images, X.flip(3), FEATURES).protocol
    return protocol["images"], protocol["images_sha256"]


def referred(images):
    protocol = dv.metrics.fid(X.flip(3), images, FEATURES).protocol
    return protocol["reference"], protocol["reference_sha256"]


def summed(images):
    statistics = dv.metrics.feature_statistics(images, FEATURES)
    return statistics.count, statistics.origin["sha256"]


def fixed(images):
    found = FixedImages(images, (1, 8, 8), (-1.0, 1.0))
    # As floats: whether they came as 8 bits is told apart elsewhere.
    return len(found), found.take(np.arange(len(found))).numpy().tobytes()


def estimated(images):
    few = {"indices": [500, 1000], "structures": [], "max_evaluations": 512, "progress": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the few evaluations
        data = dv.estimate(DIGITS, images, 0.5, **few).data
    return data.count, data.mean.tobytes()


def bounded(images):
    result = dv.bits_per_dim(DIGITS, dv.FixedSmall(), images, steps=2)
    return result.images, result.value


def dense(images):
    result = dv.density_bound(DIGITS, dv.FixedSmall(), images, steps=2)
    return result.images, result.value


def costed(images):
    result = dv.step_costs(DIGITS, dv.FixedSmall(), images, indices=[1, 1000])
    return result.images, result.values.tobytes()


def remembered(images):
    found = dv.oracles.EmpiricalDenoiser(SCHEDULE, images).means
    return len(found), found.numpy().tobytes()


def trained(images):
    curve = train_unet(small_unet(), images, SCHEDULE, UNetTraining(**{**SETTINGS, "steps": 1}), progress=False).curve
    return COUNT, repr(curve)  # the losses are of all images


PASSING_DOORS = {"collect": collected, "fid": scored, "reference": referred, "feature_statistics": summed}
POSITION_DOORS = {
    "fixed images": fixed,
    "estimate": estimated,
    "train_unet": trained,
    "bits_per_dim": bounded,
    "density_bound": dense,
}
DOORS = {**PASSING_DOORS, **POSITION_DOORS, "step_costs": costed, "EmpiricalDenoiser": remembered}
# Every kind goes through a door of each mechanism; a few kinds through the others, which share it.
PAIRS = [
    (kind, door)
    for door in DOORS
    for kind in READ
    if door in ("collect", "estimate")
    or kind in ("data set of dicts", "labelled loader", "generator", "dict of columns")
]


@pytest.fixture(scope="module")
def expected():
    return {door: read(X) for door, read in DOORS.items()}


@pytest.mark.parametrize(("kind", "door"), PAIRS)
def test_what_is_read_is_read_whole_and_counted(kind, door, expected):
    how, make = READ[kind]
    if how == PASSING and door not in PASSING_DOORS:
        with pytest.raises(dv.InputError, match=r"^(images|item 0 of images|image 0) .*\.$"):
            DOORS[door](make())
    elif kind == "loader in another order":
        assert DOORS[door](make()) == DOORS[door](X.flip(0)) != expected[door]
    else:
        assert expected[door][0] == COUNT
        assert DOORS[door](make()) == expected[door]


@pytest.mark.parametrize("door", ["collect", "fid", "fixed images", "estimate", "train_unet"])
@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_unclear_is_refused_in_one_sentence(kind, door):
    make, message = REFUSED[kind]
    if (kind, door) == ("channels last", "train_unet"):
        pytest.skip("its network takes images of any shape")
    with pytest.raises(dv.InputError, match=message) as caught:
        DOORS[door](make())
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


def test_a_loader_stands_for_its_data_set_only_where_it_gives_just_that():
    data = TensorDataset(X, Y)
    for loader_of_all in (loader(), loader(num_workers=0, drop_last=False), DataLoader(data, 6, drop_last=True)):
        assert by_position(loader_of_all) is not None
        assert len(by_position(loader_of_all)) == COUNT
    for change, found in {
        "shuffles": {"shuffle": True},
        "chooses its images": {"sampler": range(4)},
        "collate_fn": {"collate_fn": list},
        "drops the last batch": {"drop_last": True},
    }.items():
        with pytest.raises(dv.InputError, match=change):
            by_position(loader(**found))
    with pytest.raises(dv.InputError, match="chooses"):
        by_position(DataLoader(data, batch_sampler=[[0, 1], [2]]))


def test_the_shape_tells_the_image_of_a_record():
    vector, one_hot = torch.arange(16.0), torch.zeros(10)
    assert torch.equal(image_of((vector, one_hot), "item", (16,)), vector)
    assert torch.equal(image_of((one_hot, vector), "item", (16,)), vector)
    with pytest.raises(dv.InputError, match="tuple of 2 images"):
        image_of((vector, vector), "item", (16,))


def test_memory_mapped_arrays_pass_in_pieces():
    pieces = [len(part) for part in in_passing(np.broadcast_to(np.uint8(3), (1000, 1, 8, 8)), 300)]
    assert pieces == [300, 300, 300, 100]
