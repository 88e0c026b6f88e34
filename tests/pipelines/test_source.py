"""Configs, tables and files of AnalyticScheduler: which belong together, what lies beside what, and what is refused."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
)
from diffusers import configuration_utils as diffusers_configs

import diffusion_var as dv

N, SHAPE = 50, (3, 4, 4)
CONFIG: dict[str, Any] = DDPMScheduler(num_train_timesteps=N, clip_sample_range=0.8).config
TABLE_FILE = "variance_table.safetensors"


def measured(schedule: dv.NoiseSchedule, seed: int = 0, **facts: Any) -> dv.VarianceTable:
    """A table of Gaussian data that passes for a network's."""
    variance = np.random.default_rng(seed).uniform(0.05, 0.5, SHAPE)
    oracle = dv.oracles.GaussianDenoiser(schedule, 0.1, variance)
    last = schedule.num_steps
    table = dv.estimate(oracle, oracle.sample(60), 1e9, indices=[1, last // 2, last], progress=False)
    return dataclasses.replace(table, network=None, **{"prediction": "epsilon", **facts})


@pytest.fixture(scope="module")
def table() -> dv.VarianceTable:
    return measured(dv.NoiseSchedule.linear(N), clip=(-0.8, 0.8), data_range=(-0.8, 0.8))


def stepped(scheduler: dv.AnalyticScheduler) -> torch.Tensor:
    """One step, with noise."""
    x, out, noise = torch.from_numpy(np.random.default_rng(1).standard_normal((3, 2, *SHAPE)))
    return scheduler.step(out, 30, x, variance_noise=noise).prev_sample


@pytest.fixture
def folder(table: dv.VarianceTable, tmp_path: Path) -> Path:
    """A saved dct scheduler with its table beside it."""
    dv.AnalyticScheduler.from_table(table, CONFIG, structure="dct").save_pretrained(tmp_path / "scheduler")
    return tmp_path / "scheduler"


def rewrite(folder: Path, **values: Any) -> None:
    path = folder / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


# ---- the table beside the config ---------------------------------------------------------------------------------


def test_a_subfolder_and_options(table: dv.VarianceTable, folder: Path) -> None:
    original = dv.AnalyticScheduler.from_table(table, CONFIG, structure="dct")
    loaded, unused = dv.AnalyticScheduler.from_pretrained(
        folder.parent, subfolder="scheduler", return_unused_kwargs=True, nobody=1
    )
    assert unused["nobody"] == 1
    assert torch.equal(stepped(loaded), stepped(original))
    assert loaded.table.structures == ("isotropic", "dct")  # and not the others: a smaller file
    still = dv.AnalyticScheduler.from_pretrained(str(folder), eta=0.0)
    assert torch.equal(
        stepped(still), stepped(dv.AnalyticScheduler.from_table(table, CONFIG, structure="dct", eta=0.0))
    )
    assert not torch.equal(stepped(still), stepped(original))


def test_from_the_hub(table: dv.VarianceTable, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(repo: str, filename: str, **options: Any) -> str:
        asked.append((repo, filename, options["subfolder"], options["revision"], options["token"]))
        return str(folder / filename)

    monkeypatch.setattr(diffusers_configs, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    options = {"subfolder": "scheduler", "revision": "v2", "token": "secret"}
    loaded = dv.AnalyticScheduler.from_pretrained("someone/something", **options)
    assert asked == [
        ("someone/something", name, "scheduler", "v2", "secret") for name in ("scheduler_config.json", TABLE_FILE)
    ]
    assert torch.equal(stepped(loaded), stepped(dv.AnalyticScheduler.from_table(table, CONFIG, structure="dct")))


@pytest.mark.parametrize("kind", [FileNotFoundError, RuntimeError])  # the transport has errors of its own
def test_a_table_that_the_hub_does_not_have(folder: Path, kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any, **__: Any) -> str:
        raise kind("404")

    monkeypatch.setattr(diffusers_configs, "hf_hub_download", lambda *_, **__: str(folder / "scheduler_config.json"))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", missing)
    with pytest.raises(dv.InputError, match=f"someone/something needs its table {TABLE_FILE} beside its config"):
        dv.AnalyticScheduler.from_pretrained("someone/something")


def remove(folder: Path) -> None:
    (folder / TABLE_FILE).unlink()


def flip_a_bit(folder: Path) -> None:
    content = bytearray((folder / TABLE_FILE).read_bytes())
    content[-5] ^= 1
    (folder / TABLE_FILE).write_bytes(content)


def put_another(folder: Path) -> None:
    schedule = dv.NoiseSchedule.linear(N)
    measured(schedule, seed=1, clip=(-0.8, 0.8), data_range=(-0.8, 0.8)).save(folder / TABLE_FILE)


def name_a_path(folder: Path) -> None:
    shutil.move(folder / TABLE_FILE, folder.parent / TABLE_FILE)
    entry = json.loads((folder / "scheduler_config.json").read_text())["variance"]
    rewrite(folder, variance={**entry, "file": f"../{TABLE_FILE}"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove, "variance table"),
        (flip_a_bit, "damaged"),
        (put_another, r"this table \(digest [0-9a-f]{12}\) is not the one that the scheduler was made with"),
        (name_a_path, "a plain file name beside the config is expected"),
        (lambda folder: rewrite(folder, clip_sample_range=1.0), r"clipping: the table has \(-0.8, 0.8\)"),
        (lambda folder: rewrite(folder, beta_end=0.03), "does not fit the scheduler"),
    ],
    ids=["missing", "tampered", "another", "path", "clipping", "schedule"],
)
def test_a_table_that_is_not_the_schedulers_is_refused(
    folder: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(folder)
    with pytest.raises(dv.InputError, match=message):
        dv.AnalyticScheduler.from_pretrained(folder)


@pytest.mark.parametrize("structure", ["pixel", "dct"])
def test_without_its_table_a_scheduler_says_how_to_attach_it(table: dv.VarianceTable, structure: str) -> None:
    original = dv.AnalyticScheduler.from_table(table, CONFIG, structure=structure)
    bare = dv.AnalyticScheduler.from_config(original.config)
    with pytest.raises(dv.InputError, match=rf"{TABLE_FILE}\) is not attached; .*call scheduler.attach\(table\)"):
        stepped(bare)
    with pytest.raises(dv.InputError, match=r"use AnalyticScheduler.from_table for another"):
        bare.attach(table)  # which holds more than what was kept
    bare.attach(table.subset([structure]))
    assert torch.equal(stepped(bare), stepped(original))


def test_a_config_without_a_digest_takes_any_table_that_fits(table: dv.VarianceTable) -> None:
    config = dv.AnalyticScheduler.from_table(table, CONFIG, structure="dct").config
    scheduler = dv.AnalyticScheduler.from_config(config, variance={**config["variance"], "digest": None})
    other = measured(table.schedule, seed=1, clip=table.clip)
    for given in (table, other, table):  # what was computed for one is not used for the next
        scheduler.attach(given)
        expected = dv.AnalyticScheduler.from_table(given, CONFIG, structure="dct")
        assert torch.equal(stepped(scheduler), stepped(expected))


def test_a_table_that_no_config_asks_for_is_refused(table: dv.VarianceTable) -> None:
    listed = dv.AnalyticScheduler.from_table(table, CONFIG)
    for scheduler in (dv.AnalyticScheduler.from_config(CONFIG), listed):
        with pytest.raises(dv.InputError, match=r"names no table; use AnalyticScheduler.from_table"):
            scheduler.attach(table)


# ---- which table and config belong together ----------------------------------------------------------------------


@pytest.mark.parametrize("structure", ["isotropic", "channel", "pixel", "dct"])
@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"beta_end": 0.03}, "schedule: the table has NoiseSchedule"),
        ({"num_train_timesteps": 100}, "schedule: the table has NoiseSchedule"),
        ({"prediction_type": "sample"}, "prediction type: the table has epsilon, the scheduler sample"),
        ({"clip_sample": False}, r"clipping: the table has \(-0.8, 0.8\), the scheduler None"),
        ({"clip_sample_range": 1.0}, r"clipping: the table has \(-0.8, 0.8\), the scheduler \(-1.0, 1.0\)"),
        ({"thresholding": True}, "thresholding=true, which no table is measured with"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_table_of_another_process_is_refused(
    table: dv.VarianceTable, other: dict[str, Any], message: str, structure: str
) -> None:
    with pytest.raises(dv.InputError, match=message):
        dv.AnalyticScheduler.from_table(table, {**CONFIG, **other}, structure=structure)
    if set(other) & {"clip_sample", "thresholding"}:  # which may be given beside the config, too
        with pytest.raises(dv.InputError, match=message):
            dv.AnalyticScheduler.from_table(table, CONFIG, structure=structure, **other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"structure": "block"}, "structure 'block' is not known"),
        ({"estimator": "mean"}, "estimator 'mean' is not known"),
        ({"eta": 2.0}, "eta=2.0 is outside"),
    ],
)
def test_what_a_table_cannot_give_is_refused(table: dv.VarianceTable, options: dict[str, Any], message: str) -> None:
    with pytest.raises(dv.InputError, match=message):
        dv.AnalyticScheduler.from_table(table, CONFIG, **options)
    with pytest.raises(dv.InputError, match="has no structure 'dct'"):
        dv.AnalyticScheduler.from_table(table.subset(["pixel"]), CONFIG, structure="dct")
    with pytest.raises(dv.InputError, match="needs a VarianceTable, but got str"):
        dv.AnalyticScheduler.from_table("table.safetensors", CONFIG)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (DDPMScheduler, {}),
        (DDIMScheduler, {}),
        (EulerDiscreteScheduler, {}),
        (LCMScheduler, {}),  # its betas are not DDPM's
        (LCMScheduler, {"beta_end": 0.02}),
    ],
)
@pytest.mark.parametrize("structure", ["isotropic", "dct"])
def test_what_a_class_does_by_default_counts(kind: type, options: dict[str, Any], structure: str) -> None:
    """Config or scheduler, fresh or loaded: diffusers marks defaults, and names the class in a loaded config only."""
    theirs = kind(num_train_timesteps=N, **options)
    clip = (-1.0, 1.0) if theirs.config.get("clip_sample") else None
    fits = measured(dv.NoiseSchedule.from_diffusers(theirs), clip=clip)
    loaded = {**json.loads(theirs.to_json_string())}
    made = [dv.AnalyticScheduler.from_table(fits, c, structure=structure) for c in (theirs, {**theirs.config}, loaded)]
    for scheduler in made:
        assert scheduler.schedule == fits.schedule
        assert scheduler.config.clip_sample == (clip is not None)
        assert scheduler.config.timestep_spacing == theirs.config.timestep_spacing
        assert torch.equal(stepped(scheduler), stepped(made[0]))


