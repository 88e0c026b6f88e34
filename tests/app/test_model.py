"""Latent and conditional models on the command line: pictures go in and come out, classes go along."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from openai_unet import Kind, OpenAIUNet
from small_pipelines import CLASSES, STEPS, save_dit, save_ldm

import diffusion_var as dv
from diffusion_var.app.commands import estimate as estimate_command
from diffusion_var.app.commands import sample as sample_command
from diffusion_var.app.compare.options import CompareOptions, Method
from diffusion_var.app.compare.run import run as run_compare
from diffusion_var.app.model import open_model
from diffusion_var.app.options import EstimateOptions, ModelOptions, SampleOptions
from diffusion_var.data.images import read_images, to_uint8
from diffusion_var.metrics.classifier import ClassifierFeatures, save_features
from diffusion_var.models.pretrained.latents import LatentCodec

COUNT = 24


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, and an npz of labelled pictures."""
    root = tmp_path_factory.mktemp("kinds")
    save_dit(root / "dit")
    save_ldm(root / "ldm")
    stream = np.random.default_rng(0)
    pictures = stream.integers(0, 256, (COUNT, 16, 16, 3), dtype=np.uint8)
    np.savez(root / "pictures.npz", images=pictures, labels=np.arange(COUNT) % CLASSES)
    return root


def estimate(root: Path, kind: str, out: Path, **options: Any) -> dv.VarianceTable:
    images = f"{root / 'pictures.npz'}:images"
    chosen = {"structures": ["isotropic", "channel"], "tolerance": 9.0, **options}
    estimate_command.run(EstimateOptions(str(root / kind), images, out, **chosen))
    return dv.VarianceTable.load(out)


def labels(root: Path) -> str:
    return f"{root / 'pictures.npz'}:labels"


@pytest.fixture(scope="module")
def dit_table(root: Path) -> Path:
    estimate(root, "dit", root / "dit.safetensors", labels=labels(root), guidance_scale=1.5, latents=root / "latents")
    return root / "dit.safetensors"


def test_pictures_are_encoded_and_labels_go_with_them(root: Path, dit_table: Path) -> None:
    denoiser = dv.Denoiser.from_pretrained(root / "dit", device="cpu", guidance_scale=1.5)
    pictures = read_images(root / "pictures.npz", key="images")
    latents = dv.encode_latents(denoiser, pictures, progress=False)
    expected = dv.estimate(
        denoiser,
        latents,
        tolerance=9.0,
        structures=["isotropic", "channel"],
        conditions=np.arange(COUNT) % CLASSES,
        progress=False,
    )
    table = dv.VarianceTable.load(dit_table)
    assert table.guidance_scale == 1.5
    assert table.latent_scaling == (0.5, 0.0)
    for n in (1, 4, STEPS):
        assert table.posterior_variance(n) == pytest.approx(expected.posterior_variance(n), rel=1e-6)
    assert len(list((root / "latents").glob("latents-*.safetensors"))) == 1


