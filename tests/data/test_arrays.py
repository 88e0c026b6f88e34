"""Images from .npy and .npz: layouts, keys, the three ways of reading a member, and what is said about bad ones."""

import io
import os
import pickle
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.lib import format as npy
from PIL import Image

from diffusion_var.data import arrays
from diffusion_var.data.images import read_images
from diffusion_var.errors import InputError


def random_pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("shape", "order"),
    [
        ((5, 1, 8, 8), (0, 1, 2, 3)),
        ((5, 3, 8, 9), (0, 1, 2, 3)),
        ((5, 4, 8, 9), (0, 1, 2, 3)),
        ((5, 8, 9, 1), (0, 3, 1, 2)),
        ((5, 8, 9, 3), (0, 3, 1, 2)),
        ((5, 8, 9, 4), (0, 3, 1, 2)),
        ((5, 3, 8, 3), (0, 1, 2, 3)),  # ambiguous: channels first
        ((5, 4, 8, 3), (0, 3, 1, 2)),
        ((5, 3, 6, 8, 9), (0, 1, 2, 3, 4)),  # videos
        ((5, 6, 8, 9, 3), (0, 4, 1, 2, 3)),
        ((5, 1, 6, 8, 3), (0, 1, 2, 3, 4)),
    ],
)
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_layouts(tmp_path, shape, order, suffix):
    array = random_pixels(*shape)
    path = tmp_path / f"a{suffix}"
    np.save(path, array) if suffix == ".npy" else np.savez(path, array)
    images = read_images(path)
    expected = array.transpose(order)
    assert len(images) == 5
    assert images.shape == expected.shape[1:]
    np.testing.assert_array_equal(torch.stack(list(images)), expected)


def test_three_axes_are_grey(tmp_path):
    array = random_pixels(3, 8, 9)
    np.save(tmp_path / "a.npy", array)
    images = read_images(tmp_path / "a.npy")
    assert images.shape == (1, 8, 9)
    np.testing.assert_array_equal(images[2][0], array[2])


def test_keys_in_order(tmp_path):
    arrays = {
        key: np.full((2, 1, 4, 4), n, dtype=np.uint8) for n, key in enumerate(["images", "arr_0", "samples", "x"])
    }
    labels = np.arange(2)
    for n, key in enumerate(arrays):
        np.savez(
            tmp_path / "a.npz", labels=labels, **{k: v for k, v in arrays.items() if k >= "" and v[0, 0, 0, 0] >= n}
        )
        assert int(read_images(tmp_path / "a.npz")[0][0, 0, 0]) == n, key
    np.savez(tmp_path / "only.npz", whatever=arrays["x"])
    assert len(read_images(tmp_path / "only.npz")) == 2
    np.savez(tmp_path / "two.npz", first=arrays["x"], second=arrays["x"])
    with pytest.raises(InputError, match=r"two\.npz holds the arrays \['first', 'second'\]"):
        read_images(tmp_path / "two.npz")
    np.savez(tmp_path / "fid.npz", mu=np.zeros(2), sigma=np.eye(2))
    with pytest.raises(InputError, match="feature statistics, not images"):
        read_images(tmp_path / "fid.npz")


def test_floats_keep_their_values_as_float32(tmp_path):
    array = np.random.default_rng(0).normal(size=(3, 1, 4, 4))
    np.save(tmp_path / "a.npy", array)
    image = read_images(tmp_path / "a.npy")[1]
    assert image.dtype == torch.float32
    np.testing.assert_array_equal(image, array[1].astype(np.float32))