@pytest.mark.parametrize(
    ("theirs", "prediction"),
    [
        (FlowMatchEulerDiscreteScheduler(num_train_timesteps=N), "flow"),
        (EDMEulerScheduler(num_train_timesteps=N), "edm"),
        (
            EulerDiscreteScheduler(num_train_timesteps=N, timestep_type="continuous", prediction_type="v_prediction"),
            "v_prediction",
        ),
    ],
    ids=["flow", "edm", "continuous"],
)
@pytest.mark.parametrize("structure", ["isotropic", "dct"])
def test_schedules_that_betas_do_not_give_are_refused(theirs: Any, prediction: str, structure: str) -> None:
    fits = measured(dv.NoiseSchedule.from_diffusers(theirs), prediction=prediction)
    with pytest.raises(dv.InputError, match="schedule"):
        dv.AnalyticScheduler.from_table(fits, theirs, structure=structure)


@pytest.mark.parametrize("after", ["isotropic", "channel", "pixel", "dct"])
@pytest.mark.parametrize("before", ["isotropic", "channel", "pixel", "dct"])
def test_one_structure_after_another(table: dv.VarianceTable, before: str, after: str, tmp_path: Path) -> None:
    """As a comparison does it: from the config of the scheduler that the pipeline has by now."""
    first = dv.AnalyticScheduler.from_table(table, CONFIG, structure=before, eta=0.5, final_noise_cap=1.0)
    second = dv.AnalyticScheduler.from_table(table, first.config, structure=after)
    fresh = dv.AnalyticScheduler.from_table(table, CONFIG, structure=after, final_noise_cap=1.0)
    second.save_pretrained(tmp_path / "second")
    fresh.save_pretrained(tmp_path / "fresh")
    for name in sorted(path.name for path in (tmp_path / "fresh").iterdir()):
        assert (tmp_path / "second" / name).read_bytes() == (tmp_path / "fresh" / name).read_bytes()
    loaded = dv.AnalyticScheduler.from_pretrained(tmp_path / "second")
    assert torch.equal(stepped(loaded), stepped(fresh))


