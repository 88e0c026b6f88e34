"""What heads learn, and the covariance that their output makes, against independent computations in float64."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import norm
from small_heads import SHAPE, head, table

import diffusion_var as dv
from diffusion_var.covariance.head_targets import PIXEL_TARGETS, BandTarget, HeadDraw, positive_ratio, step_loss
from diffusion_var.process.bands import Bands
from diffusion_var.process.structure import make_structure
from diffusion_var.randomness import generator


def drawn(*shape, name="x"):
    return torch.from_numpy(generator(5, name).standard_normal(shape or (4, *SHAPE)))


def draw(v=None):
    posterior = dv.Posterior(drawn(name="mean"), drawn(name="eps hat"))
    level = torch.linspace(0.1, 0.9, 4, dtype=torch.float64)[:, None, None, None]
    return HeadDraw(
        drawn(name="x_0"),
        drawn(name="eps"),
        posterior,
        sigma=level.sqrt(),
        g=level**2,
        gap=level / 3,
        v=2 * level if v is None else v,
        floor=3 * level**2,
        probe=(drawn(name="probe").sign(), drawn(name="product")),
    )


def reference(name, d):
    """y/g of each target by docs/equations.md, E9, and about its mean square error."""
    g = d.g.numpy()
    if name == "npr":
        return (d.x_0 - d.posterior.mean).numpy() ** 2 / d.v.numpy(), np.full_like(g, 2.0)
    gap = (d.g.sqrt() / 3).numpy() ** 2
    if name == "sn":
        return (d.eps.numpy() ** 2 - d.posterior.eps.numpy() ** 2) / g, (4 * (1 - g) + 2 * g) / g + gap
    r, product = (x.numpy() for x in d.probe)
    return (1 + r * (-d.sigma.numpy() * product)) / g, 2 + gap


@pytest.mark.parametrize("name", ["npr", "sn", "ocm"])
def test_pixel_targets_and_their_losses(name):
    d, target = draw(), PIXEL_TARGETS[name]()
    y, error_square = reference(name, d)
    np.testing.assert_allclose(target.ratio(d).numpy(), y, rtol=1e-10)
    predicted = drawn(name="predicted")
    off = (y - predicted.numpy()) ** 2
    np.testing.assert_allclose(float(target.loss(predicted, d, "table")), (off / error_square).mean(), rtol=1e-10)
    np.testing.assert_allclose(float(target.loss(predicted, d, "papers")), (off * d.g.numpy() ** 2).mean(), rtol=1e-10)


def test_unclipped_npr_is_the_noise_prediction_residual():
    """(α²/σ²)(x_0 − x̂_0)² = (ε − ε̂)² where x̂_0 = (x_t − σ ε̂)/α."""
    alpha, sigma = 0.6, 0.8
    x_0, eps, eps_hat = drawn(name="x_0"), drawn(name="eps"), drawn(name="eps hat")
    mean = (alpha * x_0 + sigma * eps - sigma * eps_hat) / alpha
    g, v = 0.3, 0.3 * (sigma / alpha) ** 2
    levels = [torch.full((4, 1, 1, 1), value, dtype=torch.float64) for value in (sigma, g, 0.0, v, 1.0)]
    d = HeadDraw(x_0, eps, dv.Posterior(mean, eps_hat), *levels)
    np.testing.assert_allclose(PIXEL_TARGETS["npr"]().ratio(d).numpy(), (eps - eps_hat).numpy() ** 2 / g, rtol=1e-10)


def test_factor_is_the_mean_of_standardised_squares_without_negligible_elements():
    structure = make_structure("dct", SHAPE)
    v = (drawn(name="v").square() + 0.1).contiguous()
    v[:, :, 3, 4] = 1e-9  # hardly ever varies
    d, target = draw(v), BandTarget("factor", structure.forward, Bands(SHAPE, 1))
    from scipy.fft import dctn

    coefficients = np.stack([dctn(x, axes=(0, 1, 2), norm="ortho") for x in (d.x_0 - d.posterior.mean).numpy()])
    kept = np.ones(SHAPE, dtype=bool)
    kept[0, 3, 4] = False
    expected = (coefficients**2 / v.numpy())[:, kept].reshape(4, 1, -1).mean(-1)
    np.testing.assert_allclose(target.ratio(d).numpy(), expected, rtol=1e-10)
    predicted = drawn(4, 1, name="factor").abs()
    loss = 0.5 * ((expected - predicted.numpy()) ** 2).mean()
    for weighting in ("table", "papers"):
        np.testing.assert_allclose(float(target.loss(predicted, d, weighting)), loss, rtol=1e-10)
    loss = bound_term(
        coefficients,
        v.numpy(),
        predicted.numpy()[..., None, None],
        np.maximum(d.floor.numpy(), 1e-3 * v.numpy().mean((1, 2, 3), keepdims=True)),
    )
    np.testing.assert_allclose(float(target.loss(predicted, d, "likelihood")), loss.mean(), rtol=1e-9)


def test_bands_learn_the_same_of_the_coefficients_of_a_band():
    """Each by its own coefficients; the squared error counts a band as often as it has some."""
    structure, bands = make_structure("dct", SHAPE), Bands(SHAPE, 3)
    v = (drawn(name="v").square() + 0.1).contiguous()
    v[:, :, 3, 4] = 1e-9  # hardly ever varies
    d, target = draw(v), BandTarget("bands", structure.forward, bands)
    square = structure.forward(d.x_0 - d.posterior.mean).square().numpy()
    expected, sizes = np.ones((4, bands.count)), np.zeros(bands.count)
    for b in range(bands.count):
        inside = (bands.index == b).numpy()
        sizes[b] = inside.sum()
        kept = inside & (v[0].numpy() > 1e-6)
        expected[:, b] = (square / v.numpy())[:, kept].mean(1)
    np.testing.assert_allclose(target.ratio(d).numpy(), expected, rtol=1e-10)
    predicted = drawn(4, bands.count, name="factors").abs()
    loss = 0.5 * (sizes * (expected - predicted.numpy()) ** 2).sum(1).mean() / sizes.sum()
    np.testing.assert_allclose(float(target.loss(predicted, d, "table")), loss, rtol=1e-10)
    spread = predicted.numpy()[:, bands.index.numpy()]
    floor = np.maximum(d.floor.numpy(), 1e-3 * v.numpy().mean((1, 2, 3), keepdims=True))
    loss = bound_term(np.sqrt(square), v.numpy(), spread, floor)
    np.testing.assert_allclose(float(target.loss(predicted, d, "likelihood")), loss.mean(), rtol=1e-9)


def test_a_band_without_an_element_that_varies_stays_what_the_table_says():
    structure, bands = make_structure("dct", SHAPE), Bands(SHAPE, 3)
    v = torch.where(bands.index == 2, 1e-9, 1.0).double().expand(4, *SHAPE)
    ratio = BandTarget("bands", structure.forward, bands).ratio(draw(v))
    assert ratio[:, 2].tolist() == [1.0] * 4
    assert float((ratio[:, :2] - 1.0).abs().min()) > 1e-3


@pytest.mark.parametrize("weighting", ["table", "likelihood"])
def test_one_band_is_the_factor(weighting):
    """Of the same weights the same numbers, to the last bit: what is predicted, its loss, and the covariance."""
    spec = {"kind": "simple", "structure": "dct"}
    factor, bands = head(0.3, target="factor", **spec), head(0.3, target="bands", bands=1, **spec)
    features = drawn(4, 8, *SHAPE[1:], name="f")
    posterior = dv.Posterior(drawn(name="mean"), drawn(name="eps"), features=features)
    found = [each.ratio(posterior, 20) for each in (factor, bands)]
    assert torch.equal(*found)
    assert float(found[0].std()) > 1e-3
    d, predicted = draw(drawn(name="v").square() + 0.1), found[0][:, :, 0, 0]
    assert torch.equal(*(each.target.loss(predicted, d, weighting) for each in (factor, bands)))
    kernel = dv.ReverseKernel(table().schedule, 20, 5)
    assert torch.equal(*(each(posterior, kernel).variance for each in (factor, bands)))


def bound_term(error, v, ratio, floor):
    """What a step with variance ρ v costs, by quadrature over x_s, over what is expected of v: γ = 0.7, λ² = F γ²."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(20)
    gamma = 0.7

    x_s = np.sqrt(floor)[..., None] * gamma * nodes + gamma * error[..., None]  # about the step's mean
    scale = gamma * np.sqrt(floor + ratio * v)[..., None]
    cost = -(norm.logpdf(x_s, scale=scale) * weights).sum(-1) / weights.sum()
    return cost - norm.entropy(scale=gamma * np.sqrt(floor + v))


