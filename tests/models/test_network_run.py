"""Networks that are random, or look at the whole batch, in evaluation mode are noticed at the start of a run."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import diffusion_var as dv

SHAPE = (2, 4, 4)
SCHEDULE = dv.NoiseSchedule.linear(100, 1e-3, 0.1)
Network = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def dropout(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    return nn.functional.dropout(0.5 * x, 0.2, training=True)


def noise(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    return 0.5 * x + 0.05 * torch.randn_like(x)


def numpy_noise(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    return 0.5 * x * float(np.random.normal(1.0, 0.1))  # noqa: NPY002


def python_noise(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    return 0.5 * x * random.uniform(0.5, 1.5)


def closed_over() -> Network:
    generator = torch.Generator().manual_seed(0)
    return lambda x, _: 0.5 * x + 0.1 * torch.randn(x.shape, generator=generator)


class Held(nn.Module):
    """With a generator that one of its parts holds."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Identity()
        self.part.generator = np.random.default_rng(0)  # type: ignore[assignment]

    def forward(self, x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        drawn: Any = self.part.generator
        return x * float(drawn.uniform(0.4, 0.6))


class Normalising(nn.Module):
    """Statistics of the batch, in evaluation mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(2, track_running_stats=False)

    def forward(self, x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.norm(x)
        return out


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """The generators that everybody draws from begin alike, and are left as they were."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002 (the networks draw from it)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        yield
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002


RANDOM = [dropout, noise, numpy_noise, python_noise, closed_over(), Held()]


def model(network: Any, prediction: Any = "epsilon") -> dv.Denoiser:
    return dv.Denoiser(network, SCHEDULE, prediction, SHAPE)


def pictures() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(3).integers(0, 256, (16, *SHAPE), dtype=np.uint8))


def estimated(denoiser: dv.Denoiser) -> Any:
    return dv.estimate(denoiser, pictures(), 1e3, indices=[1, 50, 100], progress=False)


def sampled(denoiser: dv.Denoiser) -> Any:
    return dv.Sampler(denoiser, dv.FixedLarge(), 4).sample(6, batch_size=3)


def sampled_one(denoiser: dv.Denoiser) -> Any:
    return dv.Sampler(denoiser, dv.FixedLarge(), 4).sample(1)


def bounded(denoiser: dv.Denoiser) -> Any:
    return dv.density_bound(denoiser, dv.FixedLarge(), pictures(), 4, decoder_variance=0.01)


RUNS = [estimated, sampled, sampled_one, bounded]


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("network", RANDOM, ids=lambda n: getattr(n, "__name__", type(n).__name__))
def test_a_random_network_is_said_once_a_run(run: Any, network: Any) -> None:
    torch.manual_seed(1)
    denoiser = model(network)
    for _ in range(2):
        with pytest.warns(dv.DiffusionVarWarning, match=r"random at evaluation: .* differs by [0-9.]+ of") as caught:
            run(denoiser)
        assert len(caught) == 1
        assert caught[0].filename == __file__


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction", "flow", "score", "edm"])
def test_whatever_it_predicts(prediction: str) -> None:
    torch.manual_seed(1)
    with pytest.warns(dv.DiffusionVarWarning, match="random at evaluation"):
        sampled(model(dropout, prediction))


@pytest.mark.parametrize("run", [estimated, sampled, bounded])
def test_a_network_that_looks_at_the_whole_batch(run: Any) -> None:
    with pytest.warns(dv.DiffusionVarWarning, match="depends on the other images of the batch") as caught:
        run(model(Normalising()))
    assert len(caught) == 1


class Layered(nn.Module):
    """Draws, as layers do that may drop something, but uses nothing of it; rounds as GPUs do."""

    def forward(self, x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return 0.5 * x * (1.0 + 1e-6 * torch.rand(()))


@pytest.mark.parametrize("run", RUNS)
def test_rounding_is_let_pass_and_remembered(run: Any) -> None:
    network, rows = Layered(), []
    network.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    denoiser = model(network)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(denoiser)
        first = sum(rows)
        run(denoiser)
    assert sum(rows) - first < first  # the second run need not look again


@pytest.mark.parametrize("run", RUNS)
def test_a_sound_network_is_evaluated_no_more_than_is_said(run: Any) -> None:
    rows = []

    def network(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        rows.append(len(x))
        return 0.5 * x

    found = run(model(network))
    expected = 4 * len(found) if isinstance(found, torch.Tensor) else found.evaluations
    assert sum(rows) == expected
