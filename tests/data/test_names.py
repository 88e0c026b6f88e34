"""Images by name: npz keys, slices, torchvision and the digits, and what is said of names that mean nothing."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, Subset

from diffusion_var.data.digits import digits_splits
from diffusion_var.data.names import ImageName, Part, TorchvisionImages, open_images, parse_name
from diffusion_var.errors import InputError


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (10, 1, 4, 5), dtype=np.uint8)


@pytest.fixture
def archive(tmp_path, pixels):
    path = tmp_path / "data.npz"
    np.savez(path, train_x=pixels, test_x=255 - pixels[:3], **{"odd-name": pixels[::-1]})
    return path


def stacked(images):
    return torch.stack([images[i] for i in range(len(images))]).numpy()


class FakeMNIST(Dataset):
    """What torchvision's data sets give: (PIL image, label), and `targets`."""

    def __init__(self, root, train, download):
        if not download:
            raise RuntimeError("Dataset not found. You can use download=True to download it")
        self.targets = torch.arange(6) % 3 if train else [2, 1, 0]  # MNIST has a tensor, CIFAR a list

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return Image.fromarray(np.full((4, 5), 10 * index, np.uint8)), int(self.targets[index])


@pytest.fixture
def torchvision(monkeypatch):
    from torchvision import datasets

    monkeypatch.setattr(datasets, "MNIST", FakeMNIST)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a", ImageName("a")),
        ("a.npz:k", ImageName("a.npz", "k")),
        ("a.NPZ:k-1", ImageName("a.NPZ", "k-1")),
        ("a.npz:k[2:5]", ImageName("a.npz", "k", Part(2, 5))),
        ("dir/a.zip[:-3]", ImageName("dir/a.zip", None, Part(None, -3))),
        ("a[-3:]", ImageName("a", None, Part(-3, None))),
        ("a[:]", ImageName("a", None, Part(None, None))),
        ("torchvision:MNIST:test[:5]", ImageName("torchvision:MNIST:test", None, Part(None, 5))),
        ("digits:train[0:1]", ImageName("digits:train", None, Part(0, 1))),
        ("a.npz:k[shuffled:2:5]", ImageName("a.npz", "k", Part(2, 5, shuffled=True))),
        ("a[shuffled::-5]", ImageName("a", None, Part(None, -5, shuffled=True))),
        ("a[3]", ImageName("a[3]")),
        ("a[::2]", ImageName("a[::2]")),
        ("a[1:2]b", ImageName("a[1:2]b")),
        ("c:\\a.npz", ImageName("c:\\a.npz")),
    ],
)
def test_names_are_taken_apart(name, expected):
    assert parse_name(name) == expected


def test_key_and_slice_of_an_npz(archive, pixels):
    assert np.array_equal(stacked(open_images(f"{archive}:train_x")), pixels)
    assert np.array_equal(stacked(open_images(f"{archive}:odd-name")), pixels[::-1])
    for text, part in (("2:5", slice(2, 5)), (":-7", slice(-7)), ("-2:", slice(-2, None)), ("8:99", slice(8, 99))):
        images = open_images(f"{archive}:train_x[{text}]")
        assert isinstance(images, Subset)
        assert np.array_equal(stacked(images), pixels[part]), text


def test_slices_are_disjoint_parts(archive, pixels):
    parts = [open_images(f"{archive}:train_x[{part}]") for part in (":4", "4:9", "9:")]
    assert np.array_equal(np.concatenate([stacked(part) for part in parts]), pixels)


def test_shuffled_slices_are_the_same_disjoint_parts_every_time(archive, pixels):
    names = [f"{archive}:train_x[shuffled:{part}]" for part in (":4", "4:9", "9:")]
    parts = [stacked(open_images(name)) for name in names]
    values = [[int(image.flat[0]) for image in part] for part in parts]
    assert [len(part) for part in parts] == [4, 5, 1]
    assert sorted(value for part in values for value in part) == sorted(int(image.flat[0]) for image in pixels)
    assert values[0] != [int(image.flat[0]) for image in pixels[:4]]
    assert all(np.array_equal(stacked(open_images(name)), part) for name, part in zip(names, parts, strict=True))


