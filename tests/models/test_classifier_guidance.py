"""Classifier guidance: exact classifiers make exact class-conditional denoisers, and what is refused."""

import math
from typing import Any

import numpy as np
import pytest
import torch

import diffusion_var as dv

SHAPE, N = (2, 3, 3), 60
SCHEDULE = dv.NoiseSchedule.linear(N, 1e-3, 0.15)
MEANS = np.random.default_rng(1).normal(0.0, 1.0, (5, *SHAPE))
VARIANCES, WEIGHTS = np.array([0.05, 0.2, 0.1, 0.3, 0.02]), np.array([0.3, 0.2, 0.1, 0.25, 0.15])
CLASS_OF = np.array([0, 1, 1, 2, 0])  # components 0 and 4 are class 0, …
LABELS = torch.tensor([2, 0, 1, 1])


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


X_T = normal(4, *SHAPE)


def mixture(schedule: dv.NoiseSchedule = SCHEDULE, of: int | None = None) -> dv.oracles.MixtureDenoiser:
    """All of the mixture, or of one class."""
    chosen = np.isin(CLASS_OF, range(3) if of is None else of)
    return dv.oracles.MixtureDenoiser(schedule, MEANS[chosen], VARIANCES[chosen], WEIGHTS[chosen])


class ExactClassifier(torch.nn.Module):
    """log p(y, x_t) of the mixture, from the densities themselves; told n − 1."""

    def __init__(self, schedule: dv.NoiseSchedule = SCHEDULE) -> None:
        super().__init__()
        self.schedule, self.batches = schedule, torch.nn.BatchNorm1d(1)
        self.seen: list[tuple[torch.Tensor, torch.Tensor, bool]] = []
        self.means = torch.nn.Parameter(torch.from_numpy(MEANS))

    def forward(self, x_t: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        self.seen.append((x_t, timestep, self.training))
        n = timestep.long().cpu() + 1
        alpha, sigma = (torch.from_numpy(a[n.numpy()])[:, None] for a in (self.schedule.alpha, self.schedule.sigma))
        total = alpha**2 * torch.from_numpy(VARIANCES) + sigma**2
        distance = (x_t.double().flatten(1)[:, None] - alpha[..., None] * self.means.flatten(1)).square().sum(2)
        log = torch.from_numpy(WEIGHTS).log() - 0.5 * distance / total - 0.5 * math.prod(SHAPE) * total.log()
        return torch.stack([log[:, y == CLASS_OF].logsumexp(1) for y in range(3)], dim=1)


def of_classes(x_t: torch.Tensor, n: Any, labels: torch.Tensor, schedule: dv.NoiseSchedule = SCHEDULE) -> dv.Posterior:
    """Each image's posterior given its class, from that class's own mixture."""
    each = []
    for i, y in enumerate(labels.tolist()):
        each.append(mixture(schedule, y)(x_t[i : i + 1], int(n[i]) if isinstance(n, torch.Tensor) else n))
    return dv.Posterior(torch.cat([p.mean for p in each]), torch.cat([p.eps for p in each]))


def closely(found: dv.Posterior, expected: dv.Posterior, atol: float = 1e-11) -> None:
    torch.testing.assert_close(found.mean, expected.mean, rtol=0, atol=atol)
    torch.testing.assert_close(found.eps, expected.eps, rtol=0, atol=atol)


# ---- what is computed ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 25, N, torch.tensor([1, 30, 60, 2]), SCHEDULE.level(12)])
def test_an_exact_classifier_gives_the_exact_denoiser_of_a_class(n: Any) -> None:
    x_t = 0.4 * X_T if isinstance(n, int) and n < 3 else X_T
    guided = mixture().with_classifier(ExactClassifier())
    expected = of_classes(x_t, n, LABELS)
    closely(guided(x_t, n, LABELS), expected)
    assert float((expected.mean - mixture()(x_t, n).mean).abs().max()) > 1e-3


@pytest.mark.parametrize(
    "schedule", [dv.NoiseSchedule.edm(N, 0.05, 20.0), dv.NoiseSchedule.flow(N)], ids=["edm", "flow"]
)
def test_it_holds_where_alpha_and_sigma_have_another_scale(schedule: dv.NoiseSchedule) -> None:
    told = dv.NoiseSchedule(schedule.alpha, schedule.sigma, np.arange(N + 1.0) - 1, schedule.prior_std)
    guided = mixture(told).with_classifier(ExactClassifier(told))
    for n in (3, 30, N - 1):
        x_t = X_T * told.sigma[n]
        closely(guided(x_t, n, LABELS), of_classes(x_t, n, LABELS, told), 1e-10)


@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0, -1.0])
def test_the_push_is_s_times_that_of_one(scale: float) -> None:
    """ε̂ is linear in s, and x̂_0 and ε̂ keep to x_t = α x̂_0 + σ ε̂."""
    guided = mixture().with_classifier(ExactClassifier(), scale)(X_T, 25, LABELS)
    free, given = mixture()(X_T, 25), of_classes(X_T, 25, LABELS)
    torch.testing.assert_close(guided.eps, free.eps + scale * (given.eps - free.eps), rtol=0, atol=1e-11)
    level = SCHEDULE.level(25)
    torch.testing.assert_close(level.alpha * guided.mean + level.sigma * guided.eps, X_T, rtol=0, atol=1e-11)


