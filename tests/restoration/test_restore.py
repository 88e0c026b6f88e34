"""Restored images: what draws are, their mean and spread, and runs that are interrupted or shared."""

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from many import Many, many

import diffusion_var as dv
from diffusion_var import resume
from diffusion_var.randomness import generator, normal
from diffusion_var.restoration import restore as module
from diffusion_var.restoration.restore import Restoration, restore
from diffusion_var.sampling.sampler import Sampler

SHAPE, ROWS, DRAWS, STD = (1, 3, 4), 5, 4, 0.2
SCHEDULE = dv.NoiseSchedule.linear(100, 1e-3, 0.1)


def images() -> torch.Tensor:
    return normal(generator(1, "images of a test"), ROWS, *SHAPE).clamp(-1, 1)


def apply(x: torch.Tensor) -> torch.Tensor:
    """Every second column, smoothed: S has no closed form."""
    return (x + 0.3 * x.roll(1, -1) + 0.2 * x.roll(-1, -1))[..., ::2]


def denoiser(guidance: Any = "II", dtype: torch.dtype = torch.float32) -> dv.ConditionedDenoiser:
    variance = torch.linspace(0.05, 0.6, 12).reshape(SHAPE)
    base = dv.oracles.GaussianDenoiser(SCHEDULE, torch.zeros(SHAPE), variance)
    measurement = dv.Measurement(apply(images()).to(dtype), apply, noise=STD)
    return dv.ConditionedDenoiser(base, dv.PiGDM(), measurement, guidance, solver="cg")


def run(checkpoint: Any = None, **options: Any) -> Restoration:
    torch.set_num_threads(1)
    usual = {"draws": DRAWS, "batch_size": 3, "seed": 2, "progress": False}
    return restore(denoiser(), 4, checkpoint=checkpoint, **{**usual, **options})


def same(a: Restoration, b: Restoration) -> bool:
    counts = ("evaluations", "solves", "not_converged", "not_positive", "products")
    return torch.equal(a.draws, b.draws) and all(getattr(a, name) == getattr(b, name) for name in counts)


@pytest.fixture(scope="module")
def whole() -> Restoration:
    return run()


def test_draws_are_a_samplers_images(whole: Restoration) -> None:
    steps = dv.steps.log_snr(denoiser().schedule, 4)
    drawn = Sampler(denoiser(), dv.FixedSmall(), steps, tau=10.0).sample(ROWS * DRAWS, seed=2, batch_size=3)
    assert whole.draws.shape == (ROWS, DRAWS, *SHAPE)
    assert whole.draws.dtype == torch.float32
    assert torch.equal(whole.draws, drawn.reshape(DRAWS, ROWS, *SHAPE).transpose(0, 1))
    assert whole.evaluations == 4
    assert whole.solves == ROWS * DRAWS * 4
    assert whole.products > whole.solves  # by conjugate gradients
    assert (whole.not_converged, whole.not_positive) == (0, 0)
    assert repr(whole).startswith(f"Restoration(draws={(ROWS, DRAWS, *SHAPE)}, evaluations=4, solves=")


def test_mean_and_spread_are_those_of_the_draws(whole: Restoration) -> None:
    draws = whole.draws.numpy().astype(np.float64)
    assert np.abs(whole.mean.numpy() - draws.mean(1)).max() < 1e-6
    assert np.abs(whole.std.numpy() - draws.std(1, ddof=1)).max() < 1e-6
    one = run(draws=1)
    assert torch.isnan(one.std).all()
    assert torch.equal(one.draws[:, 0], one.mean)
    assert torch.equal(one.draws[:, 0], whole.draws[:, 0])  # more draws leave the first as it is


def test_batches_and_seeds(whole: Restoration) -> None:
    other = restore(denoiser(), 4, draws=DRAWS, batch_size=64, seed=2, progress=False)
    assert float((other.draws - whole.draws).abs().max()) < 1e-4
    assert float((run(seed=3).draws - whole.draws).abs().max()) > 0.1


def test_the_draws_follow_their_own_measurements(whole: Restoration) -> None:
    """What was measured comes out: each draw is nearest to its own measurement, of all."""
    far = (apply(whole.mean)[:, None] - apply(images())[None]).flatten(2).norm(dim=2)
    assert far.argmin(1).tolist() == [*range(ROWS)]