def test_the_likelihood_loss_of_npr_is_the_bounds_own_term():
    d, predicted = draw(), drawn(name="predicted").abs() + 0.1
    expected = bound_term((d.x_0 - d.posterior.mean).numpy(), d.v.numpy(), predicted.numpy(), d.floor.numpy())
    np.testing.assert_allclose(
        float(PIXEL_TARGETS["npr"]().loss(predicted, d, "likelihood")), expected.mean(), rtol=1e-9
    )


@pytest.mark.parametrize("floor", [0.0, 0.3, 100.0])
def test_a_step_costs_least_at_the_mean_square(floor):
    """Over many errors of one variance ρ v the best ρ is theirs, whatever the step."""
    square = drawn(4000, name="errors").square() * 0.6
    best = (square.mean() / 0.2).requires_grad_()
    v, floor = (torch.tensor(value, dtype=torch.float64) for value in (0.2, floor))
    cost = step_loss(square, v, best, floor, 0.0).mean()
    (slope,) = torch.autograd.grad(cost, best)
    assert abs(slope) < 1e-12
    for factor in (0.8, 1.25):
        assert step_loss(square, v, factor * best.detach(), floor, 0.0).mean() > cost
    np.testing.assert_allclose(step_loss(v, v, torch.ones(()), floor, 0.0).numpy(), 0.0, atol=1e-12)


