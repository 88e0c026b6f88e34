"""Conditions in the estimator: each image's own, or a list drawn from at random beside the images."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from populations import exact_population

import diffusion_var as dv
from diffusion_var.models.conditions import digest_of
from diffusion_var.process.structure import make_structure

SCHEDULE = dv.NoiseSchedule.linear(100)
SHAPE = (1, 2, 3)
LABELS = np.arange(20) % 2
STRUCTURES = ("isotropic", "pixel", "dct")
OPTIONS: dict[str, Any] = {"tolerance": 0.02, "indices": [5, 40, 90], "progress": False}

MEANS = np.random.default_rng(1).normal(0.0, 0.7, (2, *SHAPE))
VARIANCE = np.random.default_rng(2).uniform(0.1, 0.5, SHAPE)


class ClassGaussian(torch.nn.Module):
    """E[x_0|x_t, label] for Gaussian classes of one variance; keeps the labels that it was given."""

    def __init__(self, hook: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        arrays = {"means": MEANS, "variance": VARIANCE, "alpha": SCHEDULE.alpha, "sigma": SCHEDULE.sigma}
        for name, array in arrays.items():
            self.register_buffer(name, torch.tensor(array))
        self.hook = hook
        self.labels: list[torch.Tensor] = []

    def forward(self, x_t: torch.Tensor, timestep: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        self.hook()
        self.labels.append(label.clone())
        alpha, sigma = (level[timestep + 1][:, None, None, None] for level in (self.alpha, self.sigma))
        gain = alpha * self.variance / (alpha**2 * self.variance + sigma**2)
        mean = self.means[label.long()]
        return mean + gain * (x_t.double() - alpha * mean)


def denoiser(network: Any = None, **options: Any) -> dv.Denoiser:
    network = ClassGaussian() if network is None else network
    return dv.Denoiser(network, SCHEDULE, "sample", SHAPE, clip=None, **options)


def images() -> np.ndarray[Any, Any]:
    """Within each class exactly the classes' moments, so that closed forms hold exactly."""
    basis = make_structure("pixel", SHAPE)
    out = np.empty((20, *SHAPE))
    for label in range(2):
        out[label::2] = exact_population(10, MEANS[label], VARIANCE, basis, seed=label)
    return out


def estimated(conditions: Any, network: Any = None, **options: Any) -> dv.VarianceTable:
    return dv.estimate(denoiser(network), images(), conditions=conditions, **{**OPTIONS, **options})


def saved(table: dv.VarianceTable, folder: Path) -> bytes:
    table.save(folder / "t")
    return (folder / "t").read_bytes()


# ---- each image's own ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "conditions",
    [
        LABELS.tolist(),
        LABELS.astype(np.uint8),
        torch.from_numpy(LABELS),
        torch.from_numpy(LABELS).int(),
        dv.Conditions([0, 1], LABELS),
        dv.Conditions(torch.tensor([1, 0]), (1 - LABELS).tolist()),
        dv.Conditions(np.arange(7), LABELS),
    ],
    ids=["list", "array", "tensor", "int32 tensor", "positions", "positions in another order", "some of many"],
)
def test_labels_in_any_form_give_the_same_bytes(conditions: Any, tmp_path: Path) -> None:
    expected = saved(estimated(LABELS), tmp_path)
    assert saved(estimated(conditions), tmp_path) == expected
    assert saved(estimated(1 - LABELS), tmp_path) != expected


