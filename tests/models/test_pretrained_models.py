"""Models as diffusers saves them: a pipeline, a UNet folder, the hub's cache; and one sentence for every fault."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers import FlowMatchEulerDiscreteScheduler as FlowScheduler
from safetensors.torch import load_file, save_file

from diffusion_var import Denoiser, InputError, NoiseSchedule

WEIGHTS = "diffusion_pytorch_model.safetensors"


def make_unet(sample_size: Any = 8, channels: int = 3, out_channels: int | None = None) -> UNet2DModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UNet2DModel(
            sample_size=sample_size,
            in_channels=channels,
            out_channels=out_channels or channels,
            layers_per_block=1,
            block_out_channels=(8, 8),
            norm_num_groups=4,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=4,
        ).eval()


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
    assert denoiser.fingerprint == Denoiser(unet, denoiser.schedule, shape=(3, 8, 8)).fingerprint
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


def test_autocast_option(saved: dict[str, Path]) -> None:
    denoiser = Denoiser.from_pretrained(saved["ddpm"], device="cpu", autocast=torch.bfloat16)
    assert denoiser.autocast == torch.bfloat16
    with torch.no_grad():
        assert denoiser(batch(1, 3, 8, 8), 10).mean.dtype == torch.float32


# ---- the hub --------------------------------------------------------------------------------------------------


@pytest.fixture
def offline_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty hub cache, and no network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "hub"


@pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks` argument")
@pytest.mark.parametrize("kind", ["ddpm", "first pipelines"])
def test_loads_from_the_hubs_cache(kind: str, saved: dict[str, Path], offline_hub: Path, unet: UNet2DModel) -> None:
    repository = offline_hub / "models--someone--ddpm"
    shutil.copytree(saved[kind], repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    denoiser = Denoiser.from_pretrained("someone/ddpm", device="cpu")
    assert denoiser.clip == (-0.9, 0.9)
    assert denoiser.fingerprint == Denoiser(unet, denoiser.schedule, shape=(3, 8, 8)).fingerprint


@pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks` argument")
@pytest.mark.usefixtures("offline_hub")
def test_unreachable_hub_is_one_sentence() -> None:
    message = one_sentence("someone/ddpm")
    assert "no local folder someone/ddpm" in message
    assert "could not be had from the hub" in message


# ---- what is refused ------------------------------------------------------------------------------------------


def one_sentence(path: Any) -> str:
    with pytest.raises(InputError) as caught:
        Denoiser.from_pretrained(path, device="cpu")
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


@pytest.mark.parametrize("name", ["nowhere", "./no/where", "/no/where", "a/b/c", "~/nowhere"])
def test_missing_folder(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert f"no model folder at {name}" in one_sentence(name)


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert "no model folder" in one_sentence(tmp_path / "model.safetensors")


def test_empty_folder(tmp_path: Path) -> None:
    assert f"{tmp_path / 'config.json'} is missing" in one_sentence(tmp_path)


def test_missing_unet(broken: Path) -> None:
    shutil.rmtree(broken / "unet")
    assert f"{broken / 'unet' / 'config.json'} is missing" in one_sentence(broken)


def test_missing_scheduler(broken: Path) -> None:
    shutil.rmtree(broken / "scheduler")
    assert f"{broken / 'scheduler' / 'scheduler_config.json'} is missing" in one_sentence(broken)


def test_missing_weights(broken: Path) -> None:
    (broken / "unet" / WEIGHTS).unlink()
    message = one_sentence(broken)
    assert "could not be loaded" in message
    assert WEIGHTS in message


def test_pickled_weights_are_not_read(broken: Path) -> None:
    weights = load_file(broken / "unet" / WEIGHTS)
    torch.save(weights, broken / "unet" / "diffusion_pytorch_model.bin")
    (broken / "unet" / WEIGHTS).unlink()
    assert "could not be loaded" in one_sentence(broken)


@pytest.mark.parametrize("keep", [0, 7, 1000, -100])
def test_truncated_weights(keep: int, broken: Path) -> None:
    file = broken / "unet" / WEIGHTS
    file.write_bytes(file.read_bytes()[:keep])
    assert "could not be loaded" in one_sentence(broken)


def test_garbage_weights(broken: Path) -> None:
    (broken / "unet" / WEIGHTS).write_bytes(np.random.default_rng(0).bytes(5000))
    assert "could not be loaded" in one_sentence(broken)


def test_missing_and_unknown_tensors_are_not_made_up(broken: Path) -> None:
    file = broken / "unet" / WEIGHTS
    weights = load_file(file)
    fewer = dict(weights)
    del fewer["conv_in.weight"]
    save_file(fewer, file, metadata={"format": "pt"})
    assert "1 are missing or unknown, conv_in.weight among them" in one_sentence(broken)
    save_file({**weights, "another.weight": torch.zeros(1)}, file, metadata={"format": "pt"})
    assert "1 are missing or unknown, another.weight among them" in one_sentence(broken)


def test_tensor_of_another_shape(broken: Path) -> None:
    file = broken / "unet" / WEIGHTS
    weights = load_file(file)
    weights["conv_in.weight"] = torch.zeros(1, 2, 3)
    save_file(weights, file, metadata={"format": "pt"})
    assert "could not be loaded" in one_sentence(broken)


@pytest.mark.parametrize("path", ["unet/config.json", "scheduler/scheduler_config.json"])
@pytest.mark.parametrize(("content", "reason"), [("{", "could not be read as JSON"), ("[]", "must hold a JSON object")])
def test_damaged_config(path: str, content: str, reason: str, broken: Path) -> None:
    (broken / path).write_text(content)
    message = one_sentence(broken)
    assert reason in message
    assert str(broken / path) in message


def test_unsupported_network(broken: Path) -> None:
    edit(broken / "unet" / "config.json", _class_name="UNet2DConditionModel")
    message = one_sentence(broken)
    assert "is a UNet2DConditionModel, but the supported ones are UNet2DModel" in message


def test_unknown_block_type(broken: Path) -> None:
    edit(broken / "unet" / "config.json", down_block_types=["NoSuchBlock", "DownBlock2D"])
    assert "could not be loaded" in one_sentence(broken)


def test_unknown_image_size(broken: Path) -> None:
    edit(broken / "unet" / "config.json", sample_size=None)
    assert "sample_size=None" in one_sentence(broken)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prediction_type": "flow_prediction"}, "prediction_type is 'flow_prediction'"),
        ({"thresholding": True}, "thresholding=true"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule is 'sigmoid'"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr=true"),
    ],
)
def test_unsupported_scheduler_options(changes: dict[str, Any], message: str, broken: Path) -> None:
    edit(broken / "scheduler" / "scheduler_config.json", **changes)
    assert message in one_sentence(broken)


def test_unsupported_scheduler(broken: Path) -> None:
    FlowScheduler().save_pretrained(broken / "scheduler")
    assert "beta_schedule is None" in one_sentence(broken)
