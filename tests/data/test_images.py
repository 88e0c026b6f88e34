"""Conversion between uint8 and the data range, and writing images."""

import os

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from diffusion_var.data.images import read_images, save_images, save_npz, to_float, to_uint8
from diffusion_var.errors import DiffusionVarWarning, InputError

LEVELS = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)


@pytest.mark.parametrize("data_range", [(-1.0, 1.0), (0.0, 1.0), (0.0, 255.0), (-3.7, 0.3), (1000.0, 1001.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uint8_survives_the_round_trip(data_range, dtype):
    floats = to_float(LEVELS, data_range)
    assert floats.dtype == torch.float32
    assert float(floats.min()) == pytest.approx(data_range[0])
    assert float(floats.max()) == pytest.approx(data_range[1])
    assert torch.equal(to_uint8(floats.to(dtype), data_range), LEVELS)


def test_rounds_to_nearest_and_clamps():
    step = 2 / 255
    values = torch.tensor([-7.0, -1.0, -1 + 0.49 * step, -1 + 0.51 * step, -1 + 100.4 * step, 1 - 0.4 * step, 1.0, 9.0])
    with pytest.warns(DiffusionVarWarning, match=r"from -7 to 9, outside the data range \[-1, 1\], and 0\.25 of them"):
        assert to_uint8(values.double()).tolist() == [0, 0, 0, 1, 100, 255, 255, 255]
    # what rounds to the end of the range is not clamped (a warning would be an error)
    assert to_uint8(torch.tensor([-1 - 0.49 * step, 1 + 0.49 * step])).tolist() == [0, 255]
    assert to_uint8(LEVELS, (-1, 1)) is LEVELS


def test_refuses_bad_numbers():
    for bad in (float("nan"), float("inf"), -float("inf")):
        with pytest.raises(InputError, match="NaN or Inf"):
            to_uint8(torch.tensor([0.0, bad]))
    with pytest.raises(InputError, match=r"torch\.int64"):
        to_uint8(torch.zeros(3, dtype=torch.int64))
    for data_range in ((1.0, 1.0), (1.0, -1.0), (0.0, float("nan"))):
        with pytest.raises(InputError, match="data_range"):
            to_uint8(torch.zeros(3), data_range)
    with pytest.raises(InputError, match="expected uint8"):
        to_float(torch.zeros(3))


@pytest.mark.parametrize("channels", [1, 3])
def test_png_and_npz_give_back_the_same_bytes(tmp_path, channels):
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (7, channels, 5, 6), dtype=np.uint8))
    save_images(images[:4], tmp_path / "new" / "folder")
    save_images(images[4:], tmp_path / "new" / "folder", start=4)
    save_npz(images, tmp_path / "images.npz")
    assert sorted(file.name for file in (tmp_path / "new" / "folder").iterdir()) == [f"{n:06d}.png" for n in range(7)]
    for path in (tmp_path / "new", tmp_path / "images.npz"):
        assert torch.equal(torch.stack(list(read_images(path))), images)
    with np.load(tmp_path / "images.npz") as content:
        assert content["images"].shape == images.shape


def test_pictures_are_on_the_disk_before_they_have_their_names(tmp_path, monkeypatch):
    done = []
    waits, renames = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (done.append("wait"), waits(handle)))
    monkeypatch.setattr(os, "replace", lambda old, new: (done.append("rename"), renames(old, new)))
    save_images(torch.zeros(5, 1, 4, 4, dtype=torch.uint8), tmp_path)
    assert done == ["wait"] * 5 + ["rename"] * 5 + ["wait"]  # the last of the folder
    assert sorted(file.name for file in tmp_path.iterdir()) == [f"{n:06d}.png" for n in range(5)]


def test_writing_refuses_what_it_cannot_write_faithfully(tmp_path):
    for bad in (torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.uint8), torch.zeros(2, 4, 8, 8).byte()):
        with pytest.raises(InputError, match="expected uint8"):
            save_images(bad, tmp_path / "folder")
        with pytest.raises(InputError, match="expected uint8"):
            save_npz(bad, tmp_path / "images.npz")
    with pytest.raises(InputError, match=r"\.npz"):
        save_npz(LEVELS, tmp_path / "images.bin")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="could not make the output folder"):
        save_images(LEVELS, tmp_path / "file")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_videos_are_animated_png_files(tmp_path):
    videos = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 4, 6, 8), dtype=np.uint8))
    save_images(videos, tmp_path / "frames")
    assert sorted(path.name for path in (tmp_path / "frames").iterdir()) == ["000000.png", "000001.png"]
    for number, video in enumerate(videos):
        with Image.open(tmp_path / "frames" / f"{number:06d}.png") as file:
            assert file.n_frames == 4
            frames = [np.array(frame.convert("RGB")) for frame in ImageSequence.Iterator(file)]
        np.testing.assert_array_equal(np.stack(frames), video.permute(1, 2, 3, 0))


def test_videos_of_an_array_are_read_as_they_were_written(tmp_path):
    videos = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (2, 1, 4, 6, 8), dtype=np.uint8))
    save_npz(videos, tmp_path / "videos.npz")
    found = read_images(tmp_path / "videos.npz", channels=3)
    assert found.shape == (3, 4, 6, 8)
    torch.testing.assert_close(torch.stack(list(found)), videos.expand(-1, 3, -1, -1, -1), rtol=0, atol=0)


def test_a_video_of_one_frame_is_a_picture(tmp_path):
    video = torch.full((1, 1, 1, 6, 8), 7, dtype=torch.uint8)
    save_images(video, tmp_path / "one")
    torch.testing.assert_close(read_images(tmp_path / "one")[0], video[0, :, 0], rtol=0, atol=0)