def test_samples_tables_and_bounds_are_those_of_the_class() -> None:
    """s = 1: guided sampling of a class is sampling from its own mixture, with the same numbers."""
    guided, own = mixture().with_classifier(ExactClassifier()), mixture(of=1)
    images, options = own.sample(200, seed=1), {"tolerance": 0.1, "indices": [1, 20, N], "progress": False}
    table = dv.estimate(guided, images, conditions=np.ones(200, dtype=int), **options)
    expected = dv.estimate(own, images, **options)
    for n in (1, 20, N):
        assert table.posterior_variance(n) == pytest.approx(expected.posterior_variance(n), rel=1e-4)
    steps, ones = [1, 10, 30, N], torch.ones(6, dtype=torch.int64)
    samples = dv.Sampler(guided, dv.Analytic(table), steps).sample(6, seed=2, conditions=ones)
    torch.testing.assert_close(
        samples, dv.Sampler(own, dv.Analytic(expected), steps).sample(6, seed=2), rtol=0, atol=1e-4
    )
    bounds = [
        float(dv.density_bound(*pair, images[:9], steps, decoder_variance=0.02, conditions=given, progress=False))
        for *pair, given in ((guided, dv.Analytic(table), [1] * 9), (own, dv.Analytic(expected), None))
    ]
    assert bounds[0] == pytest.approx(bounds[1], abs=1e-4)


