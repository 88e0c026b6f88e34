"""Which files are images, and what is in them: every suffix, every orientation, every frame."""

import io
import itertools
import struct
import warnings
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from diffusion_var.data.containers import image_of
from diffusion_var.data.decoding import decoders, suffixes
from diffusion_var.data.images import read_images
from diffusion_var.data.names import open_images
from diffusion_var.errors import DiffusionVarWarning, InputError

COLOUR = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
EXIF_ORIENTATION = 0x0112


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture(params=["folder", "zip", "pattern"])
def make(request, tmp_path):
    """Write {relative name: bytes} as a folder, a zip or what a pattern matches; all must behave alike."""
    numbers = itertools.count()

    def source(members):
        place = tmp_path / f"images{next(numbers)}"
        if request.param == "zip":
            with zipfile.ZipFile(f"{place}.zip", "w") as archive:
                for name, content in members.items():
                    archive.writestr(name, content)
            return f"{place}.zip"
        for name, content in members.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(content)
        return f"{place}/**/*" if request.param == "pattern" else str(place)

    return source


KINDS = {
    ".png": ("PNG", {}),
    ".apng": ("PNG", {}),
    ".jpg": ("JPEG", {"quality": 100, "subsampling": 0}),
    ".jpeg": ("JPEG", {}),
    ".jpe": ("JPEG", {}),
    ".jfif": ("JPEG", {}),
    ".bmp": ("BMP", {}),
    ".dib": ("DIB", {}),
    ".webp": ("WEBP", {"lossless": True}),
    ".tif": ("TIFF", {}),
    ".tiff": ("TIFF", {"compression": "tiff_lzw"}),
    ".gif": ("GIF", {}),
    ".ppm": ("PPM", {}),
    ".pgm": ("PPM", {}),
    ".pbm": ("PPM", {}),
    ".pnm": ("PPM", {}),
    ".avif": ("AVIF", {}),
    ".jp2": ("JPEG2000", {}),
    ".j2k": ("JPEG2000", {"no_jp2": True}),
}
MODES = {".pgm": "L", ".pbm": "1"}


@pytest.mark.parametrize("suffix", KINDS)
def test_every_suffix_is_read_in_either_case(suffix, make):
    kind, options = KINDS[suffix]
    if kind not in decoders():
        pytest.skip(f"this Pillow was built without {kind}")
    content = encoded(Image.fromarray(COLOUR).convert(MODES.get(suffix, "RGB")), kind, **options)
    right = np.array(Image.open(io.BytesIO(content)).convert("L" if suffix in MODES else "RGB"))
    images = read_images(make({f"a/0{suffix}": content, f"1{suffix.upper()}": content}))
    assert len(images) == 2
    assert images.left_out == 0
    for image in images:
        np.testing.assert_array_equal(image, right[None] if right.ndim == 2 else right.transpose(2, 0, 1))


def test_every_suffix_of_the_table_is_one_that_is_read():
    assert {suffix for suffix, (kind, _) in KINDS.items() if kind in decoders()} <= suffixes()
    assert {"PNG", "JPEG", "BMP", "TIFF", "GIF", "PPM"} <= {*decoders()}


def test_what_is_left_out_is_counted_by_suffix(make):
    png = encoded(Image.fromarray(COLOUR), "PNG")
    quiet = ["dataset.json", "notes.txt", "README", "labels.csv", ".hidden.heic", "__MACOSX/a.heic"]
    others = ["a.heic", "b.HEIC", "c/d.psd", "features.npz", "bare"]
    names = {"0.png": png, **dict.fromkeys(quiet, b"x")}
    assert len(read_images(make(names))) == 1  # a warning would be an error
    found = r"5 files of .* are left out: \.heic \(2\), .*\.npz \(1\).*; 1 images are read"
    with pytest.warns(DiffusionVarWarning, match=found) as warned:
        images = read_images(make({**names, **dict.fromkeys(others, b"x")}))
    assert "without a suffix (1)" in str(warned[0].message)
    assert (len(images), images.left_out) == (1, 5)
    with pytest.raises(InputError, match=r"holds no images but \.heic \(2\)"):
        read_images(make({"a.heic": b"x", "b.heic": b"x"}))


PAGES = [Image.fromarray(np.roll(COLOUR, 3 * n, axis=0)) for n in range(4)]


@pytest.mark.parametrize(("suffix", "kind"), [("tif", "TIFF"), ("gif", "GIF"), ("webp", "WEBP"), ("png", "PNG")])
def test_frames_after_the_first_are_counted(suffix, kind, make):
    options = {"lossless": True} if kind == "WEBP" else {}
    animated = encoded(PAGES[0], kind, save_all=True, append_images=PAGES[1:], **options)
    single = encoded(PAGES[0], kind, **options)
    assert len(read_images(make({f"0.{suffix}": single}))) == 1
    found = rf"1 files of .* hold several pages or frames \(1\.{suffix}: 4\); the first of each is read, and 3 are left"
    with pytest.warns(DiffusionVarWarning, match=found):
        images = read_images(make({f"0.{suffix}": single, f"1.{suffix}": animated}))
    assert len(images) == 2
    if kind != "GIF":  # its palette is made for the whole animation
        assert torch.equal(images[0], images[1])


