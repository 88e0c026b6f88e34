"""What ConditionedDenoiser refuses, and what refuses it: one sentence each, that says what to do."""

from typing import Any

import numpy as np
import pytest
import small_heads
import torch
from measurements import SCHEDULE, SHAPE, Constant, gaussian, halved, masked, measured, normal

import diffusion_var as dv
from diffusion_var import training
from diffusion_var.errors import InputError
from diffusion_var.process.structure import make_structure
from diffusion_var.restoration import ConjugateGradients

BASE, KNOWN = gaussian("dct")
IMAGES = BASE.sample(2, seed=1)
MEASURED = measured(halved, IMAGES)
TABLE = dv.estimate(BASE, BASE.sample(60, seed=2), 0.5, indices=[1, 300, 1000], structures=("pixel",), progress=False)


def make(**options: Any) -> dv.ConditionedDenoiser:
    made = {"denoiser": BASE, "covariance": KNOWN, "measurement": MEASURED, **options}
    return dv.ConditionedDenoiser(**made)


def sentence(caught: Any) -> str:
    said = str(caught.value)
    assert "\n" not in said
    return said


# ---- what it refuses -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"denoiser": lambda x, t: x}, "denoiser.*a dv.Denoiser; wrap the network in one"),
        ({"denoiser": "digits"}, "read one with dv.Denoiser.from_pretrained"),
        ({"covariance": 0.1}, "covariance"),
        ({"covariance": dv.Analytic}, "covariance"),
        ({"measurement": MEASURED.y}, "measurement.*a dv.Measurement"),
        ({"guidance": "III"}, "guidance='III'.*I.*II"),
        ({"guidance": 1}, "guidance=1"),
        ({"solver": "gmres"}, "solver='gmres'.*auto.*cg.*or a dv.restoration.ConjugateGradients"),
        ({"below": 0.0}, "below=0.0.*a positive σ/α, or None"),
        ({"below": float("nan")}, "below=nan"),
        ({"covariance": dv.NetworkJacobian(), "below": 0.2}, "below= is for covariances of a table; leave it out"),
        ({"damped": "no"}, "damped='no' must be True or False"),
        ({"checkpointing": 1}, "checkpointing=1 must be True or False"),
        ({"checkpointing": True}, "checkpointing needs a network of diffusers"),
    ],
)
def test_arguments(options: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match) as caught:
        make(**options)
    sentence(caught)


@pytest.mark.parametrize("covariance", [dv.FixedSmall(), dv.FixedLarge(), dv.Scaled(dv.FixedSmall(), 2.0)])
def test_a_covariance_that_says_nothing_of_x_0(covariance: Any) -> None:
    """β̃ and β are noise of a step; it is said before a network is run, and what to take instead."""
    with pytest.raises(InputError, match=r"says how much noise a step adds, and nothing of Cov\[x_0\|x_t\]; take") as e:
        make(covariance=covariance)
    assert "dv.Analytic(table) or dv.PiGDM()" in sentence(e)


def test_a_table_of_another_model_or_without_the_structure() -> None:
    other, _ = gaussian("pixel")
    with pytest.raises(InputError, match="this variance table was made for another model"):
        make(denoiser=other, covariance=dv.Analytic(TABLE, structure="pixel"))
    with pytest.raises(InputError, match=r"'?dct'?.*structure|structure.*'?dct'?"):
        make(covariance=dv.Analytic(TABLE, structure="dct"))
    assert make(covariance=dv.Analytic(TABLE, structure="pixel"))(normal(2, *SHAPE), 300).mean.shape == (2, *SHAPE)
    mixture = dv.oracles.MixtureDenoiser(SCHEDULE, normal(2, *SHAPE), 0.1)
    with pytest.raises(InputError, match="is the covariance of one mixture's own mean"):
        make(covariance=dv.ExactCovariance(mixture))


def test_a_table_of_another_guidance_also_once_it_is_made() -> None:
    base = small_heads.denoiser()
    guided = dv.Denoiser(base.network, base.schedule, shape=base.shape, conditional=False)
    table = small_heads.table()
    y = normal(1, *small_heads.SHAPE).float()
    den = dv.ConditionedDenoiser(base, dv.Analytic(table), dv.Measurement(y, lambda x: x))
    assert guided.guidance_scale == 1.0
    with pytest.raises(InputError, match=r"guidance_scale|guidance scale"):
        den.with_guidance(3.0, torch.tensor(0))


