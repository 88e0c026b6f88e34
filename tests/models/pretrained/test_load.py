"""Models as diffusers saves them: every layout, precision and file format, and the hub."""

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file
from small_pipelines import small_unet

from diffusion_var import Denoiser, InputError, NoiseSchedule
from diffusion_var.models.fingerprint import weights_fingerprint

WEIGHTS = "diffusion_pytorch_model.safetensors"


def make_unet(sample_size: Any = 8, channels: int = 3, out_channels: int | None = None) -> UNet2DModel:
    return small_unet(sample_size=sample_size, in_channels=channels, out_channels=out_channels or channels)


@pytest.fixture(scope="module")
def unet() -> UNet2DModel:
    return make_unet()


@pytest.fixture(scope="module")
def saved(unet: UNet2DModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same network in every layout that is supported."""
    root = tmp_path_factory.mktemp("models")
    kinds = ("ddpm", "ddim", "beside", "inside", "first pipelines")
    folders = {kind: root / kind for kind in kinds}
    ddpm, ddim = DDPMScheduler(clip_sample_range=0.9), DDIMScheduler(clip_sample=True, clip_sample_range=0.9)
    DDPMPipeline(unet, ddpm).save_pretrained(folders["ddpm"])
    DDIMPipeline(unet, ddim).save_pretrained(folders["ddim"])
    for kind in ("beside", "inside", "first pipelines"):
        unet.save_pretrained(folders[kind])
    ddpm.save_pretrained(folders["beside"])
    ddpm.save_pretrained(folders["inside"] / "scheduler")
    ddpm.save_pretrained(folders["first pipelines"])
    shutil.copy(folders["ddpm"] / "model_index.json", folders["first pipelines"])
    return folders


def batch(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).standard_normal(shape, dtype=np.float32))


def edit(path: Path, **changes: Any) -> None:
    config = json.loads(path.read_text())
    config.update(changes)
    path.write_text(json.dumps(config))


@pytest.fixture
def broken(saved: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the pipeline folder, to be damaged."""
    return Path(shutil.copytree(saved["ddpm"], tmp_path / "model"))


# ---- what is loaded -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ddpm", "ddim", "beside", "inside", "first pipelines"])
def test_every_layout_gives_the_same_model(kind: str, saved: dict[str, Path], unet: UNet2DModel) -> None:
    denoiser = Denoiser.from_pretrained(saved[kind], device="cpu")
    assert denoiser.shape == (3, 8, 8)
    assert denoiser.prediction == "epsilon"
    assert denoiser.clip == denoiser.data_range == (-0.9, 0.9)
    assert denoiser.schedule == NoiseSchedule.linear(1000)
    assert denoiser.fingerprint == weights_fingerprint(unet)
    assert not denoiser.network.training
    assert not any(p.requires_grad for p in denoiser.network.parameters())


@pytest.mark.parametrize("kind", ["ddpm", "ddim"])
@pytest.mark.parametrize("n", [1, 400, 1000])
def test_mean_is_what_the_pipeline_computes(kind: str, n: int, saved: dict[str, Path]) -> None:
    pipeline = {"ddpm": DDPMPipeline, "ddim": DDIMPipeline}[kind].from_pretrained(saved[kind])
    pipeline.scheduler.set_timesteps(1000)
    x_t = batch(2, 3, 8, 8)
    with torch.no_grad():
        out = pipeline.unet(x_t, n - 1).sample
        generator = torch.Generator().manual_seed(0)
        expected = pipeline.scheduler.step(out, n - 1, x_t, generator=generator).pred_original_sample
        posterior = Denoiser.from_pretrained(str(saved[kind]), device="cpu")(x_t, n)
    torch.testing.assert_close(posterior.mean, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(posterior.eps, out, rtol=1e-5, atol=1e-6)
    assert float(out.std()) > 0.01


@pytest.mark.parametrize("prediction", ["sample", "v_prediction"])
def test_scheduler_config_is_obeyed(prediction: str, broken: Path) -> None:
    edit(
        broken / "scheduler" / "scheduler_config.json",
        prediction_type=prediction,
        clip_sample=False,
        beta_schedule="squaredcos_cap_v2",
        num_train_timesteps=200,
    )
    denoiser = Denoiser.from_pretrained(broken, device="cpu")
    assert denoiser.prediction == prediction
    assert denoiser.clip is None
    assert denoiser.schedule == NoiseSchedule.cosine(200)


def test_rectangular_images_and_a_learned_range(tmp_path: Path) -> None:
    make_unet(sample_size=[4, 8], channels=1, out_channels=2).save_pretrained(tmp_path)
    DDPMScheduler(variance_type="learned_range").save_pretrained(tmp_path)
    denoiser = Denoiser.from_pretrained(tmp_path, device="cpu")
    assert denoiser.shape == (1, 4, 8)
    with torch.no_grad():
        posterior = denoiser(batch(2, 1, 4, 8), torch.tensor([3, 700]))
    assert posterior.range is not None
    assert posterior.mean.shape == posterior.range.shape == (2, 1, 4, 8)


# ---- precision and files --------------------------------------------------------------------------------------


def test_autocast_option(saved: dict[str, Path]) -> None:
    denoiser = Denoiser.from_pretrained(saved["ddpm"], device="cpu", autocast=torch.bfloat16)
    assert denoiser.autocast == torch.bfloat16
    with torch.no_grad():
        assert denoiser(batch(1, 3, 8, 8), 10).mean.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("n", [10, torch.tensor([10, 900])])
def test_half_precision(dtype: torch.dtype, n: Any, saved: dict[str, Path]) -> None:
    """The weights are half as large; x_t and the posterior stay in float32, and close to the float32 network's."""
    whole = Denoiser.from_pretrained(saved["ddpm"], device="cpu")
    half = Denoiser.from_pretrained(saved["ddpm"], device="cpu", dtype=dtype)
    assert {p.dtype for p in whole.network.parameters()} == {torch.float32}
    assert {p.dtype for p in half.network.parameters()} == {dtype}
    x_t = batch(2, 3, 8, 8)
    posterior, expected = half(x_t, n), whole(x_t, n)
    assert posterior.mean.dtype == posterior.eps.dtype == torch.float32
    difference = float((posterior.eps - expected.eps).abs().max())
    assert 0 < difference < 10 * torch.finfo(dtype).eps


def test_variant(unet: UNet2DModel, broken: Path) -> None:
    """diffusion_pytorch_model.fp16.safetensors is another file, whose weights need not be float16."""
    changed = make_unet()
    changed.conv_out.bias.data += 1.0
    changed.save_pretrained(broken / "unet", variant="fp16")
    plain, variant = (Denoiser.from_pretrained(broken, device="cpu", variant=v) for v in (None, "fp16"))
    assert plain.fingerprint == weights_fingerprint(unet)
    assert variant.fingerprint == weights_fingerprint(changed) != plain.fingerprint
    with pytest.raises(InputError, match=r"expected diffusion_pytorch_model\.ema\.safetensors beside its config\.$"):
        Denoiser.from_pretrained(broken, device="cpu", variant="ema")


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_weights_in_many_files(variant: str | None, unet: UNet2DModel, broken: Path) -> None:
    (broken / "unet" / WEIGHTS).unlink()
    unet.save_pretrained(broken / "unet", variant=variant, max_shard_size="20KB")
    assert len(list((broken / "unet").glob("*-of-*.safetensors"))) > 1
    denoiser = Denoiser.from_pretrained(broken, device="cpu", variant=variant)
    assert denoiser.fingerprint == weights_fingerprint(unet)


@pytest.fixture
def pickled(broken: Path) -> Path:
    """The weights of the UNet as a pickle, and no other."""
    torch.save(load_file(broken / "unet" / WEIGHTS), broken / "unet" / "diffusion_pytorch_model.bin")
    (broken / "unet" / WEIGHTS).unlink()
    return broken


def test_pickled_weights_are_read_only_if_asked_for(pickled: Path, unet: UNet2DModel) -> None:
    with pytest.raises(InputError, match=r"as a pickle only \(\.bin\), .* pass allow_pickle=True .*\.$"):
        Denoiser.from_pretrained(pickled, device="cpu")
    denoiser = Denoiser.from_pretrained(pickled, device="cpu", allow_pickle=True)
    assert denoiser.fingerprint == weights_fingerprint(unet)


class Trap:
    """What a hostile pickle does: it calls something while it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("trap"),)


def test_a_pickle_that_runs_code_is_refused(pickled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(pickled)
    file = pickled / "unet" / "diffusion_pytorch_model.bin"
    torch.save({**torch.load(file, weights_only=True), "trap": Trap()}, file)
    with pytest.raises(InputError, match="could not be loaded"):
        Denoiser.from_pretrained(pickled, device="cpu", allow_pickle=True)
    assert not (pickled / "trap").exists()
    torch.load(file, weights_only=False)
    assert (pickled / "trap").exists()


def test_attention_weights_under_their_old_names(unet: UNet2DModel, broken: Path) -> None:
    """The first DDPM and LDM checkpoints call them query, key, value and proj_attn."""
    file, weights = broken / "unet" / WEIGHTS, {}
    for name, tensor in load_file(file).items():
        for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            name = name.replace(f".{new}.", f".{old}.")
        weights[name] = tensor
    assert sum(".query." in name for name in weights) >= 2
    save_file(weights, file, metadata={"format": "pt"})
    assert Denoiser.from_pretrained(broken, device="cpu").fingerprint == weights_fingerprint(unet)


# ---- the hub --------------------------------------------------------------------------------------------------


@pytest.fixture
def offline_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty hub cache, and no network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "hub"


@pytest.mark.parametrize("revision", [None, "main", "0" * 40])
@pytest.mark.parametrize("kind", ["ddpm", "first pipelines"])
def test_loads_from_the_hubs_cache(
    kind: str, revision: str | None, saved: dict[str, Path], offline_hub: Path, unet: UNet2DModel
) -> None:
    repository = offline_hub / "models--someone--ddpm"
    shutil.copytree(saved[kind], repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    denoiser = Denoiser.from_pretrained("someone/ddpm", device="cpu", revision=revision)
    assert denoiser.clip == (-0.9, 0.9)
    assert denoiser.fingerprint == weights_fingerprint(unet)


@pytest.mark.usefixtures("offline_hub")
def test_unreachable_hub_is_one_sentence_that_names_the_files() -> None:
    with pytest.raises(InputError) as caught:
        Denoiser.from_pretrained("someone/ddpm", device="cpu")
    message = str(caught.value)
    assert "there is no local folder someone/ddpm" in message
    assert "could not be had from the hub (LocalEntryNotFoundError)" in message
    wanted = ("config.json", "scheduler/scheduler_config.json", WEIGHTS, "model_index.json", "unet/", "transformer/")
    assert all(file in message for file in wanted)
    assert "\n" not in message
    assert message.endswith(".")


REPOSITORY = [
    *("README.md", "model_index.json", "big.ckpt", "big.safetensors", "scheduler/scheduler_config.json"),
    *("tokenizer/merges.txt", "feature_extractor/preprocessor_config.json", "safety_checker/model.safetensors"),
    *(f"text_encoder/{name}" for name in ("config.json", "model.safetensors", "model.fp16.safetensors")),
    *("flax/diffusion_pytorch_model.safetensors", "unet/flax_model.msgpack"),
    *(f"{part}/config.json" for part in ("unet", "vae", "safety_checker")),
    *(f"{part}/diffusion_pytorch_model.{kind}" for part in ("unet", "vae") for kind in ("safetensors", "bin")),
    *(f"{part}/diffusion_pytorch_model.fp16.{kind}" for part in ("unet", "vae") for kind in ("safetensors", "bin")),
    "unet/diffusion_pytorch_model.non_ema.safetensors",
    *("transformer/diffusion_pytorch_model-00001-of-00002.safetensors", f"transformer/{WEIGHTS}.index.json"),
    "transformer/diffusion_pytorch_model.fp16-00001-of-00002.safetensors",
    f"transformer/{WEIGHTS}.index.fp16.json",
]
ALWAYS = {"model_index.json", "scheduler/scheduler_config.json", "unet/config.json", "vae/config.json"}
ALWAYS |= {"text_encoder/config.json", "tokenizer/merges.txt"}


def weights_of(kinds: tuple[str, ...], variant: str) -> set[str]:
    return {f"{part}/diffusion_pytorch_model{variant}.{kind}" for part in ("unet", "vae") for kind in kinds}


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, {*weights_of(("safetensors",), ""), "text_encoder/model.safetensors", *REPOSITORY[-4:-2]}),
        (
            {"variant": "fp16"},
            {*weights_of(("safetensors",), ".fp16"), "text_encoder/model.fp16.safetensors", *REPOSITORY[-2:]},
        ),
        (
            {"allow_pickle": True, "revision": "v1.0"},
            {*weights_of(("safetensors", "bin"), ""), *REPOSITORY[-4:-2], "text_encoder/model.safetensors"},
        ),
    ],
)
def test_what_is_fetched(
    options: dict[str, Any], wanted: set[str], saved: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of a large repository only what is needed; weights of other variants and kinds would be gigabytes."""
    calls = []

    def snapshot_download(*given: Any, **options: Any) -> str:
        calls.append((given, options))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.chdir(tmp_path)
    middle = f".{options['variant']}" if "variant" in options else ""
    shutil.copytree(saved["ddpm"], tmp_path, dirs_exist_ok=True)
    (tmp_path / "unet" / WEIGHTS).rename(tmp_path / "unet" / f"diffusion_pytorch_model{middle}.safetensors")
    Denoiser.from_pretrained("someone/large", device="cpu", **options)
    (((name,), fetched),) = calls
    assert name == "someone/large"
    assert fetched["revision"] == options.get("revision")
    assert set(filter_repo_objects(REPOSITORY, allow_patterns=fetched["allow_patterns"])) == ALWAYS | wanted
