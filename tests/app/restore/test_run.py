"""The command restore: its numbers and pictures are those of the public API, and a run goes on where it was stopped."""

import csv
import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from many import Many, many
from PIL import Image
from safetensors.numpy import save_file
from small_pipelines import save_ldm
from typer.testing import CliRunner

import diffusion_var as dv
from diffusion_var import parallel, resume
from diffusion_var.app import cli
from diffusion_var.app.config import load_options
from diffusion_var.app.restore import cells, setting
from diffusion_var.app.restore.options import RestoreOptions
from diffusion_var.app.restore.run import PARTIAL
from diffusion_var.app.restore.run import run as run_restore
from diffusion_var.randomness import generator, normal

pytest.importorskip("deepinv")
pytest.importorskip("torchmetrics")
IMAGES, DRAWS, NOISE = 7, 2, 0.1
SMALL: dict[str, Any] = {
    "model": "digits",
    "images": f"digits:score[:{IMAGES}]",
    "operator": "inpainting:mask=0.5",
    "noise": NOISE,
    "covariances": ["pigdm", "dct"],
    "guidance": ["I", "II"],
    "steps": [2, 3],
    "draws": DRAWS,
    "batch_size": 5,
    "calibrate": True,
    "levels": 3,
    "seed": 4,
    "device": "cpu",
}


@pytest.fixture(scope="module")
def model() -> dv.Denoiser:
    return dv.Denoiser.from_pretrained("digits", device="cpu")


@pytest.fixture(scope="module")
def truth() -> torch.Tensor:
    return dv.metrics.to_float(dv.data.digits_splits().score.images[:IMAGES])