@pytest.mark.parametrize("clip", [True, False])
def test_published_arrays_leave_clipping_to_the_config(clip: bool) -> None:
    """They know their schedule only."""
    schedule = dv.NoiseSchedule.linear(N)
    published = dv.VarianceTable.from_moments(schedule, eps_square=np.linspace(0.5, 0.99, N))
    config = DDPMScheduler(num_train_timesteps=N, clip_sample=clip).config
    scheduler = dv.AnalyticScheduler.from_table(published, config, estimator="score_norm")
    assert scheduler.config.clip_sample == clip
    x = torch.full((1, *SHAPE), 3.0, dtype=torch.float64)
    got = scheduler.step(torch.zeros_like(x), 30, x, variance_noise=torch.ones_like(x))
    assert (float(got.pred_original_sample.max()) == 1.0) == clip
    kernel = dv.ReverseKernel(schedule, 31, 30)
    variance = dv.Analytic(published, "score_norm").variance(kernel)
    expected = kernel.gain * got.pred_original_sample + kernel.eps_gain / kernel.sigma_t * x + np.sqrt(variance)
    torch.testing.assert_close(got.prev_sample, expected, rtol=1e-12, atol=1e-12)


# ---- configs alone -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variance_type": "learned"}, "variance_type='learned' is not known; use one of fixed_small, fixed_large"),
        ({"variance_type": "fixed_small_log"}, "'fixed_small' is the variance of which it names the logarithm"),
        ({"variance_type": None}, "variance_type=None is not known"),
        ({"variance_type": "analytic"}, r"needs a variance table.*from_table\(table, pipe.scheduler.config\)"),
        ({"variance_type": "fixed_large", "eta": 0.5}, "'fixed_large' is defined for eta=1 only, but eta=0.5"),
        ({"variance_type": "learned_range", "eta": 0.0}, "'learned_range' is defined for eta=1 only"),
        ({"timestep_spacing": "even"}, "timestep_spacing='even' is not known; use one of leading, linspace, trailing"),
        ({"clipped_eps": "both"}, "clipped_eps='both' is not known"),
        ({"eta": 1.5}, r"eta=1.5 is outside \[0, 1\]"),
        ({"eta": float("nan")}, "eta=nan is outside"),
        ({"prediction_type": "flow_prediction"}, "prediction_type is 'flow_prediction'"),
        ({"rescale_betas_zero_snr": True}, "zero terminal SNR"),
        ({"beta_schedule": "laplace"}, "beta_schedule is 'laplace'"),
        ({"final_noise_cap": 1.0}, "final_noise_cap needs a data range"),
        (
            {"variance_type": "analytic", "variance": {"posterior_variance": [0.1] * 49}},
            "49 entries, but num_train_timesteps is 50",
        ),
    ],
)
def test_unusable_configs_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(dv.InputError, match=message):
        dv.AnalyticScheduler.from_config(CONFIG, **options)