class Labelled(torch.nn.Module):
    """As guided-diffusion's networks: class labels in, 2C channels out."""

    def __init__(self) -> None:
        super().__init__()
        self.classes = torch.nn.Embedding(3, 2, dtype=torch.float64)
        self.calls: list[Any] = []

    def forward(self, x: torch.Tensor, timestep: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        self.calls.append((x.requires_grad, labels))
        shift = 0.0 if labels is None else self.classes(labels)[:, :, None, None]
        return torch.cat([torch.tanh(x + shift), torch.sin(3 * x) + 0.01 * timestep[:, None, None, None]], dim=1)


@pytest.mark.parametrize("conditional", [True, False])
@pytest.mark.parametrize("clip", [None, (-0.7, 0.7)])
def test_of_two_c_channels_and_labels(conditional: bool, clip: Any) -> None:
    """Dhariwal and Nichol's model: labels for network and classifier, and a learned range, which is not guided."""
    network, classifier = Labelled(), ExactClassifier()
    plain = dv.Denoiser(network, SCHEDULE, shape=SHAPE, clip=None, conditional=conditional)
    guided = dv.Denoiser(network, SCHEDULE, shape=SHAPE, clip=clip, conditional=conditional).with_classifier(
        classifier, 2
    )
    found = guided(X_T, 25, LABELS)
    assert (network.calls[-1][1] is not None) == conditional
    free = plain(X_T, 25, LABELS if conditional else None)
    level, x = SCHEDULE.level(25), X_T.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(classifier(x, torch.full((4,), 24)).log_softmax(1)[range(4), LABELS].sum(), x)
    eps = free.eps - 2 * level.sigma * gradient
    mean = (X_T - level.sigma * eps) / level.alpha
    closely(found, dv.Posterior(mean if clip is None else mean.clamp(*clip), eps))
    assert found.range is not None
    assert free.range is not None
    assert torch.equal(found.range, free.range)
    for covariance in (dv.LearnedRange(), dv.LearnedVariance(respaced=True)):
        images = dv.Sampler(guided, covariance, [1, 30, N]).sample(4, conditions=LABELS)
        assert bool(torch.isfinite(images).all())


def test_beside_classifier_free_guidance() -> None:
    network = Labelled()
    both = dv.Denoiser(network, SCHEDULE, shape=SHAPE, clip=None, guidance_scale=3.0, unconditional=0, conditional=True)
    closely(
        both.with_classifier(ExactClassifier())(X_T, 25, LABELS),
        both.with_classifier(ExactClassifier()).with_guidance(3.0)(X_T, 25, LABELS),
        0,
    )
    one = both.with_guidance(1.0).with_classifier(ExactClassifier())(X_T, 25, LABELS)
    push = one.eps - both.with_guidance(1.0)(X_T, 25, LABELS).eps
    three = both.with_classifier(ExactClassifier())(X_T, 25, LABELS)
    torch.testing.assert_close(three.eps, both(X_T, 25, LABELS).eps + push, rtol=0, atol=1e-12)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction", "previous_x", "edm"])
def test_every_prediction_type(prediction: Any) -> None:
    plain = dv.Denoiser(lambda x, t: torch.tanh(x), SCHEDULE, prediction, SHAPE, clip=None, conditional=False)
    found, free = plain.with_classifier(ExactClassifier())(X_T, 25, LABELS), plain(X_T, 25)
    push = of_classes(X_T, 25, LABELS).eps - mixture()(X_T, 25).eps
    torch.testing.assert_close(found.eps, free.eps + push, rtol=0, atol=1e-11)


# ---- how it is used -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_gradients_are_computed_whatever_the_caller_wants(mode: Any) -> None:
    guided, classifier = mixture(), ExactClassifier()
    guided = guided.with_classifier(classifier)  # type: ignore[assignment]
    classifier.train()
    with mode():
        found = guided(X_T.clone(), 25, LABELS)
        assert torch.is_grad_enabled() == (mode is torch.enable_grad)
    assert not found.mean.requires_grad
    with torch.inference_mode():
        closely(found, of_classes(X_T, 25, LABELS))
    (x, timestep, training), *_ = classifier.seen
    assert timestep.tolist() == [24] * 4
    assert not training
    assert classifier.training
    assert x.data_ptr() != X_T.data_ptr()
    assert classifier.means.grad is None


def test_the_guided_mean_has_a_gradient_where_one_is_wanted() -> None:
    """As measurement guidance and OCM's targets ask for: σ²/α times the Jacobian is the class's own covariance."""
    n, x_t = 25, X_T.clone().requires_grad_()
    guided = mixture().with_classifier(ExactClassifier())
    (found,) = torch.autograd.grad(guided(x_t, n, LABELS).mean.sum(), x_t)
    (expected,) = torch.autograd.grad(of_classes(x_t, n, LABELS).mean.sum(), x_t)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_a_classifier_in_half_precision() -> None:
    class Half(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out = torch.nn.Linear(math.prod(SHAPE), 3).requires_grad_(False)

        def forward(self, x_t: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            x_t += 0  # it may write into its input
            return self.out(x_t.flatten(1))

    torch.manual_seed(0)
    plain = dv.Denoiser(lambda x, t: torch.tanh(x), SCHEDULE, shape=SHAPE, conditional=False)
    classifier, x_t = Half(), X_T.float()
    full = plain.with_classifier(classifier)(x_t, 25, LABELS)
    low = plain.with_classifier(classifier.bfloat16())(x_t, 25, LABELS)
    assert low.eps.dtype == torch.float32
    torch.testing.assert_close(low.eps, full.eps, rtol=0, atol=0.01)
    assert torch.equal(x_t, X_T.float())
    assert float((full.eps - plain(x_t, 25).eps).abs().max()) > 0.05


# ---- whose table it is --------------------------------------------------------------------------------------------


def small_classifier(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)

    class Small(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out = torch.nn.Linear(math.prod(SHAPE), 3)

        def forward(self, x_t: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            return self.out(x_t.flatten(1))

    return Small()


class Network(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(0.8))

    def forward(self, x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.weight * x)


@pytest.mark.parametrize("kind", ["network", "oracle", "function"])
def test_a_table_belongs_to_network_classifier_and_scale(kind: str, tmp_path: Any) -> None:
    network = Network() if kind == "network" else lambda x, t: torch.tanh(x)
    plain = mixture() if kind == "oracle" else dv.Denoiser(network, SCHEDULE, shape=SHAPE, clip=None, conditional=False)
    guided = plain.with_classifier(small_classifier(), 2.0)
    images, labels = mixture().sample(64, seed=1), np.arange(64) % 3
    dv.estimate(guided, images, 9.0, indices=[1, N], conditions=labels, progress=False).save(tmp_path / "t.safetensors")
    table = dv.VarianceTable.load(tmp_path / "t.safetensors")
    assert "classifier scale 2" in table.summary()
    with pytest.raises(
        dv.InputError, match=r"measured with guidance \(scale 2\), whose mean is not the posterior mean"
    ):
        table.posterior_variance(1, "score_norm")
    table.check(plain.with_classifier(small_classifier(), 2.0))
    others = [plain.with_classifier(small_classifier(1), 2.0), plain.with_classifier(small_classifier(), 3.0)]
    for other in [*others, plain] if kind != "function" else others:
        with pytest.raises(dv.InputError, match="made for another model"):
            table.check(other)
    if kind != "function":  # of which nothing is known
        of_all = dv.estimate(plain, images, 9.0, indices=[1, N], progress=False)
        with pytest.raises(dv.InputError, match="made for another model"):
            of_all.check(guided)


def test_of_one_in_half_precision_too() -> None:
    images, labels = mixture().sample(64, seed=1), np.arange(64) % 3

    def guided(network: torch.nn.Module, scale: float = 2.0) -> dv.Denoiser:
        plain = dv.Denoiser(network, SCHEDULE, shape=SHAPE, clip=None, conditional=False)
        return plain.with_classifier(small_classifier(), scale)

    table = dv.estimate(guided(Network()), images, 9.0, indices=[1, N], conditions=labels, progress=False)
    table.check(guided(Network().bfloat16()))
    with pytest.raises(dv.InputError, match="made for another model"):
        table.check(guided(Network().bfloat16(), 3.0))


def test_with_bayes_rule_the_mean_is_a_posteriors() -> None:
    """At s = 1, so that the estimators that ask for one may be used."""
    guided, own = mixture().with_classifier(ExactClassifier()), mixture(of=1)
    images, options = own.sample(100, seed=1), {"tolerance": 0.2, "indices": [1, N], "progress": False}
    table = dv.estimate(guided, images, conditions=[1] * 100, **options)
    expected = dv.estimate(own, images, **options)
    for estimator in ("score_norm", "data_variance"):
        found = table.posterior_variance(N, estimator)  # type: ignore[arg-type]
        assert found == pytest.approx(expected.posterior_variance(N, estimator), rel=1e-3)  # type: ignore[arg-type]


def test_identities_name_the_scale() -> None:
    plain = dv.Denoiser(Network(), SCHEDULE, shape=SHAPE, conditional=False)
    two, three = (plain.with_classifier(small_classifier(), s).identity() for s in (2.0, 3.0))
    assert "classifier scale: one has 2.0, two 3.0" in two.mismatch(three, "one", "two")
    assert plain.with_classifier(small_classifier(), 2.0).identity().mismatch(two, "one", "two") == ""


# ---- what is refused ------------------------------------------------------------------------------------------------


def constant(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    return torch.zeros(len(x), 3)


def failing(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("no luck")


@pytest.mark.parametrize(
    ("classifier", "said"),
    [
        (constant, "logits do not depend on x_t, or were computed without gradients"),
        (lambda x, t: x.flatten(1)[:, :1], r"returned \(4, 1\) for 4 images; expected logits \(4, K\)"),
        (lambda x, t: x.flatten(1)[:2], r"returned \(2, 18\) for 4 images"),
        (lambda x, t: x, r"returned \(4, 2, 3, 3\) for 4 images"),
        (lambda x, t: x.flatten(1).long(), r"returned \(4, 18\) for 4 images; expected .*floats"),
        (lambda x, t: None, "returned NoneType for 4 images"),
        (lambda x, t: x.flatten(1)[:, :2], "class labels go from 0 to 1 for this network, but they are from 0 to 2"),
    ],
)
def test_logits(classifier: Any, said: str) -> None:
    with pytest.raises(dv.InputError, match=said):
        mixture().with_classifier(classifier)(X_T, 25, LABELS)


def test_a_classifier_that_fails_is_named() -> None:
    with pytest.raises(dv.NetworkError, match=r"the classifier failed at index n=25, in a batch of 4.*no luck"):
        mixture().with_classifier(failing)(X_T, 25, LABELS)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (None, "needs a class label for each image, but none was given"),
        (LABELS[:2], r"one for each of 4 images, but they are of shape \(2,\) and dtype torch.int64"),
        (LABELS.double(), "whole numbers for labels"),
        ({"label": LABELS}, "they are of a nest"),
        (LABELS + 1, "from 0 to 2 for this network, but they are from 1 to 3"),
    ],
)
def test_labels(labels: Any, said: str) -> None:
    with pytest.raises(dv.InputError, match=said):
        mixture().with_classifier(ExactClassifier())(X_T, 25, labels)


def test_runs_without_labels() -> None:
    guided = mixture().with_classifier(ExactClassifier())
    with pytest.raises(dv.InputError, match="needs a class label for each image, but none was given"):
        dv.Sampler(guided, dv.FixedLarge(), 4).sample(2)
    with pytest.raises(dv.InputError, match="needs a class label for each image, but none was given"):
        dv.estimate(guided, mixture().sample(32), 9.0, indices=[1], progress=False)


def test_a_network_of_which_it_is_not_known() -> None:
    unknown = dv.Denoiser(lambda x, t, *_: x, SCHEDULE, shape=SHAPE)
    with pytest.raises(dv.InputError, match=r"takes class labels too.* is not known; make it with Denoiser\(…, cond"):
        unknown.with_classifier(ExactClassifier())


@pytest.mark.parametrize("n", [N, torch.tensor([1, 2, N, 3]), dv.NoiseSchedule.flow(N).level(N)])
def test_levels_without_signal(n: Any) -> None:
    schedule = dv.NoiseSchedule.flow(N)
    guided = mixture(schedule).with_classifier(ExactClassifier(schedule))
    with pytest.raises(dv.InputError, match=r"level without signal \(alpha = 0\), where a classifier's gradient says"):
        guided(X_T, n, LABELS)
