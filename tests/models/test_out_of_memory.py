"""A network that needs more memory than there is, for real: processes that may not have more than some gigabytes."""

import os
import re
import resource
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from many import Many, many

import diffusion_var as dv

SCHEDULE = dv.NoiseSchedule.linear(100)
#: Of memory beyond what the process has by then: for 32 images, and not for 64. It is asked for and not touched, and of
#: a size that what the process holds unused, or takes for a thread in the meantime, does not count beside it.
ROOM, OF_AN_IMAGE = 3 << 30, 64 << 20
ALLOCATE = {"torch": lambda size: torch.empty(size, dtype=torch.uint8), "numpy": lambda size: np.empty(size, np.uint8)}

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the limit of address space is Linux's"),
    pytest.mark.filterwarnings("ignore:the network has no weights"),
]


class Greedy:
    """0.5 x, for which there is room: from the third batch on it needs 64 megabytes an image."""

    def __init__(self, by: str) -> None:
        self.allocate, self.sizes = ALLOCATE[by], list[int]()

    def __call__(self, x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        if len(self.sizes) == 2:
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, resource.RLIM_INFINITY))
        if len(self.sizes) >= 2:
            self.allocate(len(x) * OF_AN_IMAGE)
        self.sizes.append(len(x))
        return 0.5 * x


def pictures() -> torch.Tensor:
    return torch.randint(0, 256, (256, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def estimated(denoiser: dv.Denoiser, **given: Any) -> Any:
    table = dv.estimate(denoiser, pictures(), 9.0, indices=[5, 50, 90], progress=False, **given)
    return table.posterior_variance(50)


def bounded(denoiser: dv.Denoiser, **given: Any) -> Any:
    return dv.bits_per_dim(denoiser, dv.FixedSmall(), pictures(), 4, progress=False, **given).value


def sampled(denoiser: dv.Denoiser, checkpoint: None, **given: Any) -> Any:
    return dv.Sampler(denoiser, dv.FixedSmall(), 4).sample(70, **given).sum().item()


def denoiser_of(network: Any) -> dv.Denoiser:
    return dv.Denoiser(network, SCHEDULE, shape=(1, 4, 4))


def fails_then_finishes(run: Any, by: str, checkpoint: Path | None) -> Any:
    """What is said of batches of 64; evaluations until then, and with the batch size that is named; what that gives."""
    network = Greedy(by)
    with pytest.raises(dv.NetworkError) as caught:
        run(denoiser_of(network), checkpoint=checkpoint, batch_size=64)
    said, until = str(caught.value), sum(network.sizes)
    named = int(re.search(r"try (\d+)", said)[1])  # type: ignore[index]
    value = run(denoiser_of(network), checkpoint=checkpoint, batch_size=named)
    return said, until, sum(network.sizes) - until, value


@pytest.mark.parametrize("by", ["torch", "numpy"])
@pytest.mark.parametrize("run", [estimated, bounded, sampled])
def test_the_batch_size_that_is_named_works_and_nothing_is_lost(run: Any, by: str, tmp_path: Path) -> None:
    checkpoint, sizes = None if run is sampled else tmp_path / "c", list[int]()
    said, until, after, value = many(1, fails_then_finishes, run, by, checkpoint)[0]
    assert ", in a batch of 64, after 128 evaluations of this run: out of memory (" in said
    assert "; use a smaller batch size: try 32" in said
    kept = f"; the work until then is kept in {checkpoint}, from where the same run goes on."
    assert said.endswith(kept if checkpoint else "try 32.")
    undisturbed = run(denoiser_of(lambda x, t: (sizes.append(len(x)), 0.5 * x)[1]), checkpoint=None, batch_size=32)
    assert value == pytest.approx(undisturbed, rel=1e-5)
    assert (until, after) == (128, sum(sizes) - (128 if checkpoint else 0))


def greedy_second(checkpoint: Path) -> None:
    network = Greedy("torch") if os.environ["RANK"] == "1" else lambda x, t: 0.5 * x
    estimated(denoiser_of(network), checkpoint=checkpoint, batch_size=64)


def test_the_process_that_runs_out_of_memory_is_named_by_all(tmp_path: Path) -> None:
    first, second = Many(2, greedy_second, tmp_path / "c").ends()
    said = "out of memory (RuntimeError: "
    assert second.error.startswith("NetworkError: the network failed at ")
    assert first.error.startswith("RankError: rank 1 of 2 failed: the network failed at ")
    for end in (first, second):
        assert said in end.error
        assert f"try 32; the work until then is kept in {tmp_path / 'c'}, from where" in end.error
    assert (tmp_path / "c").exists()


@pytest.mark.parametrize(("rows", "half"), [(2, 1), (7, 3), (16, 8), (31, 15), (32, 16), (48, 16), (100, 48), (64, 32)])
def test_half_of_a_batch_is_in_whole_shards_where_there_are_two(rows: int, half: int) -> None:
    with pytest.raises(dv.NetworkError, match=rf"in a batch of {rows}: .* try {half}\."):
        denoiser_of(no_memory)(torch.zeros(rows, 1, 4, 4), 50)


def no_memory(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    raise MemoryError


def test_where_one_image_does_not_fit_no_batch_size_helps() -> None:
    with pytest.raises(dv.NetworkError, match=r"not even a batch of 1 fits: use half precision, a device with more"):
        denoiser_of(no_memory)(torch.zeros(1, 1, 4, 4), 50)
