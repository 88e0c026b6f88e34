"""Labels: of every kind of source, in the order of its images, with slices, and what is refused."""

import json
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_var.data.digits import digits_splits
from diffusion_var.data.labels import open_labels
from diffusion_var.data.names import open_images
from diffusion_var.errors import InputError

FILES = {"cat/1.png": 10, "dog/0.png": 20, "cat/0.png": 30, "ant/x/7.png": 40}  # grey value by name


@pytest.fixture
def folder(tmp_path):
    for name, value in FILES.items():
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((3, 3), value, np.uint8)).save(path)
    return tmp_path / "pictures"


@pytest.fixture
def packed(folder):
    """A function that makes a zip of the folder, with a dataset.json of the given content."""

    def pack(dataset=None):
        path = folder.parent / "pictures.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for name in FILES:
                archive.write(folder / name, name)
            if dataset is not None:
                archive.writestr("dataset.json", dataset if isinstance(dataset, str) else json.dumps(dataset))
        return path

    return pack


def by_value(source, labels):
    """{grey value: label}, which does not depend on the order."""
    images = open_images(str(source))
    return {int(images[i][0, 0, 0]): int(label) for i, label in enumerate(labels)}


def test_subfolders_are_numbered_in_alphabetical_order(folder, packed):
    expected = {40: 0, 10: 1, 30: 1, 20: 2}
    for source in (folder, packed(), packed({"labels": None})):
        labels = open_labels(str(source))
        assert labels.dtype == torch.int64
        assert by_value(source, labels) == expected


def test_dataset_json_wins_over_the_folders(packed):
    source = packed({"labels": [["dog/0.png", 7], ["cat/0.png", 0], ["ant/x/7.png", 3], ["cat/1.png", 5]]})
    assert by_value(source, open_labels(str(source))) == {10: 5, 20: 7, 30: 0, 40: 3}
    assert open_labels(f"{source}[1:3]").tolist() == open_labels(str(source)).tolist()[1:3]


@pytest.mark.parametrize(
    ("dataset", "said"),
    [
        ("{", "not as expected"),
        ("[1, 2]", "not as expected"),
        ({"classes": []}, "not as expected"),
        ({"labels": [["cat/0.png"]]}, "not as expected"),
        ({"labels": [["cat/0.png", "cat"]]}, "not as expected"),
        ({"labels": [["cat/0.png", 1.5]]}, "not as expected"),
        ({"labels": [["cat/0.png", 1]]}, r"gives no label for ant/x/7\.png"),
        ({"labels": [[name, -1] for name in FILES]}, "whole numbers from 0"),
    ],
)
def test_broken_dataset_json(packed, dataset, said):
    with pytest.raises(InputError, match=said):
        open_labels(str(packed(dataset)))


def test_damaged_dataset_json(packed):
    path = packed({"labels": [[name, 1] for name in FILES]})
    content = path.read_bytes()
    assert content.count(b'ant/x/7.png", 1') == 1
    path.write_bytes(content.replace(b'ant/x/7.png", 1', b'ant/x/7.png", 2'))
    with pytest.raises(InputError, match=r"dataset\.json in .* is not as expected .*CRC"):
        open_labels(str(path))


def test_folders_without_classes_are_refused(folder, tmp_path):
    with pytest.raises(InputError, match="has no labels"):
        open_labels(str(folder / "cat"))  # no subfolders
    with pytest.raises(InputError, match="at least two"):
        open_labels(str(folder / "ant"))  # one
    Image.fromarray(np.zeros((3, 3), np.uint8)).save(folder / "stray.png")
    with pytest.raises(InputError, match="every image in a folder of its class"):
        open_labels(str(folder))
    with pytest.raises(InputError, match="no file or folder"):
        open_labels(str(tmp_path / "missing"))


def test_digits_know_their_labels():
    assert torch.equal(open_labels("digits:score"), digits_splits().score.labels)
    assert torch.equal(open_labels("digits:train[5:-900]"), digits_splits().train.labels[5:-900])
    with pytest.raises(InputError, match="choose one of"):
        open_labels("digits:nothing")