@pytest.mark.parametrize(
    ("A", "options", "match"),
    [
        (lambda x: halved(x).square(), {}, r"A is not linear: A\(2u\) differs from 2 A\(u\)"),
        (lambda x: halved(x) + 1.0, {}, r"A is not linear: A\(0\) is .* take what it adds off y"),
        (lambda x: halved(x).abs(), {}, "A is not linear"),
        (halved, {"adjoint": lambda u: u.repeat_interleave(2, -1).repeat_interleave(2, -2)}, "the adjoint is not A's"),
        (lambda x: x, {}, r"A gives \(2, 3, 4, 6\) of \(2, 3, 4, 6\), but \(2, 3, 2, 3\) is expected, as y and the"),
        (lambda x: halved(x).half(), {}, "A gives torch.float16"),
        (lambda x: halved(x[:1]), {}, r"A gives \(1, 3, 2, 3\)"),
    ],
)
def test_a_measurement_that_does_not_fit(A: Any, options: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match) as caught:
        make(measurement=dv.Measurement(MEASURED.y, A, **options))
    sentence(caught)


def test_y_elsewhere_or_too_coarse() -> None:
    with pytest.raises(InputError, match=r"y is torch.float16, too coarse to solve with; make it float32"):
        make(measurement=dv.Measurement(MEASURED.y.half(), halved))
    with pytest.raises(InputError, match=r"y is torch.bfloat16"):
        make(measurement=dv.Measurement(MEASURED.y.bfloat16(), halved))
    there = dv.Measurement(MEASURED.y, halved)
    there.y = there.y.to("meta")
    with pytest.raises(InputError, match=r"y is on meta, but the model is on cpu; move it: measurement.to\('cpu'\)"):
        make(measurement=there)


def test_guidance_ii_through_a_decoder() -> None:
    through = dv.Measurement(MEASURED.y, halved, through=lambda z: z)
    with pytest.raises(InputError, match=r'guidance="II" of a measurement through a decoder.*take guidance="I"'):
        make(measurement=through, guidance="II")


def test_a_network_without_derivatives_wants_guidance_ii() -> None:
    @torch.no_grad()
    def closed(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return 0.5 * torch.tanh(x)

    base = dv.Denoiser(closed, SCHEDULE, shape=SHAPE, prediction="sample", clip=None)
    x_t = normal(2, *SHAPE).float()
    with pytest.raises(InputError, match=r'cannot be differentiated .* which guidance="I" needs; take guidance="II"'):
        make(denoiser=base)(x_t, 300)
    assert bool(torch.isfinite(make(denoiser=base, guidance="II")(x_t, 300).mean).all())
    with pytest.raises(InputError, match="which its Jacobian needs; take a covariance from a table"):
        make(denoiser=base, covariance=dv.NetworkJacobian())(x_t, 300)


def test_x_t_in_float64_and_an_operator_of_float32() -> None:
    W = normal(72, 9, seed=3).float()
    measurement = dv.Measurement(torch.zeros(1, 9), lambda x: x.flatten(1) @ W)
    den = make(measurement=measurement, guidance="II")
    x_t = normal(1, *SHAPE)
    with pytest.raises(InputError, match="x_t is in float64, but A takes float32 alone; sample in float32"):
        den(x_t, 100)
    assert den(x_t.float(), 100).mean.dtype == torch.float32


def test_x_t_that_is_none() -> None:
    den = make()
    for wrong in (np.zeros((2, *SHAPE)), [1.0], None):
        with pytest.raises(InputError, match="x_t"):
            den(wrong, 300)  # type: ignore[arg-type]
        for of in (den.residual, den.log_likelihood):
            with pytest.raises(InputError, match="x_t"):
                of(wrong, 300)  # type: ignore[arg-type]
    for rows in ([0.5, 1], "ab", torch.tensor([0.5, 1.0])):
        with pytest.raises(InputError, match="must be whole numbers: which rows of y go with the images"):
            den.rows_condition(rows)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="x_t has shape"):
        den(torch.zeros(2, 3, 4, 5), 300)
    for n in (0, 1001, -1, torch.tensor([1, 0])):
        with pytest.raises(InputError):
            den(torch.zeros(2, *SHAPE), n)