def test_embeddings_in_any_form_give_the_same_bytes(tmp_path: Path) -> None:
    vectors = np.random.default_rng(3).normal(size=(20, 4, 2)).astype(np.float32)
    seen: list[torch.Tensor] = []

    def network(x_t: torch.Tensor, timestep: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        seen.append(condition)
        return 0.3 * x_t + condition[:, :1, :1, None]

    forms = [vectors, vectors.astype(np.float64), vectors.tolist(), torch.from_numpy(vectors)]
    forms.append(dv.Conditions(vectors[::-1].copy(), 19 - np.arange(20)))
    found = {saved(estimated(form, network, tolerance=1e3), tmp_path) for form in forms}
    assert len(found) == 1
    assert {(c.dtype, tuple(c.shape[1:])) for c in seen} == {(torch.float32, (4, 2))}


# ---- a list drawn from at random ----------------------------------------------------------------------------------


def test_each_condition_is_used_about_equally_and_beside_every_image() -> None:
    """At n = 1 there is so little noise that x_t shows which image it was made of."""
    pictures = np.array([-0.6, 0.0, 0.6])[:, None, None, None] * np.ones((3, *SHAPE))
    counts = np.zeros((3, 4))

    def network(x_t: torch.Tensor, timestep: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        which = (x_t.mean((1, 2, 3)) / 0.6).round().long() + 1
        np.add.at(counts, (which.numpy(), condition.numpy() // 10), 1)
        return x_t + condition[:, None, None, None] / 30

    table = dv.estimate(
        denoiser(network), pictures, 0.02, indices=[1], conditions=dv.Conditions([0, 10, 20, 30]), progress=False
    )
    draws = table.evaluations
    assert counts.sum() == draws > 2000
    for found, share in ((counts.sum(0), 1 / 4), (counts.sum(1), 1 / 3), (counts, 1 / 12)):
        assert np.abs(found - draws * share).max() <= 4.5 * np.sqrt(draws * share * (1 - share))


def test_random_conditions_follow_the_seed(tmp_path: Path) -> None:
    first = saved(estimated(dv.Conditions([0, 1])), tmp_path)
    assert saved(estimated(dv.Conditions([0, 1])), tmp_path) == first
    networks = [ClassGaussian(), ClassGaussian()]
    for seed, network in enumerate(networks):
        estimated(dv.Conditions([0, 1]), network, seed=seed)
    labels = [torch.cat(network.labels)[:768] for network in networks]
    assert not torch.equal(*labels)


@pytest.mark.parametrize("batch_size", [7, 16, 100])
def test_random_conditions_do_not_depend_on_the_batch_size(batch_size: int) -> None:
    table, other = (estimated(dv.Conditions([0, 1]), batch_size=size) for size in (64, batch_size))
    assert np.array_equal(table.counts, other.counts)
    for name in table.structures:
        a, b = table.moments[name].means, other.moments[name].means
        assert np.abs(a - b).max() <= 1e-5 * np.abs(a).max()


@pytest.mark.parametrize("conditions", [dv.Conditions([0, 1]), LABELS], ids=["random", "labels"])
@pytest.mark.parametrize("stop", [1, 5, 12])
def test_a_resumed_run_gives_the_same_bytes(tmp_path: Path, conditions: Any, stop: int) -> None:
    expected = saved(estimated(conditions), tmp_path)
    calls: list[int] = []

    def interrupt() -> None:
        calls.append(1)
        if len(calls) == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        estimated(conditions, ClassGaussian(interrupt), checkpoint=tmp_path / "c")
    assert saved(estimated(conditions, checkpoint=tmp_path / "c"), tmp_path) == expected


@pytest.mark.parametrize(
    "other", [None, LABELS, dv.Conditions([1, 0]), dv.Conditions([0, 1, 1]), dv.Conditions([0, 1], LABELS)]
)
def test_a_checkpoint_with_other_conditions_is_refused(tmp_path: Path, other: Any) -> None:
    estimated(dv.Conditions([0, 1]), checkpoint=tmp_path / "c", tolerance=1e3)
    with pytest.raises(dv.InputError, match=r"belongs to another run \(different conditions\)"):
        estimated(other, checkpoint=tmp_path / "c")


@pytest.mark.parametrize("conditions", [LABELS, dv.Conditions([3, 4, 5])], ids=["labels", "random"])
def test_images_and_noise_are_those_of_a_run_without_conditions(tmp_path: Path, conditions: Any) -> None:
    def indifferent(x_t: torch.Tensor, timestep: torch.Tensor, condition: Any = None) -> torch.Tensor:
        return 0.8 * torch.tanh(1.3 * x_t)

    table = estimated(conditions, indifferent)
    assert table.details.pop("conditions")["count"] == (2 if conditions is LABELS else 3)
    assert saved(table, tmp_path) == saved(estimated(None, indifferent), tmp_path)


# ---- closed form --------------------------------------------------------------------------------------------------


def closed_forms(n: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Per pixel: the variance within a class, and what a label drawn at random adds to the residual. With the label of
    the other class x̂_0 is off by (1 − κα) times the difference of the means, half of the time."""
    alpha, sigma = SCHEDULE.alpha[n], SCHEDULE.sigma[n]
    kappa = alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2)
    within = VARIANCE * sigma**2 / (alpha**2 * VARIANCE + sigma**2)
    return within, 0.5 * ((1 - kappa * alpha) * (MEANS[1] - MEANS[0])) ** 2


@pytest.mark.parametrize("drawn", [False, True], ids=["labels", "random"])
def test_the_residual_of_gaussian_classes(drawn: bool) -> None:
    table = estimated(dv.Conditions([0, 1]) if drawn else LABELS, structures=STRUCTURES, tolerance=0.01)
    for n in OPTIONS["indices"]:
        within, added = closed_forms(n)
        expected = within + added if drawn else within
        found = table.posterior_variance(n)
        assert abs(found - expected.mean()) <= 4 * table.standard_error(n) + 2e-5 * expected.mean()
        pixel = table.posterior_variance(n, structure="pixel")
        relative = np.sqrt(np.mean((pixel / expected - 1) ** 2))
        assert relative <= 2.5 * table.relative_error(n, "pixel") + 2e-5
        if n > 5:  # where the label still matters, the test can tell the two apart
            other = within if drawn else within + added
            assert abs(found - other.mean()) > 6 * table.standard_error(n)


# ---- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dv.Conditions([]), r"conditions have shape \(0,\), but a list of at least one"),
        (lambda: dv.Conditions(3), r"conditions have shape \(\), but a list"),
        (lambda: dv.Conditions(["cat", "dog"]), "must be numbers .* embed prompts first"),
        (lambda: dv.Conditions([None]), "must be numbers"),
        (lambda: dv.Conditions([0.5, float("nan")]), "hold NaN or infinite"),
        (lambda: dv.Conditions(torch.tensor([[1.0], [float("-inf")]])), "hold NaN or infinite"),
        (lambda: dv.Conditions([0, 1], [0, 2]), "positions from 0 to 2, but there are 2 conditions"),
        (lambda: dv.Conditions([0, 1], [-1, 1]), "positions from -1 to 1, but there are 2"),
        (lambda: dv.Conditions([0, 1], [0.0, 1.0]), r"one whole number per image, .* dtype float64"),
        (lambda: dv.Conditions([0, 1], [[0, 1]]), r"one whole number per image, .* shape \(1, 2\)"),
        (lambda: dv.Conditions([0, 1], ["a"]), "one whole number per image"),
        (lambda: estimated([0] * 19), "conditions has 19 entries for 20 images; give one for each"),
        (lambda: estimated(np.zeros(21, int)), "conditions has 21 entries for 20 images"),
        (lambda: estimated(dv.Conditions([0, 1], LABELS[:-1])), "conditions has 19 entries for 20 images"),
        (lambda: estimated(1), r"conditions have shape \(\), but a list"),
        (lambda: estimated([]), r"conditions have shape \(0,\), but a list"),
        (lambda: estimated("a cat"), "must be numbers"),
        (lambda: estimated(["a cat"] * 20), r"embed prompts first \(denoiser.prompts.encode\)"),
        (lambda: estimated(np.full((20, 3), np.nan)), "hold NaN or infinite"),
    ],
)
def test_impossible_conditions_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(dv.InputError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_a_network_that_needs_a_condition_says_so() -> None:
    with pytest.raises(dv.InputError, match="this network needs a condition, but none was given"):
        dv.estimate(denoiser(conditional=True), images(), **OPTIONS)


# ---- nests --------------------------------------------------------------------------------------------------------


class Nested(ClassGaussian):
    """The same mean, told by a nest: the label as a one-hot embedding, and a shift that it takes back."""

    def forward(self, x_t: torch.Tensor, timestep: torch.Tensor, condition: Any) -> torch.Tensor:
        first, (shift,) = condition["embeds"], condition["added"]
        assert first.shape == (len(x_t), 2)
        assert shift.shape == (len(x_t), *SHAPE)
        return super().forward(x_t, timestep, first.argmax(1)) + shift - shift


def nest(labels: Any = LABELS) -> dict[str, Any]:
    one_hot = np.eye(2, dtype=np.float32)[labels]
    shift = np.random.default_rng(3).normal(size=(len(labels), *SHAPE)).astype(np.float32)
    return {"embeds": one_hot, "added": (shift,)}


def test_a_nest_of_conditions_is_given_as_it_is() -> None:
    """Dicts and tuples of tensors, one row for each image: the table of the labels themselves."""
    plain, nested = estimated(LABELS), estimated(nest(), Nested())
    assert nested.details["conditions"]["count"] == 20
    for n in OPTIONS["indices"]:
        assert nested.posterior_variance(n) == pytest.approx(plain.posterior_variance(n), rel=1e-6)
    by_position = dv.Conditions({"embeds": torch.eye(2), "added": (torch.zeros(2, *SHAPE),)}, LABELS)
    again = estimated(by_position, Nested())
    assert again.posterior_variance(40) == pytest.approx(plain.posterior_variance(40), rel=1e-6)
    assert again.details["conditions"]["count"] == 2


def test_a_resumed_run_knows_its_nest(tmp_path: Path) -> None:
    whole, calls = saved(estimated(nest(), Nested()), tmp_path), [0]

    def stop() -> None:
        calls[0] += 1
        if calls[0] == 8:
            raise KeyboardInterrupt

    checkpoint = tmp_path / "c"
    with pytest.raises(KeyboardInterrupt):
        estimated(nest(), Nested(stop), checkpoint=checkpoint)
    other = nest()
    other["added"][0][3, 0, 0, 0] += 1.0
    renamed = {"embeds": nest()["embeds"], "more": nest()["added"]}
    for wrong in (other, renamed, nest(1 - LABELS)):
        with pytest.raises(dv.InputError, match=r"another run \(different conditions\)"):
            estimated(wrong, Nested(), checkpoint=checkpoint)
    assert saved(estimated(nest(), Nested(), checkpoint=checkpoint), tmp_path) == whole


def test_every_leaf_keeps_its_kind() -> None:
    values = {"labels": [1, 0, 1], "embeds": np.ones((3, 2)), "pair": (torch.zeros(3), torch.ones(3, 1))}
    conditions = dv.Conditions(values)
    assert len(conditions) == 3
    found = conditions.take(np.array([2, 0]))
    assert found["labels"].dtype == torch.int64
    assert found["labels"].tolist() == [1, 1]
    assert found["embeds"].dtype == torch.float32
    assert [leaf.shape for leaf in found["pair"]] == [(2,), (2, 1)]
    assert set(found) == {"labels", "embeds", "pair"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: dv.Conditions({"a": np.zeros((3, 2)), "b": np.zeros((4, 2))}),
            r"conditions\['b'\] has shape \(4, 2\) for 3 conditions, as \['a'\] has; give one for each",
        ),
        (
            lambda: dv.Conditions((np.zeros(3), {"x": np.zeros(2)})),
            r"conditions\[1\]\['x'\] has shape \(2,\) for 3 conditions, as \[0\] has",
        ),
        (lambda: dv.Conditions({"a": np.zeros((0, 2))}), r"conditions\['a'\] have shape \(0, 2\), but a list"),
        (lambda: dv.Conditions({"a": [0.5, float("nan")]}), r"conditions\['a'\] hold NaN"),
        (lambda: dv.Conditions({"a": ["cat"]}), r"conditions\['a'\] must be numbers .*embed prompts first"),
        (lambda: dv.Conditions({}), "conditions holds no tensor"),
        (lambda: estimated({"a": np.zeros(19)}), "conditions has 19 entries for 20 images"),
        (
            lambda: denoiser(Nested())(torch.zeros(2, *SHAPE), 5, {"embeds": torch.zeros(3, 2)}),
            r"condition\['embeds'\] has shape \(3, 2\) for 2 images; give one for each",
        ),
    ],
)
def test_nests_that_do_not_fit_name_the_leaf(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(dv.InputError, match=message):
        make()


def test_a_digest_tells_values_places_and_names() -> None:
    one, two = torch.tensor([1.0, 2.0]), torch.tensor([3.0])
    nests = [one, two, {"a": one}, {"b": one}, (one, two), (two, one), {"a": one, "b": two}, {"a": two, "b": one}]
    assert len({digest_of(nest) for nest in nests}) == len(nests)
    assert digest_of({"a": one.clone(), "b": two.double()}) == digest_of({"a": one, "b": two})