def test_channels_convert_as_pil_does(tmp_path):
    array = random_pixels(2, 16, 16, 3)
    np.save(tmp_path / "a.npy", array)
    grey = read_images(tmp_path / "a.npy", channels=1)
    assert grey.shape == (1, 16, 16)
    np.testing.assert_array_equal(grey[1][0], np.array(Image.fromarray(array[1]).convert("L")))
    np.save(tmp_path / "f.npy", array.astype(np.float32))
    np.testing.assert_allclose(read_images(tmp_path / "f.npy", channels=1)[1], grey[1].float(), atol=0.51)
    np.save(tmp_path / "g.npy", array[..., :1])
    np.testing.assert_array_equal(
        read_images(tmp_path / "g.npy", channels=3)[0], np.repeat(array[0, ..., :1].transpose(2, 0, 1), 3, 0)
    )
    np.save(tmp_path / "l.npy", random_pixels(2, 4, 8, 8))
    with pytest.raises(InputError, match="4 channels"):
        read_images(tmp_path / "l.npy", channels=3)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 8, 8), dtype=np.int64), "int64"),
        (np.zeros((4, 64), dtype=np.uint8), r"\(4, 64\)"),
        (np.zeros((4, 2, 8, 8), dtype=np.uint8), r"\(4, 2, 8, 8\)"),
        (np.zeros((0, 1, 8, 8), dtype=np.uint8), "no images"),
        (np.array([{}], dtype=object), "cannot be read"),
    ],
)
def test_refuses_what_is_no_array_of_images(tmp_path, array, message):
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(InputError, match=rf"a\.npy.*{message}"):
        read_images(tmp_path / "a.npy")


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_refuses_truncated_files(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    np.save(path, random_pixels(4, 1, 8, 8)) if suffix == ".npy" else np.savez(path, random_pixels(4, 1, 8, 8))
    for length in (0, 20, path.stat().st_size // 2):
        write(tmp_path / f"cut{suffix}", path.read_bytes()[:length])
        with pytest.raises(InputError, match=rf"cut\{suffix} cannot be read"):
            read_images(tmp_path / f"cut{suffix}")


def save(path: Path, compressed: bool, **members) -> Path:
    (np.savez_compressed if compressed else np.savez)(path, **members)
    return path


@pytest.fixture(params=["stored", "compressed", "compressed and large"])
def way(request, monkeypatch):
    """The three ways of reading a member; the value says whether the file is compressed."""
    if request.param == "compressed and large":
        monkeypatch.setattr(arrays, "LARGEST_IN_MEMORY", 1000)
    return request.param != "stored"


class TestMembers:
    def test_every_way_gives_the_same_images_in_any_order(self, tmp_path, way):
        array = random_pixels(40, 6, 7, 3)
        images = read_images(save(tmp_path / "a.npz", way, labels=np.arange(40), arr_0=array))
        expected = torch.from_numpy(array.transpose(0, 3, 1, 2).copy())
        assert torch.equal(torch.stack(list(images)), expected)
        for index in (39, 3, 17, 18, 0, -1):
            assert torch.equal(images[index], expected[index])
        copy = pickle.loads(pickle.dumps(images))
        assert torch.equal(copy[5], expected[5])
        for workers in (0, 2):  # each process reads for itself
            loader = torch.utils.data.DataLoader(images, batch_size=16, num_workers=workers)
            assert torch.equal(torch.cat(list(loader)), expected)

    def test_a_forked_process_opens_the_file_for_itself(self, tmp_path, way, monkeypatch):
        array = random_pixels(40, 8, 8)
        rows = read_images(save(tmp_path / "a.npz", way, images=array)).array
        np.testing.assert_array_equal(rows[3], array[3])
        before = getattr(rows, "_opened", None)
        monkeypatch.setattr(os, "getpid", lambda: -1)
        np.testing.assert_array_equal(rows[7], array[7])
        assert before is None or rows._opened[1] is not before[1]

    def test_they_are_the_three_ways(self, tmp_path, way):
        array = read_images(save(tmp_path / "a.npz", way, images=random_pixels(40, 8, 8))).array
        large = arrays.LARGEST_IN_MEMORY == 1000
        assert type(array) is (arrays.CompressedRows if large else np.ndarray if way else arrays.StoredRows)

    @pytest.mark.parametrize("dtype", ["<f4", ">f4", ">f8", "<f2"])
    def test_floats_of_any_byte_order(self, tmp_path, way, dtype):
        array = np.random.default_rng(0).normal(size=(40, 3, 4, 4)).astype(dtype)
        images = read_images(save(tmp_path / "a.npz", way, images=array))
        assert images[7].dtype == torch.float32
        np.testing.assert_array_equal(torch.stack(list(images)), array.astype(np.float32))

    def test_fortran_order(self, tmp_path, way):
        array = np.asfortranarray(random_pixels(40, 3, 5, 4))
        images = read_images(save(tmp_path / "a.npz", way, images=array))
        np.testing.assert_array_equal(torch.stack(list(images)), array)

    def test_a_named_key(self, tmp_path, way):
        train, test = random_pixels(30, 5, 5), random_pixels(20, 5, 5, seed=1)
        path = save(tmp_path / "mnist.npz", way, x_train=train, x_test=test, y_train=np.zeros(30), images=test)
        assert read_images(path, key="x_train").shape == (1, 5, 5)
        np.testing.assert_array_equal(torch.stack(list(read_images(path, key="x_train")))[:, 0], train)
        np.testing.assert_array_equal(torch.stack(list(read_images(path, key="x_test")))[:, 0], test)
        with pytest.raises(InputError, match=r"x_train.*expected 'missing'"):
            read_images(path, key="missing")
        np.save(tmp_path / "a.npy", train)
        with pytest.raises(InputError, match="single array"):
            read_images(tmp_path / "a.npy", key="x_train")
        (tmp_path / "folder").mkdir()
        with pytest.raises(InputError, match=r"not an \.npz"):
            read_images(tmp_path / "folder", key="x_train")

    def test_damage_is_found(self, tmp_path, way):
        # Rows of more than zipfile reads ahead, of symbols of less than a byte: the last row ends before the member.
        content = save(tmp_path / "a.npz", way, images=random_pixels(5, 150, 150) % 16).read_bytes()
        for position in (len(content) // 3, len(content) // 2, len(content) - 400):
            flipped = bytearray(content)
            flipped[position] ^= 4
            path = write(tmp_path / "b.npz", bytes(flipped))
            with pytest.raises(InputError, match=r"b\.npz cannot be read"):
                list(read_images(path))

    def test_a_shape_that_the_bytes_do_not_fill(self, tmp_path, way):
        for declared in ((10**6, 10**6, 10**6), (3, 8, 8), (5, 8, 8)):
            header = io.BytesIO()
            npy.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": declared})
            kind = zipfile.ZIP_DEFLATED if way else zipfile.ZIP_STORED
            with zipfile.ZipFile(tmp_path / "a.npz", "w", kind) as archive:
                archive.writestr("images.npy", header.getvalue() + bytes(4 * 64))
            with pytest.raises(InputError, match=r"a\.npz cannot be read.*declares"):
                read_images(tmp_path / "a.npz")

    def test_nothing_is_unpickled(self, tmp_path, way):
        path = save(tmp_path / "a.npz", way, images=np.array([{}] * 9, dtype=object).reshape(1, 3, 3))
        with pytest.raises(InputError, match="Python objects"):
            read_images(path)


def test_one_name_twice_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", random_pixels(4, 4, 4))
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.write(tmp_path / "a.npy", "images.npy")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.write(tmp_path / "a.npy", "images.npy")
    with pytest.raises(InputError, match="one name twice"):
        read_images(tmp_path / "a.npz")


@pytest.mark.parametrize("kind", ["stored", "compressed", "npy"])
def test_large_arrays_are_read_in_constant_memory(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(arrays, "LARGEST_IN_MEMORY", 2**20)
    peaks = []
    for count in (300, 3000):  # 3.7 and 37 MB
        array = np.repeat(random_pixels(count // 30, 64, 64, 3), 30, axis=0)
        path = tmp_path / f"{count}.{'npy' if kind == 'npy' else 'npz'}"
        np.save(path, array) if kind == "npy" else save(path, kind == "compressed", arr_0=array)
        del array
        tracemalloc.start()
        images = read_images(path)
        total = sum(int(images[index][0, 0, 0]) for index in range(len(images)))
        size = len(pickle.dumps(images))  # what a spawned worker is sent
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert total > 0
        assert size < 5000
    assert peaks[1] < 4 * 2**20
    assert peaks[1] < 1.5 * peaks[0]