def test_a_shuffled_part_of_sorted_images_holds_all_classes():
    chosen = Part(None, 500, shuffled=True).indices(1000) // 100
    assert np.bincount(chosen, minlength=10).min() > 30


@pytest.mark.parametrize("part", ["5:5", "7:3", "10:", "50:60", ":-10", "-1:-1"])
def test_empty_slices_are_refused(archive, part):
    with pytest.raises(InputError, match=r"leaves none of the 10 images"):
        open_images(f"{archive}:train_x[{part}]")


def test_missing_and_ambiguous_keys_name_those_there_are(archive):
    with pytest.raises(InputError, match=r"data\.npz holds the arrays .*train_x.*test_x.*expected 'train_y'"):
        open_images(f"{archive}:train_y")
    with pytest.raises(InputError, match=r"holds the arrays .*train_x"):
        open_images(str(archive))


def test_a_key_of_what_has_none_is_refused(tmp_path, pixels):
    np.save(tmp_path / "a.npy", pixels)
    assert np.array_equal(stacked(open_images(f"{tmp_path}/a.npy[1:3]")), pixels[1:3])
    with pytest.raises(InputError, match="no file or folder"):
        open_images(f"{tmp_path}/a.npy:key")
    with pytest.raises(InputError, match="no file or folder"):
        open_images(f"{tmp_path}/missing.npz:key[2:]")


def test_a_path_that_looks_like_a_slice_is_that_path(tmp_path, pixels):
    whole, part = tmp_path / "images", tmp_path / "images[0:2]"
    for folder, count in ((whole, 5), (part, 3)):
        folder.mkdir()
        for number, image in enumerate(pixels[:count]):
            Image.fromarray(image[0]).save(folder / f"{number}.png")
    assert len(open_images(str(part))) == 3
    assert len(open_images(f"{part}[1:]")) == 2
    assert len(open_images(f"{whole}[1:]")) == 4
    np.savez(tmp_path / "a.npz:k", pixels)  # numpy adds .npz
    assert len(open_images(str(tmp_path / "a.npz:k.npz"))) == 10


def test_a_folder_with_the_name_of_a_kind_is_that_folder(tmp_path, monkeypatch, pixels):
    monkeypatch.chdir(tmp_path)
    for name in ("torchvision", "digits", "digits:train"):
        (tmp_path / name).mkdir()
        Image.fromarray(pixels[0, 0]).save(tmp_path / name / "0.png")
        assert np.array_equal(stacked(open_images(name)), pixels[:1])


def test_digits():
    splits = digits_splits()
    assert torch.equal(open_images("digits:score"), splits.score.images)
    assert torch.equal(open_images("digits:train[-7:-2]"), splits.train.images[-7:-2])
    for name in ("digits:test", "digits:"):
        with pytest.raises(InputError, match="choose one of digits:train, digits:table, digits:score"):
            open_images(name)
    with pytest.raises(InputError, match="leaves none of the 300"):
        open_images("digits:table[300:]")


def test_torchvision(torchvision):
    images = open_images("torchvision:MNIST", download=True)
    assert isinstance(images, TorchvisionImages)
    assert [int(image[0, 0, 0]) for image in images] == [0, 10, 20, 30, 40, 50]
    assert images[1].shape == (1, 4, 5)
    assert images[1].dtype == torch.uint8
    assert images.labels.tolist() == [0, 1, 2, 0, 1, 2]
    test = open_images("torchvision:MNIST:test[1:]", download=True)
    assert stacked(test)[:, 0, 0, 0].tolist() == [10, 20]
    assert TorchvisionImages("MNIST:test", download=True).labels.tolist() == [2, 1, 0]
    with pytest.raises(InputError, match=r"torchvision's MNIST .* pass download=True to fetch it \(Dataset not found"):
        open_images("torchvision:MNIST")


@pytest.mark.parametrize("name", ["ImageNet", "MNIST:valid", "", "datasets"])
def test_unknown_torchvision_names(name):
    with pytest.raises(InputError, match="is not known; use torchvision:NAME"):
        open_images(f"torchvision:{name}")