def test_latents_are_kept(root: Path, dit_table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def encode(self: object, images: object) -> None:
        pytest.fail("the pictures were encoded again")

    monkeypatch.setattr(LatentCodec, "encode", encode)
    estimate(root, "dit", tmp_path / "t", classes=[0, 2], latents=root / "latents")


def sample(root: Path, kind: str, out: Path, **options: Any) -> np.ndarray:
    sample_command.run(SampleOptions(str(root / kind), out, **{"count": 5, "steps": 3, "batch_size": 2, **options}))
    found: np.ndarray = np.load(out)["images"]
    return found


@pytest.mark.parametrize("covariance", ["analytic", "learned_range"])
def test_samples_are_decoded_and_classes_are_cycled(
    covariance: Any, root: Path, dit_table: Path, tmp_path: Path
) -> None:
    table = dit_table if covariance == "analytic" else None
    found = sample(
        root, "dit", tmp_path / "s.npz", covariance=covariance, table=table, classes=[2, 0], guidance_scale=1.5
    )
    denoiser = dv.Denoiser.from_pretrained(root / "dit", device="cpu", guidance_scale=1.5)
    chosen = dv.LearnedRange() if table is None else dv.Analytic(dv.VarianceTable.load(table))
    latents = dv.Sampler(denoiser, chosen, 3).sample(5, conditions=torch.tensor([2, 0, 2, 0, 2]))
    assert denoiser.codec is not None
    expected = to_uint8(denoiser.codec.decode(latents)).numpy()
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert expected.std() > 1


def test_an_unconditional_latent_model_from_table_to_scores(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "compare"
    features = ClassifierFeatures(3, 16, CLASSES, width=8, dimension=4, name="small")
    save_features(features, tmp_path / "f.safetensors")
    options = CompareOptions(
        out,
        model=str(root / "ldm"),
        table_images=f"{root / 'pictures.npz'}:images",
        reference=f"{root / 'pictures.npz'}:images",
        baseline=None,
        features=str(tmp_path / "f.safetensors"),
        tolerance=9.0,
        steps=[2],
        seeds=[0],
        count=6,
        methods=[Method("beta_tilde"), Method("analytic", structure="channel")],
        latents=tmp_path / "latents",
    )
    run_compare(options)
    rows = json.loads((out / "results.json").read_text())
    assert "Analytic-DDPM channel" in json.dumps(rows, ensure_ascii=False)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("ldm", {"classes": [1]}, "takes no condition"),
        ("dit", {"prompts": Path("p.txt")}, "conditioned on classes"),
        ("dit", {}, "give --classes"),
    ],
)
def test_conditions_that_do_not_fit(
    kind: str, options: dict[str, Any], message: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("p.txt").write_text("a cat\n")
    model = open_model(str(root / kind), ModelOptions(**options))
    with pytest.raises(dv.InputError, match=message):
        model.sample_conditions([0, 1])


def test_a_table_of_another_guidance_scale_is_refused(root: Path, dit_table: Path, tmp_path: Path) -> None:
    with pytest.raises(dv.InputError, match=r"guidance scale: the table has 1\.5, the denoiser 3\.0"):
        sample(root, "dit", tmp_path / "s.npz", covariance="analytic", table=dit_table, classes=[1], guidance_scale=3.0)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("dit", {"labels": "labels", "classes": [1]}, "give one of both"),
        ("ldm", {"labels": "labels"}, "takes no class labels"),
    ],
)
def test_classes_of_a_table_are_of_one_kind(kind: str, options: dict[str, Any], message: str, root: Path) -> None:
    given = {**options, "labels": labels(root)}
    model = open_model(str(root / kind), ModelOptions(**given))
    with pytest.raises(dv.InputError, match=message):
        model.table_conditions(f"{root / 'pictures.npz'}:images", False)


def test_a_comparison_measures_with_the_images_own_classes(root: Path) -> None:
    """`classes` are those of the samples; drawn beside the images they would give another, larger variance."""
    model = open_model(str(root / "dit"), ModelOptions(labels=labels(root), classes=[1]))
    found = model.table_conditions(f"{root / 'pictures.npz'}:images", False, own=True)
    assert found is not None
    assert found.of_image.tolist() == [i % CLASSES for i in range(COUNT)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"table": Path("t.safetensors"), "covariance": "beta_tilde"},
            "--table has no meaning with --covariance beta_tilde",
        ),
        ({"labels": "x.npz:y"}, "--labels is for the images of a variance table"),
        ({"latents": Path("z")}, "--latents is for the images of a variance table"),
    ],
)
def test_options_that_a_sample_would_ignore_are_refused(
    options: dict[str, Any], message: str, root: Path, tmp_path: Path
) -> None:
    with pytest.raises(dv.InputError, match=message):
        sample(root, "ldm", tmp_path / "s.npz", **options)


