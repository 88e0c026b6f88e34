"""Operators by name: deepinv's, with fixed seeds, functions of one's own, and what is refused."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import diffusion_var as dv
from diffusion_var.randomness import generator, normal
from diffusion_var.restoration import deepinv_physics
from diffusion_var.restoration.operators import open_operator, parse_operator

physics = pytest.importorskip("deepinv.physics")
SHAPE = (3, 16, 12)
#: Names, and the shape of a measurement.
NAMES = {
    "inpainting": SHAPE,
    "inpainting:mask=0.25": SHAPE,
    "box:size=5": SHAPE,
    "box": SHAPE,
    "blur:sigma=1.5": SHAPE,
    "blur:sigma=(1.0, 2.0),angle=30": SHAPE,
    "super-resolution:factor=2": (3, 8, 6),
    "super-resolution:factor=4,filter=bilinear": (3, 4, 3),
    "compressed-sensing:m=0.25": (144,),
    "compressed-sensing:m=7": (7,),
    "Demosaicing:pattern=bayer": SHAPE,
    "Decolorize": (1, 16, 12),
    "Inpainting:mask=0.5,pixelwise=False": SHAPE,
    "Blur:filter=[[[[0.1, 0.1, 0.1], [0.1, 0.2, 0.1], [0.1, 0.1, 0.1]]]],padding=circular": SHAPE,
}


def images(count: int = 3, shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    return normal(generator(0, "images of a test"), count, *shape)


@pytest.mark.parametrize("name", NAMES)
def test_an_operator_is_linear_has_its_adjoint_and_is_the_same_each_time(name: str) -> None:
    before = torch.random.get_rng_state()
    operator, again = open_operator(name, SHAPE), open_operator(name, SHAPE)
    x = images()
    y = operator.A(x)
    assert tuple(y.shape[1:]) == NAMES[name]
    assert torch.equal(y, again.A(x))
    assert torch.equal(torch.random.get_rng_state(), before)
    measurement = operator.measurement(y, 0.1)
    assert measurement.rows == 3
    assert float(measurement.noise.variance) == pytest.approx(0.01)  # type: ignore[arg-type]
    measurement.seen(SHAPE, torch.float32)  # which refuses what is not linear, and an adjoint that is not its own


def test_a_measurement_through_a_decoder_keeps_it() -> None:
    operator, y = open_operator("inpainting", SHAPE), images()
    assert operator.measurement(y, 0.1).decoder is None
    assert operator.measurement(y, 0.1, through=torch.tanh).decoder is torch.tanh


@pytest.mark.parametrize("name", ["inpainting", "compressed-sensing:m=0.5", "Inpainting:mask=0.5"])
def test_another_seed_is_another_operator(name: str) -> None:
    x = images()
    assert not torch.equal(open_operator(name, SHAPE, seed=0).A(x), open_operator(name, SHAPE, seed=1).A(x))


def test_masks_leave_what_they_say() -> None:
    x = torch.ones(1, *SHAPE)
    for share in (0.25, 0.5, 1.0):
        y = open_operator(f"inpainting:mask={share}", SHAPE).A(x)
        assert float(y.mean()) == pytest.approx(share, abs=1e-7)
        assert torch.equal(y[:, 0], y[:, 2])  # all channels of a pixel together
    y = open_operator("box:size=6", SHAPE).A(x)
    assert not y[..., 5:11, 3:9].any()
    assert int((y == 0).sum()) == 3 * 36


def test_a_blur_is_a_gaussian_that_wraps_around() -> None:
    x = torch.zeros(1, 1, 32, 32)
    x[0, 0, 0, 0] = 1.0
    y = open_operator("blur:sigma=1.5", (1, 32, 32)).A(x)[0, 0].double()
    place = torch.arange(32.0, dtype=torch.float64)
    place = torch.minimum(place, 32 - place)
    bell = torch.exp(-0.5 * (place / 1.5) ** 2)
    expected = bell[:, None] * bell[None] / bell.sum() ** 2
    assert float((y - expected).abs().max()) < 3e-3  # deepinv cuts it off at three σ


OWN = """
import torch

def crop(shape):
    return lambda x: x[..., :4, :4]

def pair(shape):
    def back(y):
        x = torch.zeros((len(y), *shape), dtype=y.dtype)
        x[..., :4, :4] = y
        return x
    return (lambda x: x[..., :4, :4]), back

def poisson(shape):
    from deepinv.physics import Denoising, PoissonNoise
    return Denoising(PoissonNoise(0.1))

def gaussian(shape):
    from deepinv.physics import Denoising, GaussianNoise
    return Denoising(GaussianNoise(0.25))

def several(shape):
    from deepinv.physics import Denoising, GaussianNoise
    return Denoising(GaussianNoise(torch.tensor([0.1, 0.2])))