def test_what_is_always_exact_gains_a_bounded_number():
    target, d = PIXEL_TARGETS["npr"](), draw()
    exact = replace(d, x_0=d.posterior.mean, floor=torch.zeros_like(d.floor))
    gains = [float(target.loss(torch.full_like(d.x_0, ratio), exact, "likelihood")) for ratio in (1e-2, 1e-6, 1e-30)]
    assert gains[0] > gains[1] > gains[2] > -0.5 * np.log(1.1e3)


def test_positive_ratio_starts_at_one_and_stays_positive():
    raw = torch.tensor([-60.0, 0.0, 60.0], dtype=torch.float64)
    ratio = positive_ratio(raw)
    assert ratio[0] > 0
    np.testing.assert_allclose(ratio[1:].numpy(), [1.0, 60.0 + np.log(np.e - 1)], rtol=1e-12)


KERNELS = [(50, 20, 1.0, None), (20, 5, 1.0, None), (20, 5, 0.5, None), (5, 1, 0.0, None), (20, 5, 0.0, "rederived")]


@pytest.mark.parametrize(("t", "s", "eta", "clipped_eps"), KERNELS)
@pytest.mark.parametrize("structure", [None, "dct", "pixel"])
def test_covariance_of_a_ratio(t, s, eta, clipped_eps, structure, monkeypatch):
    """λ² + ρ times the table's mean square error of the step's mean, written out from E1 to E3."""
    spec = {} if structure is None else {"target": "factor", "structure": structure}
    made, schedule = head(**spec), table().schedule
    ratio = (drawn(name="ratio") if structure is None else drawn(4, 1, 1, 1, name="ratio")).abs()
    monkeypatch.setattr(made, "ratio", lambda *_: ratio)
    kernel = dv.ReverseKernel(schedule, t, s, eta, clipped_eps)
    posterior = dv.Posterior(drawn(name="mean"), drawn(name="eps"), features=drawn(4, 8, 8, 8, name="f"))
    found = made(posterior, kernel)
    a_t, s_t, a_s, s_s = (
        float(x) for x in (schedule.alpha[t], schedule.sigma[t], schedule.alpha[s], schedule.sigma[s])
    )
    beta_tilde = (s_t**2 - (a_t / a_s) ** 2 * s_s**2) * (s_s / s_t) ** 2
    lambda2 = eta**2 * beta_tilde
    c = np.sqrt(s_s**2 - lambda2)
    gamma = a_s - c * a_t / s_t
    error, cross, shift = table().clipping_moments(t, structure or "isotropic")
    rederives = eta == 1.0 if clipped_eps is None else clipped_eps == "rederived"
    extra = gamma**2 * error if rederives else gamma**2 * error - 2 * gamma * c * cross + c**2 * shift
    np.testing.assert_allclose(found.variance.numpy(), lambda2 + ratio.numpy() * np.maximum(extra, 0), rtol=1e-9)
    assert found.structure.name == (structure or "pixel")