def test_the_preview_of_a_camera_is_no_second_image(make):
    content = encoded(PAGES[0], "MPO", save_all=True, append_images=PAGES[1:2])
    assert Image.open(io.BytesIO(content)).n_frames == 2
    assert len(read_images(make({"0.jpg": content}))) == 1  # a warning would be an error


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_images_stand_upright(kind, orientation, make):
    if kind not in decoders():
        pytest.skip(f"this Pillow was built without {kind}")
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    suffix = {"JPEG": "jpg", "TIFF": "tif"}.get(kind, kind.lower())
    content = encoded(Image.fromarray(COLOUR), kind, exif=exif)
    with Image.open(io.BytesIO(content)) as image:
        right = np.array(ImageOps.exif_transpose(image).convert("RGB")).transpose(2, 0, 1)
    assert right.shape == ((3, 16, 24) if orientation < 5 else (3, 24, 16))
    images = read_images(make({f"0.{suffix}": content}))
    assert images.shape == right.shape
    np.testing.assert_array_equal(images[0], right)
    with Image.open(io.BytesIO(content)) as image:
        np.testing.assert_array_equal(image_of(image), right)


def test_an_orientation_after_the_pixels_of_a_png(make):
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 3
    content = encoded(Image.fromarray(COLOUR), "PNG", exif=exif)
    at = content.index(b"eXIf") - 4
    length = 12 + struct.unpack(">I", content[at : at + 4])[0]
    moved = content[:at] + content[at + length : -12] + content[at : at + length] + content[-12:]
    np.testing.assert_array_equal(read_images(make({"0.png": moved}))[0], COLOUR[::-1, ::-1].transpose(2, 0, 1))


def test_metadata_that_cannot_be_read_changes_nothing(make):
    content = encoded(Image.fromarray(COLOUR), "PNG", exif=b"Exif\0\0" + b"nonsense" * 4)
    np.testing.assert_array_equal(read_images(make({"0.png": content}))[0], COLOUR.transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        ("ppm", b"P6\n2 2\n65535\n" + bytes(24)),
        ("pgm", b"P5\n2 2\n65535\n" + bytes(8)),
        ("pfm.tif", encoded(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF")),
        ("jp2", None),
    ],
)
def test_deep_samples_are_refused_and_not_cut(suffix, content, make):
    if content is None:
        if "JPEG2000" not in decoders():
            pytest.skip("this Pillow was built without JPEG2000")
        content = encoded(Image.fromarray(COLOUR), "JPEG2000")
        at = content.index(b"\xff\x4f\xff\x51") + 42
        content = content[:at] + b"\x0b" + content[at + 1 :]  # 12 bits in its header
    with pytest.raises(InputError, match=r"does not hold 8-bit samples"):
        read_images(make({f"0.{suffix}": content}))


def test_only_listed_decoders_are_reached(make, monkeypatch):
    def started(*_, **__):
        raise AssertionError("Ghostscript was started")

    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", started)
    eps = encoded(Image.fromarray(COLOUR), "EPS")
    assert Image.open(io.BytesIO(eps)).format == "EPS"
    pcx = encoded(Image.fromarray(COLOUR), "PCX")
    for other in (eps, pcx):
        with pytest.raises(InputError, match=r"0\.png.* cannot be read as an image \(unknown format\)"):
            read_images(make({"0.png": other}))


def test_patterns_choose_among_files(tmp_path):
    for name in ("a/0.png", "a/1.png", "b/0.png", "b/1.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(encoded(Image.fromarray(COLOUR), "PNG"))
    counts = {"a/*.png": 2, "*/0.png": 2, "**/*": 4, "?/*.png": 3, "[b]/*": 2, "**/*.png[:2]": 2}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert {pattern: len(open_images(f"{tmp_path}/{pattern}")) for pattern in counts} == counts
    assert read_images(tmp_path / "*" / "1.*").names == ["a/1.png", "b/1.jpg"]
    with pytest.raises(InputError, match=r"c\*/\*\.png holds no images"):
        read_images(tmp_path / "c*" / "*.png")
    (tmp_path / "[a]").mkdir()  # a folder that is there is itself, and no pattern
    with pytest.raises(InputError, match=r"\[a\] holds no images"):
        read_images(tmp_path / "[a]")
    with pytest.raises(InputError, match=r"0\.png is not a folder.*quote a pattern, such as 'imgs/\*\.png'"):
        read_images(tmp_path / "a" / "0.png")
