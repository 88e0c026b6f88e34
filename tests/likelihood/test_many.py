"""The likelihoods in several processes: the same numbers as in one, and checkpoints that any number takes on."""

import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from many import Many, many
from small_likelihoods import STEPS, Network, pictures, small_denoiser

import diffusion_var as dv
from diffusion_var.documents import read_document, write_document
from diffusion_var.likelihood import ode, run
from diffusion_var.likelihood.ode import ode_likelihood
from diffusion_var.likelihood.step_costs import step_costs


class Disturbed(Network):
    """Does something in its `at`-th call in the second process; counts its calls."""

    def __init__(self, at: int = 0, act: Any = None) -> None:
        super().__init__()
        self.at, self.act, self.calls = at, act, 0

    def forward(self, x_t: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.act is not None and self.calls == self.at and os.environ.get("RANK", "1") == "1":
            self.act()
        if self.act is not None:
            time.sleep(0.01)
        return super().forward(x_t, timestep)


def bits(path: Path | None = None, at: int = 0, act: Any = None, **options: Any) -> tuple[str, int]:
    torch.set_num_threads(1)
    network = Disturbed(at, act)
    options = {"seed": 2, "draws": 2, "batch_size": 16, "checkpoint": path, **options}
    found = dv.bits_per_dim(small_denoiser(network), dv.FixedLarge(), pictures(150), STEPS, **options)
    return repr(found.to_dict()), network.calls


def flow(path: Path | None = None, at: int = 0, act: Any = None, **options: Any) -> tuple[str, int]:
    torch.set_num_threads(1)
    network = Disturbed(at, act)
    options = {"seed": 2, "draws": 2, "batch_size": 16, "levels": 256, "checkpoint": path, **options}
    found = ode_likelihood(small_denoiser(network), pictures(60), 5, **options)
    return f"{found.per_image.tolist()} {found.to_dict()}", network.calls


def costs() -> tuple[str, int]:
    network = Disturbed()
    found = step_costs(small_denoiser(network), dv.FixedLarge(), pictures(100), [1, 12, 40, 90], batch_size=16)
    assert found.decoder is not None
    return f"{found.values.tolist()} {found.standard_errors.tolist()} {found.decoder.values.tolist()}", network.calls


def sampled_bits() -> tuple[str, int]:
    return bits(step_samples=2)


@pytest.mark.parametrize("measure", [bits, sampled_bits, flow, costs])
def test_two_processes_share_the_batches_of_one(measure: Any) -> None:
    expected, calls = measure()
    first, second = many(2, measure)
    assert first[0] == second[0] == expected
    assert first[1] + second[1] == calls
    assert abs(first[1] - second[1]) <= max(8, 0.2 * calls)


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def asked() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("measure", [bits, flow])
@pytest.mark.parametrize(("act", "others"), [(killed, 1), (asked, 3)])
def test_another_number_of_processes_goes_on(tmp_path: Path, measure: Any, act: Any, others: int) -> None:
    path = tmp_path / "c"
    expected, calls = measure()
    first, second = Many(2, measure, path, 4, act).ends()
    said = "RankError: rank 1 of 2 was killed" if act is killed else "Stopped: 15"
    assert (first.error or "").startswith(said)
    assert second.code == (-signal.SIGKILL if act is killed else 0)
    found = many(others, measure, path)
    assert {numbers for numbers, _ in found} == {expected}
    # Of the stopped ones nothing is done twice; of the one that was killed, what it had not told.
    assert 0 < sum(more for _, more in found) < calls
    assert many(1, measure, path) == [(expected, 0)]


@pytest.mark.parametrize(("measure", "module"), [(bits, run), (flow, ode)])
def test_checkpoints_of_the_first_version_are_continued(tmp_path: Path, measure: Any, module: Any) -> None:
    """Without `done`: what was done were the first rows of all, or of the one chunk under way."""
    expected, calls = measure()
    for stop in (calls // 3, calls // 2):
        path = tmp_path / f"{stop}"
        with pytest.raises(KeyboardInterrupt):
            measure(path, stop, _interrupt)
        arrays, record = read_document(path, module.FORM)
        del arrays["done"]
        if "values" in arrays:  # which had the same shape at the end
            values = np.zeros((2, 64, arrays["values"].shape[2]))
            values[:, : arrays["values"].shape[1]] = arrays["values"]
            arrays["values"] = values
        write_document(path, replace(module.FORM, version=1), arrays, {**record.model_dump(), "marked": False})
        first, second = many(2, measure, path)
        assert first[0] == second[0] == expected
        assert 0 < first[1] + second[1] < calls


def _interrupt() -> None:
    raise KeyboardInterrupt


def test_what_a_process_finds_is_said_with_image_and_step() -> None:
    def broken() -> None:
        images = pictures(150)
        network = Network()
        bound = dv.Bound(small_denoiser(network), dv.FixedLarge(), STEPS)
        network.forward = lambda x, t: x * (x.mean() / 0 if os.environ["RANK"] == "1" else 1.0)  # type: ignore[method-assign]
        bound.evaluate(images, batch_size=16)

    first, second = (end.error or "" for end in Many(2, broken).ends())
    assert second.startswith("NumericalError: the term of the step")
    assert "for image" in second
    assert first.startswith("RankError: rank 1 of 2 failed: the term of the step")


def test_different_seeds_are_found_before_the_work() -> None:
    def differ() -> None:
        bits(seed=int(os.environ["RANK"]), act=killed, at=1)

    for end in Many(2, differ).ends():
        assert (end.error or "").startswith("InputError: the processes differ in seed")


def test_more_processes_than_batches_is_said_once() -> None:
    def idle() -> str:
        with pytest.warns(dv.DiffusionVarWarning, match="more processes \\(3\\) than batches of \\w+ \\(2\\)") as said:
            dv.bits_per_dim(small_denoiser(), dv.FixedLarge(), pictures(5), STEPS, batch_size=16)
        return str(len(said))

    ends = Many(3, idle).ends()
    assert ends[0].value == "1"
    assert all("DID NOT WARN" in (end.error or "") for end in ends[1:])


def test_what_covariances_mend_is_counted_for_all() -> None:
    class Counting(dv.FixedLarge):
        mended = 1

        def counts(self) -> list[int]:
            return [self.mended]

        def add_counts(self, counts: list[int]) -> None:
            self.mended += counts[0]

    def mended() -> int:
        covariance = Counting()
        dv.bits_per_dim(small_denoiser(), covariance, pictures(5), STEPS, batch_size=4)
        return covariance.mended

    assert many(3, mended) == [3, 3, 3]