@pytest.mark.parametrize("name", ["npr", "sn", "ocm"])
def test_published_outputs(name):
    """v of the papers: (σ²/α²) times g, h − ε̂² or 1 + h; as it is in training, in use within [0, 1], what a variance in
    [-1, 1] can be, and nothing less: σ²/α² bounds the average over x_t alone."""
    made = head(target=name, output="papers")
    posterior = dv.Posterior(drawn(name="mean"), drawn(name="eps"), features=torch.zeros(4, 8, 8, 8))
    raw, t = 4 * drawn(name="raw"), 12
    indices = torch.full((4,), t)
    schedule = table().schedule
    level = float(schedule.sigma[t] / schedule.alpha[t]) ** 2
    said = {"npr": raw, "sn": raw - posterior.eps**2, "ocm": 1 + raw}[name]
    unit, v = table().posterior_variance(t), level * said.numpy()
    trained = made.output(raw, posterior, indices)
    np.testing.assert_allclose(trained.numpy() * unit, v, rtol=1e-6, atol=1e-9)  # the prior's levels are float32
    used = made._tamed(made.cut(trained, indices)).numpy() * unit
    np.testing.assert_allclose(used, np.clip(v, 0.0, 1.0), rtol=1e-6, atol=1e-9)
    assert ((v > level) & (v < 1.0)).any()
    assert (v > 1.0).any()
    at_level = made.cut(trained, schedule.level(t))
    assert torch.equal(at_level, made.cut(trained, indices))


@pytest.mark.parametrize(("data_range", "most"), [((0.0, 1.0), 0.25), ((-3.0, 1.0), 4.0), (None, np.inf)])
def test_published_heads_are_cut_at_the_data_range_alone(data_range, most, monkeypatch):
    made = head(output="papers")
    monkeypatch.setattr(made.prior.table, "data_range", data_range)
    v = torch.tensor([1e-3, 0.2, 0.3, 3.9, 4.1, 1e6], dtype=torch.float64).view(-1, 1, 1, 1)
    unit = table().posterior_variance(5)  # where σ²/α² is far below
    found = made.cut(v / unit, torch.full((6,), 5)) * unit
    np.testing.assert_allclose(found.numpy(), np.minimum(v.numpy(), most), rtol=1e-6)


def test_ratios_of_the_table_are_not_cut():
    raw = torch.tensor([1e2, 1e4, 1e6], dtype=torch.float64).view(-1, 1, 1, 1)
    made = head()
    found = made.cut(made.output(raw, None, torch.full((3,), 20)), torch.full((3,), 20))
    np.testing.assert_allclose(found.numpy(), raw.numpy() + np.log(np.e - 1), rtol=1e-12)


def test_published_npr_learns_the_residual_of_the_networks_own_noise():
    """(ε − ε̂)², which is not (α²/σ²)(x_0 − x̂_0)² where x̂_0 is clipped: arXiv:2206.07309 knows no clipping."""
    d = draw()
    published, own = (head(output=output).target for output in ("papers", "ratio"))
    residual = (d.eps - d.posterior.eps).numpy() ** 2
    np.testing.assert_allclose((d.g * published.ratio(d)).numpy(), residual, rtol=1e-12)
    off = (residual - drawn(name="predicted").numpy()) ** 2
    loss = published.loss(drawn(name="predicted") / d.g, d, "papers")
    np.testing.assert_allclose(float(loss), off.mean(), rtol=1e-12)
    assert float((published.ratio(d) - own.ratio(d)).abs().max()) > 0.1