def haze(shape):
    from deepinv.physics import PhaseRetrieval, Denoising
    return PhaseRetrieval(Denoising())

def number(shape):
    return 3

def fails(shape):
    raise KeyError("of one's own")

def of_others(shape):
    return lambda x: x @ torch.zeros(5, 5)

def complex(shape):
    return torch.fft.fft

constant = 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module where the program runs."""
    (tmp_path / "own_operators_of_a_test.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    yield "own_operators_of_a_test"  # type: ignore[misc]
    sys.modules.pop("own_operators_of_a_test", None)


def test_a_function_of_ones_own(own: str) -> None:
    before = list(sys.path)
    x = images()
    for name in ("crop", "pair"):
        operator = open_operator(f"{own}:{name}", SHAPE)
        y = operator.A(x)
        assert torch.equal(y, x[..., :4, :4])
        assert (operator.adjoint is None) == (name == "crop")
        back = operator.measurement(y, 0.1).map_of(SHAPE).adjoint(y)
        assert torch.equal(back[..., :4, :4], y)
        assert int((back != 0).sum()) <= y.numel()
    assert sys.path == before
    assert open_operator(f"{own}:gaussian", SHAPE).noise == 0.25
    assert float(open_operator(f"{own}:gaussian", SHAPE).measurement(x).noise.variance) == 0.0625  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("poisson", "has deepinv's PoissonNoise, but Gaussian noise is expected"),
        ("several", "the operator .*:several has a standard deviation of noise that is one for each image"),
        ("haze", "is deepinv's PhaseRetrieval, which is not linear"),
        ("number", "gives 3, but a callable A"),
        ("fails", r"cannot be made for images .*KeyError"),
        ("of_others", "does not take images"),
        ("complex", "of real numbers is expected"),
        ("constant", "must be a function of the image shape"),
        ("absent", "cannot be imported"),
    ],
)
def test_what_a_function_may_not_give(own: str, name: str, said: str) -> None:
    with pytest.raises(dv.InputError, match=said) as error:
        open_operator(f"{own}:{name}", SHAPE)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nothing", r"'nothing' is not known; use inpainting, box, .*BlurFFT.*package.module:function"),
        ("Haze", "is deepinv's Haze, which is not linear"),
        ("no.such.module:function", "cannot be imported"),
        ("inpainting:0.5", "ARGUMENT=VALUE"),
        ("inpainting:mask=", "ARGUMENT=VALUE"),
        ("inpainting:mask=__import__('os')", "with literals as values"),
        ("inpainting:**x", "ARGUMENT=VALUE"),
        ("inpainting:" + "(" * 5000, "ARGUMENT=VALUE"),
        ("inpainting:msk=0.5", "the operator inpainting has no msk; it takes mask"),
        ("inpainting:mask=2", r"mask=2 is outside \[0, 1\]"),
        ("box:size=99", "from 1 to 12"),
        ("blur:sigma=-1", "sigma=-1 must be a positive number"),
        ("blur:sigma=wide", "sigma='wide' must be"),
        ("super-resolution:factor=5", "does not divide the images' sides"),
        ("super-resolution:factor=1", "factor=1 must be a whole number of at least 2"),
        ("compressed-sensing:m=1.5", r"m=1.5 is outside \[0, 1\]"),
        ("compressed-sensing:m=100000", "from 1 to 576"),
        ("Denoising:noise_model=PoissonNoise", "takes no noise_model here: the noise is Gaussian"),
        ("Blur:filtr=1", "arguments that are not its own"),
        ("MRI", "does not take images"),
        (3, "operator must be the name of an operator"),
    ],
)
def test_what_is_refused(name: Any, said: str) -> None:
    with pytest.raises(dv.InputError, match=said) as error:
        open_operator(name, SHAPE)
    assert "\n" not in str(error.value)


def test_names_are_looked_at_before_images_are_known() -> None:
    with pytest.raises(dv.InputError, match="is not known"):
        parse_operator("nothing")
    for shape in ((7,), (1, 9)):
        with pytest.raises(dv.InputError, match=r"is for images \(C, H, W\)"):
            open_operator("inpainting", shape)
        assert open_operator("Inpainting:mask=0.5", shape).A(torch.ones(1, *shape)).shape == (1, *shape)
    assert open_operator("Decolorize", SHAPE).noise is None
    with pytest.raises(dv.InputError, match="says nothing of its noise"):
        open_operator("Inpainting:mask=0.5", SHAPE).measurement(images())


def test_without_deepinv_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise ImportError("No module named 'deepinv'")

    monkeypatch.setattr(deepinv_physics, "import_module", absent)
    for name in ("inpainting", "Blur"):
        with pytest.raises(dv.InputError, match=r"pip install 'diffusion-var\[restoration\]'"):
            open_operator(name, SHAPE)