def test_a_run_that_fails_at_once_leaves_nothing_in_the_way(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "samples"
    options: dict[str, Any] = {"count": 2, "steps": 2, "guidance_scale": 1.5}
    with pytest.raises(dv.InputError, match="class labels go from 0 to 1000"):
        sample_command.run(SampleOptions(str(root / "dit"), out, classes=[2000], **options))
    sample_command.run(SampleOptions(str(root / "dit"), out, classes=[1], **options))
    assert len(list(out.glob("*.png"))) == 2


# ---- checkpoints of OpenAI's ----------------------------------------------------------------------------------------


def test_a_checkpoint_of_openais(tmp_path: Path) -> None:
    """Its hyper-parameters in a YAML file, as their flags are called; sampled by class, with its learned range."""
    kind = Kind(out=6, classes=3)
    torch.save(OpenAIUNet(kind).state_dict(), tmp_path / "model.pt")
    (tmp_path / "flags.yaml").write_text(
        "image_size: 8\nattention_resolutions: 4,2\nnum_channels: 32\nclass_cond: True\nlearn_sigma: True\n"
        'noise_schedule: cosine\ntimestep_respacing: "50"\nnum_heads: 2\n'
    )
    options: dict[str, Any] = {"steps": 4, "count": 3, "classes": [2, 0], "openai": tmp_path / "flags.yaml"}
    options |= {"covariance": "learned_range", "device": "cpu"}
    sample_command.run(SampleOptions(str(tmp_path / "model.pt"), tmp_path / "s.npz", **options))
    given = {"image_size": 8, "num_heads": 2, "noise_schedule": "cosine", "timestep_respacing": "50"}
    denoiser = dv.Denoiser.from_openai(tmp_path / "model.pt", given, device="cpu")
    assert denoiser.schedule.num_steps == 50
    images = dv.Sampler(denoiser, dv.LearnedRange(), 4).sample(3, conditions=torch.tensor([2, 0, 2]))
    found, expected = np.load(tmp_path / "s.npz")["images"].astype(int), to_uint8(images, (-1.0, 1.0)).numpy()
    assert np.abs(found - expected).max() <= 1
    assert expected.std() > 30
    with pytest.raises(dv.InputError, match=r"model\.pt is a file of weights; .*--openai FILE\.yaml\.$"):
        open_model(str(tmp_path / "model.pt"), ModelOptions())
    with pytest.raises(dv.InputError, match=r"--variant have no meaning for a checkpoint of OpenAI's \(--openai\)"):
        open_model(str(tmp_path / "model.pt"), ModelOptions(openai=tmp_path / "flags.yaml", variant="fp16"))
    with pytest.raises(dv.InputError, match="guidance_scale=2 needs the condition that stands for none"):
        open_model(str(tmp_path / "model.pt"), ModelOptions(openai=tmp_path / "flags.yaml", guidance_scale=2.0))
    (tmp_path / "flags.yaml").write_text("image_size: 8\ndepth: 3\n")
    with pytest.raises(dv.InputError, match="an entry 'depth' that is no flag of OpenAI's models"):
        open_model(str(tmp_path / "model.pt"), ModelOptions(openai=tmp_path / "flags.yaml"))


def test_a_folder_of_images_of_a_checkpoint_is_completed_by_the_same_hyperparameters(tmp_path: Path) -> None:
    torch.save(OpenAIUNet(Kind()).state_dict(), tmp_path / "model.pt")
    flags = tmp_path / "flags.yaml"
    flags.write_text("{image_size: 8, num_heads: 4}")

    def run(count: int) -> None:
        options = SampleOptions(str(tmp_path / "model.pt"), tmp_path / "out", count=count, steps=2, openai=flags)
        sample_command.run(options)

    run(2)
    run(3)
    assert len(list((tmp_path / "out").glob("*.png"))) == 3
    flags.write_text("{image_size: 8, num_heads: 4, predict_xstart: true}")
    with pytest.raises(dv.InputError, match="is not empty"):
        run(4)
