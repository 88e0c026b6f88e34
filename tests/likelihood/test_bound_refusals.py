"""What the likelihood refuses: one sentence that names the trouble and the way out, before any work is done."""

from typing import Any

import numpy as np
import pytest
import torch
from gaussian_bounds import Told
from small_likelihoods import SHAPE, STEPS, Network, measured, pictures, small_denoiser

import diffusion_var as dv
from diffusion_var.process.structure import make_structure

FLOATS = pictures(4).float() / 127.5 - 1


@pytest.fixture(scope="module")
def table() -> dv.VarianceTable:
    return measured(small_denoiser(), [20, 60, 80])


def refused(message: str, **arguments: Any) -> None:
    """`bits_per_dim` refuses, and the network has not been asked for anything."""
    network = Network()
    given: dict[str, Any] = {"covariance": dv.FixedSmall(), "images": pictures(4), "steps": STEPS, **arguments}
    with pytest.raises(dv.InputError, match=message) as refusal:
        dv.bits_per_dim(small_denoiser(network, **given.pop("denoiser", {})), **given)
    assert network.rows == 0
    assert len(str(refusal.value)) < 330


# ---- images -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("off", [0.004, -1e-4])
def test_images_between_levels(off: float) -> None:
    images = FLOATS.clone()
    images[2, 1, 0, 3] = (100 - 127.5) / 127.5 + off
    refused(
        "image 2 holds .*none of 256 levels.*pass images of that many levels .*, or use dv.density_bound", images=images
    )
    many = torch.cat([FLOATS.repeat(100, 1, 1, 1), images])  # in a later chunk of the pass over the images
    refused("image 402 holds", images=many)


def test_images_of_other_levels() -> None:
    refused("none of 16 levels", levels=16)
    two = dv.bits_per_dim(small_denoiser(), dv.FixedSmall(), (pictures(4) > 127).byte() * 255, STEPS, levels=2)
    assert np.isfinite(two.value)


def test_images_outside_the_range() -> None:
    refused(r"image 0 has values from .* outside the data range \[-1, 1\]", images=pictures(4).float())
    refused("image 1 has values", images=torch.stack([FLOATS[0], FLOATS[1] - 2]))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (pictures(4)[:0], "images is empty"),
        (pictures(4)[0], r"images must have shape \(M, C, H, W\)"),
        (pictures(4)[:, :, :2], r"image 0 has shape \(3, 2, 4\)"),
        (pictures(4).long(), "dtype torch.int64"),
        (FLOATS * float("nan"), "image 0 holds NaN"),
        (7, "with a length"),
    ],
)
def test_images_that_are_none(images: Any, message: str) -> None:
    refused(message, images=images)


def test_data_ranges() -> None:
    free = {"clip": None}
    refused(r"data_range=\(0.0, 1.0\) is not the denoiser's data range \(-1.0, 1.0\)", data_range=(0, 1))
    refused(r"data_range=\(1, -1\) must be a pair", data_range=(1, -1))
    refused("data have no range .* use dv.density_bound, or pass data_range", denoiser=free)
    refused("data have no range", denoiser=free, images=FLOATS)
    with pytest.raises(dv.InputError, match="images are uint8, but the denoiser has no data range"):
        dv.density_bound(small_denoiser(clip=None), dv.FixedSmall(), pictures(4), STEPS)