def test_torchvision_knows_its_labels(monkeypatch):
    from torchvision import datasets

    class Fake:
        def __init__(self, root, train, download):
            self.targets = [3, 1, 2] if train else [9, 8]

    monkeypatch.setattr(datasets, "CIFAR10", Fake)
    assert open_labels("torchvision:CIFAR10").tolist() == [3, 1, 2]
    assert open_labels("torchvision:CIFAR10:test[-1:]").tolist() == [8]


@pytest.fixture
def arrays(tmp_path):
    path = tmp_path / "data.npz"
    np.savez(path, x=np.zeros((6, 4, 4), np.uint8), y=np.arange(6, dtype=np.uint8), other=np.arange(10, 16))
    np.save(tmp_path / "y.npy", np.arange(6)[::-1])
    return path


def test_labels_of_an_array_are_named(arrays):
    assert open_labels(f"{arrays}:x", f"{arrays}:other").tolist() == [10, 11, 12, 13, 14, 15]
    assert open_labels(f"{arrays}:x", f"{arrays}").tolist() == [0, 1, 2, 3, 4, 5]  # y is a usual name
    assert open_labels(f"{arrays}:x", str(arrays.with_name("y.npy"))).tolist() == [5, 4, 3, 2, 1, 0]
    with pytest.raises(InputError, match=r"name its labels too, e\.g\. labels=.*data\.npz:KEY"):
        open_labels(f"{arrays}:x")


def test_the_images_slice_holds_unless_the_labels_have_their_own(arrays):
    assert open_labels(f"{arrays}:x[2:5]", f"{arrays}:other").tolist() == [12, 13, 14]
    assert open_labels(f"{arrays}:x[2:5]", f"{arrays}:other[:3]").tolist() == [10, 11, 12]
    assert open_labels(f"{arrays}:x[2:5]", f"{arrays}:other[:]").tolist() == [10, 11, 12, 13, 14, 15]


def test_labels_follow_a_shuffled_slice(arrays, tmp_path):
    """Images whose pixels are their labels, cut and shuffled together."""
    np.savez(tmp_path / "told.npz", x=np.arange(50, dtype=np.uint8)[:, None, None].repeat(4, 1).repeat(4, 2))
    np.save(tmp_path / "told.npy", np.arange(50))
    name = f"{tmp_path}/told.npz:x[shuffled:10:30]"
    labels = open_labels(name, str(tmp_path / "told.npy")).tolist()
    assert labels == [int(image.flatten()[0]) for image in open_images(name)]
    assert labels != list(range(10, 30))


@pytest.mark.parametrize(
    "labels",
    [np.arange(6.0), np.arange(-1, 5), np.eye(6, dtype=int), np.array([], dtype=int), np.array(["a"] * 6)],
    ids=["floats", "negative", "one-hot", "none", "text"],
)
def test_labels_that_are_no_classes(arrays, tmp_path, labels):
    np.savez(tmp_path / "l.npz", labels=labels)
    with pytest.raises(InputError, match="expected whole numbers from 0"):
        open_labels(f"{arrays}:x", f"{tmp_path}/l.npz")


def test_label_files_that_cannot_be_read(arrays, tmp_path):
    np.savez(tmp_path / "l.npz", a=np.arange(6), b=np.arange(6))
    with pytest.raises(InputError, match=r"holds the arrays \['a', 'b'\]; name the labels among them"):
        open_labels(f"{arrays}:x", f"{tmp_path}/l.npz")
    with pytest.raises(InputError, match=r"holds the arrays \['a', 'b'\]"):
        open_labels(f"{arrays}:x", f"{tmp_path}/l.npz:c")
    with pytest.raises(InputError, match="cannot be read"):
        open_labels(f"{arrays}:x", f"{tmp_path}/missing.npz:y")
    content = arrays.read_bytes()
    arrays.with_name("broken.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="cannot be read"):
        open_labels(f"{arrays}:x", f"{tmp_path}/broken.npz:y")
    np.save(tmp_path / "objects.npy", np.array([{}, []], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="cannot be read"):
        open_labels(f"{arrays}:x", f"{tmp_path}/objects.npy")