@pytest.fixture(scope="module")
def table(model: dv.Denoiser, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("table") / "t.safetensors"
    images = dv.data.digits_splits().table.images[:64]
    dv.estimate(model, images, 9.0, indices=[1, 250, 500, 750, 1000], progress=False).save(path)
    return path


def run(out: Path, table: Path | None, **changes: Any) -> None:
    torch.set_num_threads(1)
    options = load_options(RestoreOptions, {**SMALL, "table": table, "out": out, **changes})
    with parallel.sharing("restore"):  # as the command line does
        run_restore(options)


def contents(folder: Path) -> dict[str, bytes]:
    """What a run has written, but for its cells."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and "cells" not in path.parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def cell_files(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (folder / "cells").glob("*.safetensors")}


@pytest.fixture(scope="module")
def whole(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "x"
    run(folder, table)
    return folder


def by_hand(model: dv.Denoiser, truth: torch.Tensor, table: Path, structure: str, guidance: Any) -> Any:
    """The conditioned denoiser of a cell, made by the public API alone."""
    operator = dv.restoration.open_operator("inpainting:mask=0.5", model.shape, seed=4)
    noise = [normal(generator(4, "noise of a measurement", i), 1, *model.shape) for i in range(IMAGES)]
    measurement = operator.measurement(operator.A(truth) + NOISE * torch.cat(noise), NOISE)
    known = dv.VarianceTable.load(table)
    kinds = {"pigdm": dv.PiGDM(), "bands": dv.Jacobian(known), "lanczos": dv.Lanczos(known)}
    covariance = kinds.get(structure, dv.Analytic(known, structure="dct"))
    return dv.ConditionedDenoiser(model, covariance, measurement, guidance)


# ---- numbers and pictures --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("structure", "guidance"), [("pigdm", "I"), ("dct", "II")])
def test_a_cell_is_made_again_by_hand(
    structure: str, guidance: str, whole: Path, model: dv.Denoiser, truth: torch.Tensor, table: Path
) -> None:
    den = by_hand(model, truth, table, structure, guidance)
    result = dv.restore(den, 3, draws=DRAWS, seed=4, batch_size=5, progress=False)
    content = json.loads((whole / "results.json").read_text())
    wanted = {"covariance": structure, "guidance": guidance, "steps": 3}
    (cell,) = [c for c in content["cells"] if wanted.items() <= c.items()]
    scores = torch.stack([dv.metrics.psnr(result.draws[:, r], truth) for r in range(DRAWS)]).mean(0).numpy()
    assert np.abs(np.array(cell["by_image"]["psnr"]) - scores).max() < 1e-5
    assert cell["scores"]["psnr"]["value"] == pytest.approx(scores.mean(), abs=1e-5)
    assert cell["scores"]["psnr"]["error"] == pytest.approx(scores.std(ddof=1) / IMAGES**0.5, abs=1e-5)
    of_mean = dv.metrics.psnr(result.mean, truth).mean()
    assert cell["of_the_mean"]["psnr"]["value"] == pytest.approx(float(of_mean), abs=1e-5)
    assert (cell["evaluations"], cell["backward_passes"]) == (3, 3 if guidance == "I" else 0)
    assert cell["solves"] == 3 * IMAGES * DRAWS
    wide = (1 + 1 / DRAWS) * result.std.double().square().mean() / (result.mean - truth).double().square().mean()
    assert cell["spread_over_error"] == pytest.approx(float(wide), rel=1e-5)
    seen = den.measurement.map_of(model.shape).apply(torch.ones(1, *model.shape))[0] != 0
    apart = (den.measurement.y[:, None] - result.draws)[:, :, seen].double() / NOISE
    assert cell["scores"]["misfit"]["value"] == pytest.approx(float(apart.square().mean()), rel=1e-4)


def test_differences_are_taken_image_by_image(whole: Path) -> None:
    found = json.loads((whole / "results.json").read_text())["cells"]
    first, *others = [c for c in found if c["steps"] == 2]
    assert (first["covariance"], first["guidance"]) == ("pigdm", "I")
    assert first["against_the_first"]["psnr"]["value"] == 0.0
    for cell in others:
        apart = np.subtract(cell["by_image"]["psnr"], first["by_image"]["psnr"])
        assert cell["against_the_first"]["psnr"]["value"] == pytest.approx(apart.mean(), abs=1e-9)
        assert cell["against_the_first"]["psnr"]["error"] == pytest.approx(apart.std(ddof=1) / IMAGES**0.5, abs=1e-9)


def test_the_calibration_is_the_denoisers_residual(
    whole: Path, model: dv.Denoiser, truth: torch.Tensor, table: Path
) -> None:
    found = {one["covariance"]: one for one in json.loads((whole / "results.json").read_text())["calibration"]}
    assert set(found) == {"pigdm", "dct"}
    for name, one in found.items():
        assert one["indices"] == dv.steps.log_snr(model.schedule, 3)
        den = by_hand(model, truth, table, name, "II")
        for n, told in zip(one["indices"], one["residual"], strict=True):
            eps = torch.cat([normal(generator(4, "calibration noise", n, i), 1, *model.shape) for i in range(IMAGES)])
            level = model.schedule.level(n)
            residual = den.residual(level.alpha * truth + level.sigma * eps, n).numpy()
            assert told["value"] == pytest.approx(residual.mean(), rel=1e-4)
            assert told["error"] == pytest.approx(residual.std(ddof=1) / IMAGES**0.5, rel=1e-4)


def test_pictures_are_of_the_restored_images(whole: Path, model: dv.Denoiser, truth: torch.Tensor, table: Path) -> None:
    result = dv.restore(by_hand(model, truth, table, "dct", "I"), 2, draws=DRAWS, seed=4, batch_size=5, progress=False)
    place = whole / "restored" / "dct-I-2"
    error = (result.mean - truth).double().abs() / 0.5
    for i in range(IMAGES):
        expected = {
            whole / "truth" / f"{i:06d}.png": dv.metrics.to_uint8(truth[i]),
            place / "mean" / f"{i:06d}.png": dv.metrics.to_uint8(result.mean[i]),
            place / "std" / f"{i:06d}.png": (result.std[i].double() / 0.5).clamp(0, 1).mul(255).round(),
            place / "error" / f"{i:06d}.png": error[i].clamp(0, 1).mul(255).round(),
            **{place / "draws" / f"{i:06d}_{r}.png": dv.metrics.to_uint8(result.draws[i, r]) for r in range(DRAWS)},
        }
        for path, image in expected.items():
            assert np.abs(np.asarray(Image.open(path)).astype(int) - image[0].numpy().astype(int)).max() <= 1, path
    assert len([*(whole / "restored").iterdir()]) == 8
    assert len([*(whole / "measured").iterdir()]) == IMAGES
    assert len([*place.rglob("*.png")]) == IMAGES * (3 + DRAWS)


def test_the_report(whole: Path) -> None:
    text = (whole / "report.md").read_text()
    assert "draws each, τ = 10, spacing log_snr, seed 4." in text
    for head in ("## 2 steps", "## 3 steps", "PSNR (dB)", "SSIM", "against the first", "spread / error", "misfit"):
        assert head in text
    assert "LPIPS by the network alex needs images" in text  # these are too small
    for name in ("sheet_2.png", "sheet_3.png", "calibration.png"):
        assert f"({name})" in text
        assert Image.open(whole / name).size[0] > 300
    with (whole / "results.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 8 * IMAGES * DRAWS
    cells_of = json.loads((whole / "results.json").read_text())["cells"]
    for cell in cells_of:
        wanted = {"covariance": cell["covariance"], "guidance": cell["guidance"], "steps": str(cell["steps"])}
        values = [float(line["psnr"]) for line in lines if wanted.items() <= line.items()]
        assert np.mean(values) == pytest.approx(cell["scores"]["psnr"]["value"], abs=1e-9)
    best = max(c["scores"]["psnr"]["value"] for c in cells_of if c["steps"] == 3)
    assert f"**{best:.2f} ±" in text
    assert not (whole / PARTIAL).exists()


# ---- measurements that are given -------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_measurements_of_a_file(suffix: str, model: dv.Denoiser, truth: torch.Tensor, tmp_path: Path) -> None:
    operator = dv.restoration.open_operator("super-resolution", model.shape)
    y = operator.A(truth[:3])
    save_file({"y": y.numpy()}, tmp_path / "y.safetensors")
    np.savez(tmp_path / "y.npz", y=y.double().numpy())
    given = {"measurements": tmp_path / f"y.{suffix}", "operator": "super-resolution", "covariances": ["pigdm"]}
    few = {**given, "guidance": ["II"], "steps": [2], "calibrate": False, "draws": 1, "seed": 0}
    run(tmp_path / "out", None, images=None, **few)
    (cell,) = json.loads((tmp_path / "out" / "results.json").read_text())["cells"]
    assert list(cell["scores"]) == ["misfit"]
    assert cell["spread_over_error"] is None
    assert "PSNR" not in (tmp_path / "out" / "report.md").read_text()
    assert {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()} == {"cells", "measured", "restored"}
    assert {path.name for path in (tmp_path / "out" / "restored" / "pigdm-II-2").iterdir()} == {"mean", "draws"}
    assert Image.open(tmp_path / "out" / "measured" / "000000.png").size == (4, 4)
    run(tmp_path / "scored", None, images="digits:score[:3]", **few)  # the truth, where it is known
    (scored,) = json.loads((tmp_path / "scored" / "results.json").read_text())["cells"]
    assert scored["scores"]["misfit"] == cell["scores"]["misfit"]
    assert scored["scores"]["psnr"]["value"] > 5


def test_measurements_that_are_no_images_are_shown_by_a_first_estimate(tmp_path: Path) -> None:
    few = {"covariances": ["pigdm"], "guidance": ["II"], "steps": [2], "calibrate": False}
    run(tmp_path / "out", None, operator="compressed-sensing:m=64", **{**few, "noise": 0.0, "pictures": 2})
    for i in range(2):  # all of an image's numbers, without noise: the image
        shown = np.asarray(Image.open(tmp_path / "out" / "measured" / f"{i:06d}.png")).astype(int)
        image = np.asarray(Image.open(tmp_path / "out" / "truth" / f"{i:06d}.png")).astype(int)
        assert np.abs(shown - image).mean() < 12
    assert len([*(tmp_path / "out" / "truth").iterdir()]) == 2
    (cell,) = json.loads((tmp_path / "out" / "results.json").read_text())["cells"]
    assert list(cell["scores"]) == ["psnr", "ssim"]  # without noise nothing can be said of the misfit


@pytest.mark.filterwarnings("ignore:of .* solves:diffusion_var.DiffusionVarWarning")
def test_covariances_of_the_image_by_products(
    table: Path, model: dv.Denoiser, truth: torch.Tensor, tmp_path: Path
) -> None:
    """By their names they are those of Python, and the report says that products come beside the evaluations."""
    few = {"guidance": ["II"], "steps": [2], "draws": 1, "calibrate": False}
    run(tmp_path / "out", table, covariances=["dct", "bands", "lanczos"], **few)
    cells = {c["covariance"]: c for c in json.loads((tmp_path / "out" / "results.json").read_text())["cells"]}
    for name in ("bands", "lanczos"):
        den = by_hand(model, truth, table, name, "II")
        own = dv.restore(den, 2, draws=1, seed=4, batch_size=5, progress=False).draws[:, 0]
        assert np.abs(np.array(cells[name]["by_image"]["psnr"]) - dv.metrics.psnr(own, truth).numpy()).max() < 1e-5
    report = (tmp_path / "out" / "report.md").read_text()
    assert report.count("| 2 + products |") == 2
    assert report.count("| 2 |") >= 1


def test_an_exact_model_and_its_own_covariance(tmp_path: Path) -> None:
    options = {"model": "photographs:mixture:8", "images": "photographs:score:8[:4]", "operator": "blur:sigma=1.0"}
    few = {"covariances": ["exact", "pigdm"], "guidance": ["II"], "steps": [6], "calibrate": True}
    run(tmp_path / "out", None, **options, **few)
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    exact, guess = found["cells"]
    assert exact["scores"]["psnr"]["value"] > guess["scores"]["psnr"]["value"]
    assert np.asarray(Image.open(tmp_path / "out" / "restored" / "exact-II-6" / "mean" / "000000.png")).shape == (
        8,
        8,
        3,
    )


# ---- by the command line, and models of other kinds ------------------------------------------------------------------


def command(*words: str) -> Any:
    return CliRunner().invoke(cli.app, ["--quiet", "restore", *words])


def test_the_command_line_and_a_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = "def halves(shape):\n    return lambda x: 0.5 * x[..., ::2]\n"
    (tmp_path / "operators_of_a_command.py").write_text(own)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(
        "estimate: {model: digits, images: digits:table, out: none}\n"
        "restore:\n  model: digits\n  images: digits:score[:3]\n  operator: operators_of_a_command:halves\n"
        "  covariances: [pigdm]\n  guidance: [II]\n  steps: [2]\n  out: out\n"
    )
    done = command("--config", "c.yaml", "--draws", "3", "--posterior-noise", "--below", "10", "--eta", "0.5")
    assert done.exit_code == 0, done.output
    assert "K = 2" in done.output
    assert "written: out/report.md" in done.output
    assert "3 draws each, η = 0.5, spacing log_snr, seed" in Path("out/report.md").read_text()
    (cell,) = json.loads((tmp_path / "out" / "results.json").read_text())["cells"]
    assert (cell["draws"], cell["images"], cell["steps"]) == (3, 3, 2)
    assert Image.open(tmp_path / "out" / "measured" / "000000.png").size == (4, 8)
    again = command("--config", "c.yaml", "--draws", "3", "--posterior-noise", "--below", "10", "--eta", "0.5")
    assert "already finished" in again.output
    wrong = command("--config", "c.yaml", "--guidance", "II,III")
    assert isinstance(wrong.exception, dv.InputError)
    sys.modules.pop("operators_of_a_command", None)


def test_a_latent_model_is_measured_through_its_decoder(tmp_path: Path) -> None:
    model = save_ldm(tmp_path / "model")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, 16, 16), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", images=pixels)
    words = ["--model", str(model), "--images", f"{tmp_path}/x.npz:images", "--operator", "box:size=4", "--steps", "2"]
    with pytest.warns(dv.DiffusionVarWarning):  # what it costs, and what did not converge
        done = command(*words, "--draws", "2", "-o", str(tmp_path / "out"))
    assert done.exit_code == 0, done.output
    place = tmp_path / "out" / "restored" / "pigdm-I-2"
    assert np.asarray(Image.open(place / "draws" / "000000_1.png")).shape == (16, 16, 3)
    for more, said in ((["--calibrate"], "works on latents"), (["--guidance", "II"], "through a decoder")):
        refused = command(*words, *more, "-o", str(tmp_path / "other"))
        assert isinstance(refused.exception, dv.InputError)
        assert said in str(refused.exception)
        assert not (tmp_path / "other").exists()


# ---- going on --------------------------------------------------------------------------------------------------------


def test_a_finished_run_is_left_as_it_is(
    whole: Path, table: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(whole)
    monkeypatch.setattr(cells, "restore", lambda *_, **__: pytest.fail("it was restored again"))
    run(whole, table)
    assert "already finished" in capsys.readouterr().out
    assert contents(whole) == before
    (whole / "report.md").write_text("damaged")
    with pytest.raises(dv.InputError, match="not empty"):
        run(whole, table)
    run(whole, table, overwrite=True)  # from its cells
    assert contents(whole) == before


class Stop(KeyboardInterrupt):
    pass


@pytest.mark.parametrize("at", [3, 40, 66])
def test_an_interrupted_run_goes_on_to_the_byte(
    at: int, whole: Path, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine, calls = dv.Denoiser.__call__, iter(range(10**9))

    def counted(self: Any, *arguments: Any, **named: Any) -> Any:
        if next(calls) == at:
            raise Stop
        return genuine(self, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(dv.Denoiser, "__call__", counted)
        with pytest.raises(Stop):
            run(tmp_path / "x", table)
    assert not (tmp_path / "x" / "report.md").exists()
    assert (tmp_path / "x" / PARTIAL).exists()
    before = cell_files(tmp_path / "x")
    assert len(before) < len(cell_files(whole))
    if len(before) > 1:  # more than the measurements
        with pytest.raises(dv.InputError, match="another run of restore that has not finished"):
            run(tmp_path / "x", table, seed=5)
    run(tmp_path / "x", table)
    assert before.items() <= cell_files(tmp_path / "x").items()
    mine, theirs = contents(tmp_path / "x"), contents(whole)
    assert {name: mine[name] for name in mine if name != "SHA256SUMS"} == {
        name: theirs[name] for name in theirs if name != "SHA256SUMS"
    }
    assert not [*(tmp_path / "x" / "cells").glob("*.partial")]


def test_another_request_takes_over_the_cells(tmp_path: Path) -> None:
    few = {"covariances": ["pigdm"], "guidance": ["II"], "calibrate": False}
    run(tmp_path / "x", None, **few, steps=[2, 3])
    before = cell_files(tmp_path / "x")
    with pytest.raises(dv.InputError, match="not empty"):
        run(tmp_path / "x", None, **few, steps=[2])
    run(tmp_path / "x", None, **{**few, "guidance": ["II", "I"]}, steps=[2], overwrite=True)
    assert before.items() <= cell_files(tmp_path / "x").items()
    assert len(cell_files(tmp_path / "x")) == 3 + 1  # and the measurements
    assert {path.name for path in (tmp_path / "x" / "restored").iterdir()} == {"pigdm-I-2", "pigdm-II-2"}
    assert not (tmp_path / "x" / "sheet_3.png").exists()


@pytest.mark.filterwarnings("always::diffusion_var.errors.DiffusionVarWarning")
def test_a_damaged_cell_is_told_and_made_again(tmp_path: Path) -> None:
    few = {"covariances": ["pigdm"], "guidance": ["II"], "steps": [2], "calibrate": False}
    run(tmp_path / "x", None, **few)
    before = contents(tmp_path / "x")
    (cell,) = (tmp_path / "x" / "cells").glob("pigdm*.safetensors")
    cell.write_bytes(cell.read_bytes()[:-9])
    with pytest.warns(dv.DiffusionVarWarning, match="This cell is computed again"):
        run(tmp_path / "x", None, **few, overwrite=True)
    after = contents(tmp_path / "x")
    assert after == before


def test_measurements_are_made_once(whole: Path, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a run goes on with another number of threads, by which they differ in their last digit."""
    few = {"covariances": ["pigdm"], "guidance": ["II"], "calibrate": False}
    run(tmp_path / "x", None, **few, steps=[2])
    before = contents(tmp_path / "x")
    genuine = setting.measured

    def otherwise(*arguments: Any) -> torch.Tensor:
        return genuine(*arguments) * (1 + 1e-6)

    monkeypatch.setattr(setting, "measured", otherwise)
    monkeypatch.setattr(cells, "restore", lambda *_, **__: pytest.fail("it was restored again"))
    run(tmp_path / "x", None, **few, steps=[2], overwrite=True)
    assert contents(tmp_path / "x") == before


# ---- in several processes --------------------------------------------------------------------------------------------


def without_manifest(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in contents(folder).items() if name != "SHA256SUMS"}


def test_two_processes_write_the_report_of_one(
    whole: Path, table: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    many(2, run, tmp_path / "x", table)
    assert without_manifest(tmp_path / "x") == without_manifest(whole)
    assert capfd.readouterr().out.count("written: ") == 1
    many(2, run, tmp_path / "x", table)
    assert capfd.readouterr().out.count("already finished") == 1


def test_what_was_done_when_a_process_was_killed_is_kept(whole: Path, table: Path, tmp_path: Path) -> None:
    def killed() -> None:
        resume.SECONDS = 0.0
        genuine, calls = dv.ConditionedDenoiser.__call__, iter(range(10**9))

        def counted(self: Any, *arguments: Any, **named: Any) -> Any:
            if next(calls) == 12 and os.environ["RANK"] == "1":
                os.kill(os.getpid(), signal.SIGKILL)
            return genuine(self, *arguments, **named)

        dv.ConditionedDenoiser.__call__ = counted  # type: ignore[method-assign]  # in this fork alone
        run(tmp_path / "x", table)

    first, second = Many(2, killed).ends()
    assert (first.error or "").startswith("RankError: rank 1 of 2 was killed")
    assert second.code == -signal.SIGKILL
    before = cell_files(tmp_path / "x")
    assert 2 < len(before) < len(cell_files(whole))
    many(2, run, tmp_path / "x", table)
    assert before.items() <= cell_files(tmp_path / "x").items()
    assert without_manifest(tmp_path / "x") == without_manifest(whole)


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"images": None, "calibrate": False}, "there is nothing to restore"),
        ({"operator": "nothing"}, "'nothing' is not known"),
        ({"operator": "PhaseRetrieval"}, "which is not linear"),
        ({"operator": "Decolorize"}, "cannot be made for images"),
        ({"operator": "MRI"}, "does not take images"),
        ({"noise": -1.0}, "noise=-1.0 must be a standard deviation of at least 0"),
        ({"steps": [2, 2]}, "none twice"),
        ({"steps": [2000]}, "1000"),
        ({"draws": 0}, "draws=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"levels": 1}, "levels=1"),
        ({"pictures": -1}, "pictures=-1"),
        ({"table": None}, "the covariance dct needs a variance table"),
        ({"covariances": ["pigdm"]}, "--table has no meaning with --covariances pigdm"),
        ({"covariances": ["head", "dct"]}, "needs a trained head"),
        ({"covariances": ["exact", "dct"]}, "whose data are known"),
        ({"covariances": ["jacobian", "dct"], "posterior_noise": True}, "jacobian is none"),
        ({"images": "digits:none"}, "no split"),
        ({"below": -1.0}, "below=-1.0 must be a positive"),
        ({"eta": 3.0}, "eta"),
    ],
)
def test_what_is_refused_leaves_nothing(changes: dict[str, Any], said: str, table: Path, tmp_path: Path) -> None:
    with pytest.raises(dv.InputError, match=said) as error:
        run(tmp_path / "x", changes.pop("table", table), **changes)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "x").exists()