# ---- the process --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eta", [0, 0.0, -0.0, np.float64(0)])
def test_eta_zero(eta: Any) -> None:
    message = r"eta=0 \(DDIM\).*the bound is infinite.*use eta=1 \(DDPM\), or 0 < eta < 1"
    refused(message, eta=eta)
    with pytest.raises(dv.InputError, match=message):
        dv.density_bound(small_denoiser(), dv.FixedSmall(), FLOATS, STEPS, eta=eta)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"eta": -0.5}, r"outside \[0, 1\]"),
        ({"eta": 1.5}, r"outside \[0, 1\]"),
        ({"eta": float("nan")}, r"outside \[0, 1\]"),
        ({"eta": "1"}, r"outside \[0, 1\]"),
        ({"steps": 101}, "steps=101 is not a usable number of steps; expected an integer from 1 to 100"),
        ({"steps": 0}, "steps=0"),
        ({"steps": [1, 101]}, "integers from 1 to 100"),
        ({"steps": [5, 1]}, "must rise strictly"),
        ({"steps": []}, "empty"),
        ({"clipped_eps": "both"}, "clipped_eps='both' is not known"),
        ({"covariance": dv.FixedLarge(), "eta": 0.5}, "eta=1 only"),
        ({"covariance": dv.LearnedRange(), "eta": 0.5}, "eta=1 only"),
        *[({"levels": bad}, "levels=.* at least 2") for bad in (1, 0, -1, 2.5, "256", True, None)],
        *[({"draws": bad}, "draws=.* whole number of at least 1") for bad in (0, -1, 1.5, True, "2", None)],
        *[({"step_samples": bad}, "step_samples=.* whole number of at least 1") for bad in (0, -1, 1.5, True, "2")],
        *[({"batch_size": bad}, "batch_size=.* whole number of at least 1") for bad in (0, -1, 1.5, True, None)],
        ({"conditions": [0, 1]}, "conditions has 2 entries for 4 images"),
    ],
)
def test_arguments(arguments: dict[str, Any], message: str) -> None:
    refused(message, **arguments)


# ---- covariances --------------------------------------------------------------------------------------------------


def test_covariances_that_are_zero() -> None:
    """Found where the covariance is computed: in the first batch."""
    shape, zero = make_structure("pixel", SHAPE), np.ones(SHAPE)
    zero[1, 2, 0] = 0.0
    told = Told(shape, lambda kernel: zero if kernel.t == 40 else np.ones(SHAPE))
    with pytest.raises(dv.InputError, match=r"told-pixel is zero somewhere in the step 40 to 12, .* such as Analytic"):
        dv.bits_per_dim(small_denoiser(), told, pictures(2), STEPS)

    class Nothing(dv.FixedSmall):
        def variance(self, kernel: dv.ReverseKernel) -> float:
            return 0.0

    with pytest.raises(dv.InputError, match="beta_tilde is zero somewhere in the step 100 to 40"):
        dv.bits_per_dim(small_denoiser(), Nothing(), pictures(2), STEPS)
    with pytest.raises(dv.InputError, match=r"decoder's variance \(beta_tilde, step 1 to 0\) is zero somewhere"):
        dv.density_bound(small_denoiser(), dv.FixedSmall(), FLOATS, STEPS, decoder_variance="covariance")


def test_tables_that_do_not_fit(table: dv.VarianceTable) -> None:
    refused("index 100 is outside the measured indices 20 to 80", covariance=dv.Analytic(table))
    few: dict[str, Any] = {"covariance": dv.Analytic(table), "steps": [1, 30, 80]}
    refused("index 1 is outside the measured indices", decoder_variance="isotropic", **few)
    bare = dv.Analytic(table.subset(["dct"]), structure="dct")
    refused("no structure 'pixel'", covariance=bare, steps=[20, 80], decoder_variance="pixel")
    refused("another model", covariance=dv.Analytic(table), denoiser={"clip": (-0.5, 0.5)}, images=FLOATS * 0)
    # the smallest index needs no measurement where the decoder does not ask for it
    found = dv.bits_per_dim(small_denoiser(), few["covariance"], pictures(2), few["steps"])
    assert np.isfinite(found.value)


def test_learned_range_of_a_network_that_has_none() -> None:
    with pytest.raises(dv.InputError, match="LearnedRange needs a network with 2C output channels"):
        dv.bits_per_dim(small_denoiser(), dv.LearnedRange(), pictures(2), STEPS)


# ---- the decoder --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", ["nope", ""])
def test_unknown_decoder_variances(bad: str) -> None:
    refused(
        "decoder_variance=.* is not known; use one of beta_tilde, .*; or a number, or an array", decoder_variance=bad
    )
    with pytest.raises(dv.InputError, match=r"decoder_variance=.* is not known"):
        dv.density_bound(small_denoiser(), dv.FixedSmall(), FLOATS, STEPS, decoder_variance=bad)


