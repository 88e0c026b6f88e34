"""Zip members that lie about their size, and what is no regular file: refused, without waiting and without memory."""

import io
import json
import multiprocessing
import os
import socket
import struct
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

import diffusion_var as dv
from diffusion_var.data.images import read_images
from diffusion_var.data.labels import open_labels
from diffusion_var.data.zips import read_member
from diffusion_var.errors import InputError

METHODS = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]


def png(size=8):
    buffer = io.BytesIO()
    Image.fromarray(np.arange(size * size, dtype=np.uint8).reshape(size, size)).save(buffer, "PNG")
    return buffer.getvalue()


def write_liar(path, name, content, declared, method=zipfile.ZIP_DEFLATED):
    """A zip whose one member declares another size, and the checksum of so much of it, wherever a zip says it."""
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr(name, content)
        member = archive.getinfo(name)
    raw = bytearray(path.read_bytes())
    right = struct.pack("<III", member.CRC, member.compress_size, member.file_size)
    wrong = struct.pack("<III", zlib.crc32(content[:declared]), member.compress_size, declared)
    assert raw.count(right) == 2  # the local header and the directory
    path.write_bytes(raw.replace(right, wrong))
    return path


class TestSizes:
    @pytest.mark.parametrize("method", METHODS)
    def test_honest_members_are_read(self, tmp_path, method):
        path, content = tmp_path / "z.zip", np.random.default_rng(0).bytes(3 * 10**6)
        with zipfile.ZipFile(path, "w", method) as archive:
            for name, written in {"a": content, "empty": b"", "b": b"x"}.items():
                archive.writestr(name, written)
        with zipfile.ZipFile(path) as archive:
            for name, written in {"a": content, "empty": b"", "b": b"x"}.items():
                assert read_member(archive, archive.getinfo(name)) == written

    @pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    def test_one_that_declares_too_little_is_refused_in_little_memory(self, tmp_path, method):
        image = png()
        bomb = write_liar(tmp_path / "z.zip", "0.png", image + bytes(50 * 10**6), len(image), method)
        assert bomb.stat().st_size < 10**6
        tracemalloc.start()
        with pytest.raises(InputError, match=r"0\.png in .*z\.zip cannot be read as an image"):
            read_images(bomb)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert most < 10**7

    @pytest.mark.parametrize("declared", [-10, 10])
    def test_a_few_bytes_more_or_less(self, tmp_path, declared):
        image = png()
        with pytest.raises(InputError, match="cannot be read"):
            read_images(write_liar(tmp_path / "z.zip", "0.png", image, len(image) + declared))

    def test_arrays_that_are_longer_than_they_say(self, tmp_path):
        buffer = io.BytesIO()
        np.save(buffer, np.zeros((3, 1, 8, 8), np.uint8))
        whole = buffer.getvalue()
        path = write_liar(tmp_path / "a.npz", "images.npy", whole + bytes(10**7), len(whole))
        with pytest.raises(InputError, match=r"a\.npz cannot be read as a numpy array"):
            read_images(path)

    @pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    def test_packings_that_cannot_be_undone_piece_by_piece(self, tmp_path, method):
        for path, name in ((tmp_path / "a.npz", "images.npy"), (tmp_path / "z.zip", "0.png")):
            with zipfile.ZipFile(path, "w", method) as archive:
                archive.writestr(name, png())
            with pytest.raises(
                InputError, match=rf"{path.name} cannot be read .*packed by method {method}, where only"
            ):
                read_images(path)

    def test_labels_that_are_longer_than_they_say(self, tmp_path):
        record = json.dumps({"labels": [["0.png", 1]]}).encode()
        path = write_liar(tmp_path / "z.zip", "dataset.json", record + b" " * 10**7, len(record))
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("0.png", png())
        with pytest.raises(InputError, match=r"dataset\.json in .* is not as expected"):
            open_labels(str(path))

    def test_two_images_of_one_name(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
            archive.writestr("0.png", png())
            with pytest.warns(UserWarning, match="Duplicate"):
                archive.writestr("0.png", png())
        with pytest.raises(InputError, match=r"two members named '0\.png'"):
            read_images(tmp_path / "z.zip")


@pytest.mark.parametrize("shape", ["(-2, -3, 8, 8)", "(10000000000, 3, 8, 8)", "(6, 8)"])
def test_headers_of_arrays_that_lie(tmp_path, shape):
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(6 * 64)
    (tmp_path / "a.npy").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", content)
    for name in ("a.npy", "a.npz"):
        with pytest.raises(InputError, match=rf"{name}.*(declares \(|cannot be read)"):
            read_images(tmp_path / name)


def _ended(function, places):
    """In another process, so that one that waits for ever can be ended."""
    for place in places:
        with pytest.raises(InputError):
            function(place)


def _score(place):
    dv.metrics.fid(place, np.zeros((4, 1, 8, 8), np.uint8), "digits")


def _labels(place):
    open_labels("images.npz:x", str(place))


DOORS = {
    "read_images": (read_images, ["folder", "f.zip", "f.npz", "f.npy", "linked", "folder/*.png"]),
    "fid": (_score, ["folder", "f.zip", "f.npz", "f.npy"]),
    "FeatureStatistics.load": (dv.metrics.FeatureStatistics.load, ["f.npz"]),
    "load_features": (dv.metrics.load_features, ["f.safetensors"]),
    "open_labels": (_labels, ["f.npz", "f.npy"]),
}


@pytest.mark.parametrize("kind", ["pipe", "socket"])
@pytest.mark.parametrize("door", DOORS)
def test_nothing_waits_for_what_is_no_regular_file(door, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkdir("folder")
    os.mkdir("linked")
    np.savez("images.npz", x=np.zeros((4, 1, 8, 8), np.uint8))
    listeners = []
    for name in ("folder/x.png", "f.zip", "f.npz", "f.npy", "f.safetensors"):
        if kind == "pipe":
            os.mkfifo(name)
        else:
            listeners.append(socket.socket(socket.AF_UNIX))
            listeners[-1].bind(name)
    os.symlink("../folder/x.png", "linked/0.png")
    function, places = DOORS[door]
    process = multiprocessing.get_context("fork").Process(target=_ended, args=(function, places))
    process.start()
    process.join(20)
    waiting = process.is_alive()
    process.kill()
    process.join()
    for listener in listeners:
        listener.close()
    assert not waiting, "it waits for ever"
    assert process.exitcode == 0