@pytest.mark.parametrize("eta", [1.0, 0.5, 0.0])
def test_covariance_of_the_published_heads(eta, monkeypatch):
    """λ² + γ² v, also where x̂_0 is clipped and the step uses the network's ε̂."""
    made, schedule = head(output="papers"), table().schedule
    v = drawn(name="v").abs()
    monkeypatch.setattr(made, "ratio", lambda *_: v / table().posterior_variance(20))
    kernel = dv.ReverseKernel(schedule, 20, 5, eta)
    posterior = dv.Posterior(drawn(name="mean"), drawn(name="eps"), features=drawn(4, 8, 8, 8, name="f"))
    expected = kernel.lambda2 + kernel.gain**2 * v.numpy()
    np.testing.assert_allclose(made(posterior, kernel).variance.numpy(), expected, rtol=1e-9)


def test_disagreement_of_the_estimators_counts_for_exact_mean_targets_only():
    every = torch.arange(1, 51)
    assert float(head(target="npr").prior.gap(every).abs().max()) == 0.0
    gap = head(target="sn").prior.gap(every).flatten().double()
    prior, schedule = head(target="sn").prior, table().schedule
    delta = np.array(
        [
            (schedule.alpha[n] / schedule.sigma[n]) ** 2
            * (
                table().interpolation.value("score_norm", "isotropic", table().schedule.level(n))
                - table().posterior_variance(n)
            )
            for n in range(1, 51)
        ]
    )
    expected = np.sqrt(delta**2 + np.mean(delta**2)) / prior.at(every)[0].flatten().numpy()
    np.testing.assert_allclose(gap.numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ({"target": "nrp"}, "target 'nrp' is not known"),
        ({"target": "factor"}, "target='factor' multiplies a structure's variances; pass structure= as 'dct'"),
        ({"structure": "dct"}, "structure='dct' is for target='factor' alone, not 'npr'"),
        ({"target": "factor", "structure": "channel"}, "structure='channel' has no variances"),
        ({"target": "factor", "structure": "dct", "output": "papers"}, "output='papers'"),
        ({"target": "bands", "structure": "pixel"}, "which structure='pixel' does not know; use 'dct', or leave it"),
        ({"target": "bands", "bands": 0}, "bands=0 must be a whole number of at least 1"),
        ({"target": "bands", "bands": 2.5}, "bands=2.5 must be a whole number"),
        ({"target": "bands", "output": "papers"}, "use 'ratio' with 'bands'"),
        ({"kind": "pooled"}, "kind='pooled' says nothing of single pixels, as target='npr' has to; use 'simple'"),
        ({"bands": 4}, "bands=4 is for target='bands' alone, not 'npr'; leave it out"),
        ({"target": "factor", "structure": "dct", "bands": 4}, "bands=4 is for target='bands' alone, not 'factor'"),
        ({"output": "raw"}, "output 'raw' is not known; choose one of ratio, papers"),
    ],
)
def test_specs_that_make_no_sense(spec, named):
    with pytest.raises(dv.InputError, match=named):
        dv.HeadSpec(**spec)


def test_bands_that_a_table_or_its_images_do_not_have():
    with pytest.raises(dv.InputError, match=r"bands=40 is more than there are frequencies in images \(1, 8, 8\)"):
        head(target="bands", bands=40)
    without = table().subset(["pixel"])
    with pytest.raises(dv.InputError, match=r"has no structure 'dct' \(it has isotropic, pixel\)"):
        dv.Head(head(target="bands", bands=4).network, without, dv.HeadSpec("bands", bands=4))


def test_published_arrays_make_no_prior():
    schedule = dv.NoiseSchedule.linear(50, 1e-3, 0.2)
    arrays = dv.VarianceTable.from_moments(schedule, eps_square=np.full(50, 0.5))
    with pytest.raises(dv.InputError, match="published arrays"):
        dv.Head(head().network, arrays, dv.HeadSpec())


@pytest.mark.parametrize("name", ["sn", "ocm"])
def test_targets_that_may_be_negative_have_no_likelihood(name):
    with pytest.raises(dv.InputError, match=rf"target '{name}' may be negative.*use weighting='table'"):
        PIXEL_TARGETS[name]().loss(drawn(name="predicted"), draw(), "likelihood")