@pytest.mark.parametrize("guidance", ["I", "II"])
def test_noise_0_is_allowed_where_s_is_positive_and_said_where_it_is_not(guidance: Any) -> None:
    """With as many measurements as are independent S is positive; y = A x_0 is then met."""
    exact = dv.Measurement(halved(IMAGES), halved, noise=0.0)
    den = make(measurement=exact, guidance=guidance, solver=ConjugateGradients(1e-6))
    x_t = SCHEDULE.alpha[300] * IMAGES + SCHEDULE.sigma[300] * normal(2, *SHAPE).float()
    mean = den(x_t, 300).mean
    assert float((halved(mean) - exact.y).abs().max()) < 1e-4
    den.report()

    def twice(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([halved(x), halved(x)], 1)

    y = twice(IMAGES) + torch.linspace(-1.0, 1.0, 36).view(1, 6, 2, 3)  # no image is measured so
    contradicting = make(measurement=dv.Measurement(y, twice, noise=0.0), guidance=guidance)
    contradicting(x_t, 300)
    with pytest.warns(UserWarning, match="met a direction in which S is not positive|did not reach their tolerance"):
        contradicting.report()
    with pytest.raises(dv.NumericalError, match="S is not positive"):
        contradicting.log_likelihood(x_t, 300)


def test_log_likelihood_of_large_y() -> None:
    shape = (1, 80, 80)
    base, known = gaussian("isotropic", shape)
    den = dv.ConditionedDenoiser(base, known, dv.Measurement(torch.zeros(1, *shape), lambda x: x))
    with pytest.raises(InputError, match="y has 6400 elements; at most 4096 are expected: use residual"):
        den.log_likelihood(torch.zeros(1, *shape), 300)


def test_the_jacobian_says_nothing_without_signal() -> None:
    base, _ = gaussian("dct", schedule=dv.NoiseSchedule.flow(20))
    with pytest.raises(InputError, match="where x_t holds no signal; start below it"):
        make(denoiser=base, covariance=dv.NetworkJacobian())(normal(2, *SHAPE), 20)


# ---- what refuses it -------------------------------------------------------------------------------------------------

OWN = "but this denoiser is conditioned on a measurement.*pass the denoiser that it was made of"


def test_what_is_about_the_mean_without_a_measurement() -> None:
    den, data = make(), BASE.sample(4, seed=3)
    calls: dict[str, Any] = {
        "estimate": lambda: dv.estimate(den, data, progress=False),
        "bits_per_dim": lambda: dv.bits_per_dim(den, dv.PiGDM(), data, steps=4),
        "density_bound": lambda: dv.density_bound(den, dv.PiGDM(), data, steps=4),
        "ode_likelihood": lambda: dv.ode_likelihood(den, data),
        "step_costs": lambda: dv.step_costs(den, dv.PiGDM(), data),
        "decoder_costs": lambda: dv.decoder_costs(den, data),
        "advise": lambda: dv.advise(den, data),
        "diagnose": lambda: dv.diagnose(den, data),
        "check": lambda: dv.check(TABLE, den),
    }
    for name, call in calls.items():
        with pytest.raises(InputError, match=OWN) as caught:
            call()
        assert name not in ("estimate", "advise") or sentence(caught).startswith(name)


def test_training_of_a_head() -> None:
    base = small_heads.denoiser()
    y = normal(1, *small_heads.SHAPE).float()
    den = dv.ConditionedDenoiser(base, dv.Analytic(small_heads.table()), dv.Measurement(y, lambda x: x))
    settings = training.HeadTraining(steps=1, batch_size=2)
    with pytest.raises(InputError, match=OWN):
        training.train_head(den, small_heads.table(), small_heads.images(), settings, progress=False)


def test_two_measurements_at_once() -> None:
    with pytest.raises(InputError, match=OWN):
        make(denoiser=make())


def test_covariances_still_stand_for_the_model_itself() -> None:
    """A table fits the conditioned denoiser, for its sampler's noise: its identity is the model's."""
    den = make(covariance=dv.Analytic(TABLE, structure="pixel"), measurement=measured(masked(), IMAGES))
    assert den.identity().plain() == BASE.identity().plain()
    assert den.fingerprint == BASE.fingerprint
    images = dv.Sampler(den, dv.Analytic(TABLE, structure="pixel"), [1, 300, 1000], eta=1.0).sample(3, batch_size=2)
    assert images.shape == (3, *SHAPE)
    constant = Constant(make_structure("isotropic", SHAPE), torch.tensor(0.1))
    assert make(covariance=constant).conditioned_on()["covariance"] == {"name": "constant-isotropic"}