@pytest.mark.parametrize(
    "bad",
    [
        0,
        0.0,
        -1,
        float("nan"),
        float("inf"),
        np.float32(-1),
        True,
        np.array(-0.1),
        torch.tensor(0.0),
    ],
)
def test_decoder_variances_that_are_no_variance(bad: Any) -> None:
    refused("decoder_variance=.* must be a positive, finite number, or the name of a choice", decoder_variance=bad)
    with pytest.raises(dv.InputError, match=r"decoder_variance=.* must be a positive, finite number"):
        dv.density_bound(small_denoiser(), dv.FixedSmall(), FLOATS, STEPS, decoder_variance=bad)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([[[0.1]], [[0.0]], [[0.2]]], "holds 0; every variance must be positive"),
        (np.full(SHAPE, -1.0), "holds -1; every variance must be positive"),
        (np.full(SHAPE, np.nan), "holds nan; every variance must be positive"),
        (np.full((*SHAPE, 2), 1.0), r"has shape .*, but images have .*; give one number, or an array"),
        (np.ones((4, *SHAPE)), r"has shape .*, but images have"),
        ([[1.0], [1.0, 2.0]], "must be numbers"),
        (["a", "b"], "must be numbers"),
    ],
)
def test_arrays_that_are_no_decoder_variance(bad: Any, message: str) -> None:
    refused(f"decoder_variance.*{message}", decoder_variance=bad)


@pytest.mark.parametrize("choice", ["table", "isotropic", "pixel"])
def test_decoder_variances_without_a_table(choice: str) -> None:
    message = f"decoder_variance='{choice}' is read from the variance table .*covariance is beta_tilde; use Analytic"
    refused(message, decoder_variance=choice)


def test_covariances_that_are_no_decoder_of_quantised_images(table: dv.VarianceTable) -> None:
    dct: dict[str, Any] = {"covariance": dv.Analytic(table, structure="dct"), "steps": [20, 80]}
    refused("'covariance' has the structure 'dct', but .* diagonal in pixels", decoder_variance="covariance", **dct)
    refused(r"\(beta_tilde, step 1 to 0\) is zero somewhere, .* no probability", decoder_variance="covariance")


def test_decoder_variances_of_other_steps() -> None:
    refused("'respaced' is that of the step before the last", decoder_variance="respaced", steps=1)
    flat = dv.NoiseSchedule.linear(100).with_zero_terminal_snr()
    silent = dv.Denoiser(lambda x, t: x, flat, prediction="v_prediction", shape=SHAPE, clip=(-1.0, 1.0))
    with pytest.raises(dv.InputError, match="at index 100 α is 0; give a number"):
        dv.bits_per_dim(silent, dv.FixedLarge(), pictures(2), [100], decoder_variance="sigma2")


# ---- numbers that are none ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(("index", "step"), [(100, "100 to 40"), (12, "12 to 1"), (1, "1 to 0")])
def test_nan_names_the_step_and_the_image(bad: float, index: int, step: str) -> None:
    healthy = Network()

    def sick(x_t: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        out = healthy(x_t, timestep)
        rows = (timestep == index - 1).nonzero()
        if len(rows) == 5:
            out[rows[4], 2, 1, 3] = bad
        return out

    # 5 images in batches of 5: those of one index, the last of them sick
    images = pictures(5)
    images[4, 2, 1, 3] = 100  # an infinite mean is all too right for a pixel at the end of the range
    denoiser = small_denoiser(sick, clip=None, data_range=(-1.0, 1.0))
    with pytest.raises(dv.NumericalError, match=f"the term of the step {step} is (nan|inf) for image 4; check"):
        dv.bits_per_dim(denoiser, dv.FixedLarge(), images, STEPS, batch_size=5)


def test_nan_in_a_learned_range_is_no_zero_covariance() -> None:
    healthy = Network(doubled=True)

    def sick(x_t: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        out = healthy(x_t, timestep)
        out[timestep == 39, 4] = float("nan")
        return out

    with pytest.raises(dv.NumericalError, match="the step 40 to 12 is nan for image 0"):
        dv.bits_per_dim(small_denoiser(sick), dv.LearnedRange(), pictures(2), STEPS)
    with pytest.raises(dv.NumericalError, match="the step 40 to 0 is nan for image 0"):
        dv.density_bound(
            small_denoiser(sick), dv.LearnedRange([40, 100]), FLOATS, [40, 100], decoder_variance="covariance"
        )