def test_what_the_network_turns_out_not_to_have_is_in_no_other_runs_way(table: Path, tmp_path: Path) -> None:
    few = {"guidance": ["II"], "steps": [2], "calibrate": False}
    with pytest.raises(dv.InputError, match="LearnedRange"):
        run(tmp_path / "x", None, **few, covariances=["learned_range"])
    run(tmp_path / "x", None, **few, covariances=["pigdm"])
    assert (tmp_path / "x" / "report.md").exists()


def test_files_that_hold_no_measurements(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "text.safetensors").write_text("no header")
    np.savez(tmp_path / "other.npz", x=np.zeros((2, 1, 8, 8)))
    np.savez(tmp_path / "nan.npz", y=np.full((2, 1, 8, 8), np.nan))
    np.savez(tmp_path / "whole.npz", y=np.zeros((2, 1, 8, 8), np.int64))
    np.savez(tmp_path / "flat.npz", y=np.zeros(8))
    np.savez(tmp_path / "shape.npz", y=np.zeros((2, 1, 4, 4)))
    np.savez(tmp_path / "objects.npz", y=np.array([{}, []], dtype=object))
    for name, said in {
        "none.npz": "there is no file of measurements",
        "text.npz": "cannot be read",
        "text.safetensors": "cannot be read",
        "other.npz": "no array called y",
        "nan.npz": "NaN",
        "whole.npz": "int64",
        "flat.npz": r"shape \(8,\)",
        "shape.npz": "as y and the model have",
        "objects.npz": "cannot be read",
    }.items():
        with pytest.raises(dv.InputError, match=said) as error:
            run(tmp_path / "x", None, images=None, calibrate=False, measurements=tmp_path / name, covariances=["pigdm"])
        assert "\n" not in str(error.value), name
    np.savez(tmp_path / "two.npz", y=np.zeros((2, 1, 8, 8)))
    with pytest.raises(dv.InputError, match="2 measurements and 7 images"):
        run(tmp_path / "x", None, measurements=tmp_path / "two.npz", covariances=["pigdm"])


def test_by_default_what_the_table_has_is_compared_with_pigdm(table: Path) -> None:
    options = RestoreOptions(model="digits", operator="box", out=Path("x"))
    assert options.all_covariances == ["pigdm"]
    assert replace(options, table=table).all_covariances == ["pigdm", "isotropic", "dct"]
    assert replace(options, covariances=["dct"]).all_covariances == ["dct"]
