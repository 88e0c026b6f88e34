"""Reading images from every kind of source, and what is said about the bad ones."""

import io
import os
import pickle
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_var.data import sources
from diffusion_var.data.images import read_images
from diffusion_var.errors import DiffusionVarWarning, InputError


def random_pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(pixels, kind="PNG", **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name: bytes, body: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def write_zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@pytest.fixture(params=["folder", "zip"])
def make(request, tmp_path):
    """Write {relative name: bytes} as a folder or a zip; both must behave alike."""

    def source(members: dict[str, bytes]) -> Path:
        if request.param == "zip":
            return write_zip(tmp_path / "images.zip", members)
        (tmp_path / "images").mkdir()
        for name, content in members.items():
            write(tmp_path / "images" / name, content)
        return tmp_path / "images"

    return source


class TestFiles:
    def test_gives_the_pixels_in_path_order_at_any_depth(self, make):
        pixels = random_pixels(5, 6, 7, 3)
        names = ["b/2.PNG", "a/deep/er/0.png", "c.bmp", "a/1.tif", "b/10.webp"]
        kinds = {".PNG": "PNG", ".png": "PNG", ".bmp": "BMP", ".tif": "TIFF", ".webp": "WEBP"}
        members = {
            name: encoded(image, kinds[Path(name).suffix], **({"lossless": True} if "webp" in name else {}))
            for name, image in zip(names, pixels, strict=True)
        }
        images = read_images(make({**members, "notes.txt": b"not an image"}))
        assert len(images) == 5
        assert images.shape == (3, 6, 7)
        for index, position in enumerate([3, 1, 4, 0, 2]):  # a/1, a/deep, b/10, b/2, c
            assert images[index].dtype == torch.uint8
            np.testing.assert_array_equal(images[index], pixels[position].transpose(2, 0, 1))
        np.testing.assert_array_equal(images[-1], images[4])
        with pytest.raises(IndexError):
            images[5]
        assert len(list(images)) == 5

    def test_skips_hidden_files(self, make):
        good = encoded(random_pixels(4, 4))
        images = read_images(make({"a.png": good, "._a.png": b"junk", "__MACOSX/b.png": b"junk", ".git/c.png": b""}))
        assert len(images) == 1

    def test_grey_stays_grey_and_channels_convert_as_pil_does(self, make):
        grey, colour = random_pixels(9, 8), random_pixels(9, 8, 3, seed=1)
        path = make({"g.png": encoded(grey)})
        assert read_images(path).shape == (1, 9, 8)
        np.testing.assert_array_equal(read_images(path)[0][0], grey)
        np.testing.assert_array_equal(read_images(path, channels=3)[0], np.stack([grey] * 3))
        mixed = write_zip(path.parent / "mixed.zip", {"c.png": encoded(colour), "g.png": encoded(grey)})
        as_grey = read_images(mixed, channels=1)
        np.testing.assert_array_equal(as_grey[0][0], np.array(Image.fromarray(colour).convert("L")))
        with pytest.raises(InputError, match=r"g\.png.*\(1, 9, 8\).*c\.png.*\(3, 9, 8\).*channels"):
            read_images(mixed)

    def test_palette_and_alpha_become_rgb(self, make):
        colour = random_pixels(4, 4, 3)
        alpha = np.concatenate([colour, random_pixels(4, 4, 1, seed=2)], axis=2)
        palette = io.BytesIO()
        Image.fromarray(colour).quantize(16).save(palette, "PNG")
        images = read_images(make({"a.png": encoded(alpha), "p.png": palette.getvalue()}))
        np.testing.assert_array_equal(images[0], colour.transpose(2, 0, 1))
        assert images[1].shape == (3, 4, 4)

    def test_names_the_first_odd_file_when_opened(self, make):
        path = make({f"{n}.png": encoded(random_pixels(4, 4 + (n in (3, 4)))) for n in range(6)})
        with pytest.raises(InputError, match=r"3\.png.*\(1, 4, 5\).*0\.png.*\(1, 4, 4\)"):
            read_images(path)

    def test_refuses_sources_without_images(self, make):
        with pytest.raises(InputError, match="holds no images"):
            read_images(make({"notes.txt": b"nothing"}))

    @pytest.mark.parametrize("content", [b"", b"not an image at all", b"\x89PNG\r\n\x1a\n broken"])
    def test_names_a_file_that_is_no_image(self, make, content):
        with pytest.raises(InputError, match=r"bad\.png.* cannot be read as an image"):
            read_images(make({"0.png": encoded(random_pixels(4, 4)), "bad.png": content}))

    @pytest.mark.parametrize(("kind", "suffix"), [("PNG", "png"), ("JPEG", "jpg"), ("BMP", "bmp")])
    def test_names_a_truncated_image(self, make, kind, suffix):
        content = encoded(random_pixels(64, 64, 3), kind)
        images = read_images(make({f"a.{suffix}": content, f"cut.{suffix}": content[: len(content) // 2]}))
        assert images[0].shape == (3, 64, 64)
        with pytest.raises(InputError, match=rf"cut\.{suffix}.* cannot be read as an image"):
            images[1]

    def test_corrupt_files_can_be_skipped(self, make):
        pixels = random_pixels(6, 32, 32, 3)
        members = {f"{n}.png": encoded(image) for n, image in enumerate(pixels)}
        members["0.png"] = b""
        members["2.png"] = members["2.png"][: len(members["2.png"]) // 2]  # its header is whole
        members["4.png"] = b"not an image at all"
        path = make(members)
        with pytest.raises(InputError, match=r"0\.png.*skip_corrupt"):
            read_images(path)
        with pytest.warns(DiffusionVarWarning, match=r"3 corrupt .*\(0\.png, 2\.png, 4\.png\); 3 are left"):
            images = read_images(path, skip_corrupt=True)
        assert images.skipped == ("0.png", "2.png", "4.png")
        assert len(images) == 3
        np.testing.assert_array_equal(torch.stack(list(images)), pixels[[1, 3, 5]].transpose(0, 3, 1, 2))
        assert images.name(1).startswith("3.png") or images.name(1).endswith("3.png")

    def test_skipping_says_nothing_where_nothing_is_corrupt(self, make):
        path = make({f"{n}.png": encoded(random_pixels(4, 4)) for n in range(3)})
        images = read_images(path, skip_corrupt=True)  # warnings are errors here
        assert (len(images), images.skipped) == (3, ())

    def test_skipping_does_not_pass_over_what_is_whole_but_wrong(self, make):
        good = encoded(random_pixels(4, 4))
        deep = encoded(np.full((4, 4), 40000, dtype=np.uint16))
        path = make({"a.png": good, "b.png": good[:40], "odd.png": encoded(random_pixels(4, 5))})
        with pytest.warns(DiffusionVarWarning), pytest.raises(InputError, match=r"odd\.png.*\(1, 4, 5\)"):
            read_images(path, skip_corrupt=True)
        deeper = write_zip(path.parent / "deep.zip", {"a.png": good, "deep.png": deep})
        with pytest.raises(InputError, match=r"deep\.png.*8 bits"):
            read_images(deeper, skip_corrupt=True)
        none = write_zip(path.parent / "none.zip", {"a.png": b"x", "b.png": good[:40]})
        with pytest.raises(InputError, match=r"none of the 2 images in .*none\.zip"):
            read_images(none, skip_corrupt=True)

    def test_refuses_a_header_that_declares_absurd_sizes(self, make, recwarn):
        def png(width, height):
            header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
            return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")

        path = make({"bomb.png": png(60000, 60000)})
        for skip in (False, True):
            with pytest.raises(InputError, match=r"bomb\.png.* declares .*pixels; expected at most"):
                read_images(path, skip_corrupt=skip)
        large = write_zip(path.parent / "large.zip", {"large.png": png(9000, 9000)})
        with pytest.raises(InputError, match=r"large\.png.* declares 9000x9000 pixels"):
            read_images(large)

    @pytest.mark.parametrize("dtype", [np.float32, np.int32])
    def test_refuses_tiffs_of_other_numbers(self, make, dtype):
        with pytest.raises(InputError, match=r"deep\.tif.*8 bits"):
            read_images(make({"deep.tif": encoded(np.full((4, 4), 7, dtype=dtype), "TIFF")}), channels=1)

    def test_refuses_16_bit_files(self, make):
        # PIL would clip (I;16) or truncate (RGB;16B) these without a word.
        grey = encoded(np.full((4, 4), 40000, dtype=np.uint16))
        with pytest.raises(InputError, match=r"deep\.png.*8 bits"):
            read_images(make({"deep.png": grey}), channels=1)

    def test_refuses_16_bit_colour(self, make):
        header = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
        rows = zlib.compress((b"\0" + b"\x12\x34" * 6) * 2)
        png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
        assert Image.open(io.BytesIO(png)).mode == "RGB"
        with pytest.raises(InputError, match=r"deep\.png.*8 bits"):
            read_images(make({"deep.png": png}))

    def test_can_be_shared_with_workers(self, make):
        pixels = random_pixels(3, 4, 4)
        images = read_images(make({f"{n}.png": encoded(image) for n, image in enumerate(pixels)}))
        _ = images[0]
        copy = pickle.loads(pickle.dumps(images))
        np.testing.assert_array_equal(torch.stack(list(copy))[:, 0], pixels)
        loader = torch.utils.data.DataLoader(images, batch_size=2, num_workers=1)
        np.testing.assert_array_equal(torch.cat(list(loader))[:, 0], pixels)


class TestFolder:
    def test_follows_links_once(self, tmp_path):
        write(tmp_path / "elsewhere" / "a.png", encoded(random_pixels(4, 4)))
        (tmp_path / "images").mkdir()
        os.symlink(tmp_path / "elsewhere", tmp_path / "images" / "link")
        os.symlink(tmp_path / "images", tmp_path / "images" / "loop")
        assert len(read_images(tmp_path / "images")) == 1


class TestZip:
    @pytest.mark.parametrize("name", ["../evil.png", "a/../../evil.png", "/evil.png", "..\\evil.png", "C:\\evil.png"])
    def test_refuses_members_that_point_outside(self, tmp_path, name):
        path = write_zip(tmp_path / "z.zip", {"good.png": encoded(random_pixels(4, 4)), name: b"x"})
        with pytest.raises(InputError, match=r"z\.zip.*evil\.png.*outside"):
            read_images(path)

    def test_refuses_absurd_declared_sizes(self, tmp_path, monkeypatch):
        path = write_zip(tmp_path / "bomb.zip", {"a.png": encoded(random_pixels(4, 4)), "bomb.png": bytes(10**6)})
        monkeypatch.setattr(sources, "LARGEST_MEMBER", 10**6 - 1)
        with pytest.raises(InputError, match=r"1000000 bytes for 'bomb\.png'"):
            read_images(path)

    def test_refuses_absurd_numbers_of_members(self, tmp_path, monkeypatch):
        path = write_zip(tmp_path / "many.zip", {f"{n}.png": encoded(random_pixels(4, 4)) for n in range(5)})
        monkeypatch.setattr(sources, "MOST_MEMBERS", 4)
        with pytest.raises(InputError, match=r"many\.zip declares 5 members"):
            read_images(path)

    def test_refuses_members_that_overlap(self, tmp_path):
        # The trick of small zip bombs: many entries of the directory point at the same packed bytes.
        path = write_zip(tmp_path / "z.zip", {"0.png": encoded(random_pixels(64, 64))})
        content = path.read_bytes()
        start, end = content.index(b"PK\x01\x02"), content.index(b"PK\x05\x06")
        entry = content[start:end]
        tail = content[end : end + 8] + struct.pack("<HHIIH", 9, 9, 9 * len(entry), start, 0)
        entries = b"".join(entry.replace(b"0.png", b"%d.png" % n) for n in range(9))
        with pytest.raises(InputError, match=r"z\.zip declares 9 members of \d+ packed bytes"):
            read_images(write(path, content[:start] + entries + tail))

    def test_reads_the_zips_of_edm(self, tmp_path):
        pixels = random_pixels(4, 8, 8, 3)
        members = {f"0000{n // 2}/img0000000{n}.png": encoded(image) for n, image in enumerate(pixels)}
        path = write_zip(tmp_path / "edm.zip", {**members, "dataset.json": b'{"labels": null}'})
        np.testing.assert_array_equal(torch.stack(list(read_images(path))), pixels.transpose(0, 3, 1, 2))

    def test_refuses_what_is_no_zip(self, tmp_path):
        with pytest.raises(InputError, match=r"z\.zip cannot be read as a zip"):
            read_images(write(tmp_path / "z.zip", b"PK nonsense"))

    def test_names_a_member_whose_bytes_were_damaged(self, tmp_path):
        png = encoded(random_pixels(32, 32))
        with zipfile.ZipFile(tmp_path / "z.zip", "w", zipfile.ZIP_STORED) as archive:
            archive.writestr("a.png", png)
        content = bytearray((tmp_path / "z.zip").read_bytes())
        content[content.index(b"IDAT") + 20] ^= 1
        with pytest.raises(InputError, match=r"a\.png in .*z\.zip cannot be read"):
            read_images(write(tmp_path / "z.zip", bytes(content)))


def test_refuses_missing_and_unknown_sources(tmp_path):
    with pytest.raises(InputError, match=r"no file or folder .*nowhere"):
        read_images(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"a\.txt is not a folder"):
        read_images(write(tmp_path / "a.txt", b"x"))
    with pytest.raises(InputError, match="channels is 2"):
        read_images(tmp_path, channels=2)