def test_noise_that_knows_the_measurement(whole: Restoration) -> None:
    den = denoiser()
    wide = restore(den, 4, covariance=den.posterior_noise(), draws=64, seed=2, progress=False)
    narrow = restore(denoiser(), 4, draws=64, seed=2, progress=False)
    assert float(wide.std.mean()) > 1.1 * float(narrow.std.mean())


# ---- interrupted and shared ------------------------------------------------------------------------------------------


def stopping(monkeypatch: pytest.MonkeyPatch, at: int, error: BaseException) -> None:
    """From now on the network fails at its call number `at`."""
    genuine, calls = dv.ConditionedDenoiser.__call__, iter(range(10**9))

    def counted(self: Any, *arguments: Any, **named: Any) -> Any:
        if next(calls) == at:
            raise error
        return genuine(self, *arguments, **named)

    monkeypatch.setattr(dv.ConditionedDenoiser, "__call__", counted)


@pytest.mark.parametrize("at", [0, 5, 13, 27])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), dv.NumericalError("NaN")], ids=["stop", "NaN"])
def test_an_interrupted_run_goes_on_to_the_byte(
    at: int, error: BaseException, whole: Restoration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stopping(patch, at, error)
        with pytest.raises(type(error)):
            run(tmp_path / "c")
    calls: list[int] = []
    genuine = dv.ConditionedDenoiser.__call__

    def counted(self: Any, x_t: Any, *arguments: Any, **named: Any) -> Any:
        calls.append(len(x_t))
        return genuine(self, x_t, *arguments, **named)

    monkeypatch.setattr(dv.ConditionedDenoiser, "__call__", counted)
    assert same(run(tmp_path / "c"), whole)
    assert sum(calls) == 4 * (ROWS * DRAWS - 3 * (at // 4))  # whole batches are not drawn again
    assert same(run(tmp_path / "c"), whole)  # finished, it is read


def test_another_runs_checkpoint_is_refused(tmp_path: Path) -> None:
    run(tmp_path / "c")
    for changes, said in (({"seed": 3}, "seed"), ({"draws": 2}, "draws"), ({"eta": 0.5}, "eta")):
        with pytest.raises(dv.InputError, match=f"belongs to another run .different .*{said}"):
            run(tmp_path / "c", **changes)
    other = dv.Measurement(2 * apply(images()), apply, noise=STD)
    moved = dv.ConditionedDenoiser(denoiser().base, dv.PiGDM(), other, "II", solver="cg")
    with pytest.raises(dv.InputError, match="conditioned on"):
        restore(moved, 4, draws=DRAWS, seed=2, checkpoint=tmp_path / "c", progress=False)
    half = dv.Measurement(apply(images()), lambda x: 0.5 * apply(x), noise=STD)
    with pytest.raises(dv.InputError, match="operator"):  # of the same y
        restore(
            dv.ConditionedDenoiser(denoiser().base, dv.PiGDM(), half, "II", solver="cg"),
            4, draws=DRAWS, seed=2, checkpoint=tmp_path / "c", progress=False,
        )  # fmt: skip
    (tmp_path / "c").write_bytes(b"spoilt")
    with pytest.raises(dv.InputError, match="damaged"):
        run(tmp_path / "c")


def test_the_steps_and_their_noise() -> None:
    den = denoiser()
    drawn = restore(den, 4, seed=2, progress=False).draws[:, 0]
    steps = dv.steps.log_snr(den.schedule, 4)
    count = den.measurement.rows
    assert torch.equal(drawn, dv.Sampler(den, dv.FixedSmall(), steps, tau=10.0).sample(count, seed=2))
    even = restore(den, 4, seed=2, eta=0.5, spacing="linspace", progress=False).draws[:, 0]
    assert torch.equal(even, dv.Sampler(den, dv.FixedSmall(), 4, 0.5).sample(count, seed=2))
    own = restore(den, steps, seed=2, tau=1.0, progress=False).draws[:, 0]
    assert torch.equal(own, dv.Sampler(den, dv.FixedSmall(), steps, tau=1.0).sample(count, seed=2))
    assert not torch.equal(own, drawn)
    listed = restore(den, steps, seed=2, tau=10.0, progress=False).draws[:, 0]
    assert torch.equal(listed, drawn)
    for wrong, said in (({"eta": 1.0, "tau": 1.0}, "tau"), ({"spacing": "even"}, "spacing")):
        with pytest.raises(dv.InputError, match=said):
            restore(den, 4, progress=False, **wrong)


def test_a_checkpoint_that_makes_no_sense_is_refused(tmp_path: Path) -> None:
    from diffusion_var.documents import read_document, write_document

    run(tmp_path / "c")
    arrays, record = read_document(tmp_path / "c", module.FORM)
    for name, wrong, said in (
        ("images", arrays["images"][:-1], "marks 20 as done"),
        ("images", arrays["images"][:, :, :2], "shape"),
        ("images", np.full_like(arrays["images"], np.nan), "NaN"),
        ("done", arrays["done"][:-1], "shape"),
        ("counts", arrays["counts"] - 10**6, "at least 0"),
    ):
        write_document(tmp_path / "c", module.FORM, {**arrays, name: wrong}, record.model_dump(mode="json"))
        with pytest.raises(dv.InputError, match=said):
            run(tmp_path / "c")


@pytest.mark.parametrize("count", [2, 3])
def test_processes_share_the_batches(count: int, whole: Restoration) -> None:
    for found in many(count, lambda: vars(run()) | {"draws": run().draws.numpy()}):
        assert np.array_equal(found.pop("draws"), whole.draws.numpy())
        assert {name: getattr(whole, name) for name in found} == found


def test_what_was_done_when_a_process_was_killed_is_kept(whole: Restoration, tmp_path: Path) -> None:
    def killed() -> None:
        resume.SECONDS = 0.0  # saved after each batch
        genuine, calls = dv.ConditionedDenoiser.__call__, iter(range(10**9))

        def counted(self: Any, *arguments: Any, **named: Any) -> Any:
            if next(calls) == 9 and os.environ["RANK"] == "1":
                os.kill(os.getpid(), signal.SIGKILL)
            return genuine(self, *arguments, **named)

        dv.ConditionedDenoiser.__call__ = counted  # type: ignore[method-assign]  # in this fork alone
        run(tmp_path / "c")

    first, second = Many(2, killed).ends()
    assert (first.error or "").startswith("RankError: rank 1 of 2 was killed")
    assert second.code == -signal.SIGKILL
    from diffusion_var.documents import read_document

    done = int(read_document(tmp_path / "c", module.FORM)[0]["done"].sum())
    assert 6 <= done < ROWS * DRAWS
    assert same(run(tmp_path / "c"), whole)


# ---- what is refused, and what is said ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"draws": 0}, "draws=0 must be a whole number of at least 1"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"seed": 1.5}, "seed"),
        ({"eta": 2.0}, "eta"),
        ({"conditions": torch.zeros(3)}, "3 entries for 5 images"),
        ({"covariance": 3}, "covariance must be"),
    ],
)
def test_what_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(dv.InputError, match=said):
        run(**options)


def test_a_model_without_a_measurement_is_refused() -> None:
    with pytest.raises(dv.InputError, match=r"denoiser must be a dv\.ConditionedDenoiser"):
        restore(denoiser().base)  # type: ignore[arg-type]


def test_solves_that_do_not_converge_are_said(tmp_path: Path) -> None:
    den = denoiser()
    hasty = dv.ConditionedDenoiser(
        den.base, dv.PiGDM(), den.measurement, "II", dv.restoration.ConjugateGradients(1e-6, 1)
    )
    with pytest.warns(dv.DiffusionVarWarning, match="of 20 solves .* 20 did not reach their tolerance"):
        found = restore(hasty, 4, progress=False, checkpoint=tmp_path / "c")
    assert (found.solves, found.not_converged, found.not_positive) == (20, 20, 0)
    with pytest.warns(dv.DiffusionVarWarning, match="of 20 solves"):  # also of what an interrupted run has done
        assert same(restore(hasty, 4, progress=False, checkpoint=tmp_path / "c"), found)


def test_each_measurement_has_its_own_condition() -> None:
    def network(x: torch.Tensor, timestep: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return 0.1 * x + label[:, None, None, None]

    base = dv.Denoiser(network, SCHEDULE, "sample", SHAPE, clip=None, data_range=None)
    measurement = dv.Measurement(
        torch.zeros(ROWS, 1), lambda x: 0.0 * x.flatten(1)[:, :1] + x.flatten(1)[:, :1], noise=9
    )
    den = dv.ConditionedDenoiser(base, dv.PiGDM(1e-6), measurement, "II")
    labels = torch.linspace(-1, 1, ROWS)
    found = restore(den, 3, draws=3, eta=0.0, batch_size=4, conditions=labels, progress=False)
    middle = found.draws.flatten(2).mean(2)
    assert float((middle - middle.mean(1, keepdim=True)).abs().max()) < 0.2
    assert bool((middle.mean(1).diff() > 0.3).all())
