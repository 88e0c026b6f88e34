"""Models that cannot be loaded: one sentence for every fault of a folder, its weights, its configs and their kinds."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    CMStochasticIterativeScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UNet2DConditionModel,
)
from safetensors.torch import load_file, save_file
from small_pipelines import UNET, seeded, small_unet

from diffusion_var import Denoiser, InputError

WEIGHTS = "diffusion_pytorch_model.safetensors"


def make_prompted_unet(**config: Any) -> UNet2DConditionModel:
    up_block_types = ("CrossAttnUpBlock2D", "UpBlock2D")
    blocks = {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "up_block_types": up_block_types}
    return seeded(UNet2DConditionModel, **{**UNET, **blocks, "cross_attention_dim": 8, **config})


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "ddpm"
    DDPMPipeline(small_unet(), DDPMScheduler()).save_pretrained(path)
    return path


@pytest.fixture
def broken(saved: Path, tmp_path: Path) -> Path:
    """A copy of the pipeline folder, to be damaged."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


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
    message = one_sentence(broken)
    assert "(a DDPMPipeline) holds no UNet and no transformer" in message
    assert f"{broken / 'unet' / 'config.json'} is missing" in message


def test_missing_scheduler(broken: Path) -> None:
    shutil.rmtree(broken / "scheduler")
    assert f"{broken / 'scheduler' / 'scheduler_config.json'} is missing" in one_sentence(broken)


def test_missing_weights(broken: Path) -> None:
    (broken / "unet" / WEIGHTS).unlink()
    message = one_sentence(broken)
    assert "could not be loaded" in message
    assert WEIGHTS in message


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


def test_unknown_block_type(broken: Path) -> None:
    edit(broken / "unet" / "config.json", down_block_types=["NoSuchBlock", "DownBlock2D"])
    assert "could not be loaded" in one_sentence(broken)


def test_unknown_image_size(broken: Path) -> None:
    edit(broken / "unet" / "config.json", sample_size=None)
    assert "sample_size=None" in one_sentence(broken)


# ---- kinds that are not supported -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"_class_name": "SD3Transformer2DModel"},
        {"_class_name": "Transformer2DModel", "norm_type": "layer_norm"},  # DiT's old name, but not DiT
        {"_class_name": None},
    ],
)
def test_unsupported_network(changes: dict[str, Any], broken: Path) -> None:
    edit(broken / "unet" / "config.json", **changes)
    message = one_sentence(broken)
    assert f"is a {changes['_class_name']}, but the supported ones are UNet2DModel, UNet2DConditionModel," in message
    assert "Denoiser(callable, schedule, …)" in message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"prediction_type": "flow_prediction"},
            "prediction_type is 'flow_prediction', but the supported ones are eps",
        ),
        ({"thresholding": True}, "thresholding=true"),
        ({"beta_schedule": "laplace"}, "beta_schedule is 'laplace'"),
        ({"rescale_betas_zero_snr": True}, "zero terminal SNR"),
        (
            {"variance_type": "learned_range"},
            "variance_type='learned_range', but its network returns 3 channels, not 6",
        ),
        ({"variance_type": "learned"}, "variance_type='learned', but its network returns 3 channels, not 6"),
        ({"clip_sample_range": -1.0}, "clip=(1.0, -1.0)"),
        ({"_class_name": "NoSuchScheduler"}, "the scheduler NoSuchScheduler is not supported"),
    ],
)
def test_unsupported_scheduler_options(changes: dict[str, Any], message: str, broken: Path) -> None:
    edit(broken / "scheduler" / "scheduler_config.json", **changes)
    assert message in one_sentence(broken)


def test_unsupported_scheduler(broken: Path) -> None:
    CMStochasticIterativeScheduler().save_pretrained(broken / "scheduler")
    assert "the scheduler CMStochasticIterativeScheduler is not supported" in one_sentence(broken)


def test_a_prediction_type_of_another_family(broken: Path) -> None:
    FlowMatchEulerDiscreteScheduler().save_pretrained(broken / "scheduler")
    edit(broken / "scheduler" / "scheduler_config.json", prediction_type="epsilon")
    assert "prediction_type is 'epsilon', but the supported ones are flow_prediction" in one_sentence(broken)


# ---- channels -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "refused"),
    [
        ("fixed_small", "a learned range, but its scheduler has variance_type='fixed_small'"),
        ("fixed_large", "a learned range, but its scheduler has variance_type='fixed_large'"),
        ("learned", "variance_type='learned' (log-variances), but only learned_range is supported"),
        ("learned_range", None),
    ],
)
def test_two_c_channels_must_be_a_learned_range(kind: str, refused: str | None, tmp_path: Path) -> None:
    small_unet(out_channels=6).save_pretrained(tmp_path)
    DDPMScheduler(variance_type=kind).save_pretrained(tmp_path)
    if refused is None:
        assert Denoiser.from_pretrained(tmp_path, device="cpu").shape == (3, 8, 8)
    else:
        assert refused in one_sentence(tmp_path)


def test_two_c_channels_with_a_scheduler_that_does_not_say(tmp_path: Path) -> None:
    """DPM-Solver's variance_type is null, DiT's DDIM has none: neither contradicts a learned range."""
    small_unet(out_channels=6).save_pretrained(tmp_path)
    DPMSolverMultistepScheduler().save_pretrained(tmp_path)
    x_t = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 3, 8, 8), dtype=np.float32))
    assert Denoiser.from_pretrained(tmp_path, device="cpu")(x_t, 10).range is not None


def test_a_network_that_returns_more_channels_than_it_takes(tmp_path: Path) -> None:
    make_prompted_unet(in_channels=4, out_channels=9).save_pretrained(tmp_path / "unet")
    DDPMScheduler().save_pretrained(tmp_path / "scheduler")
    message = one_sentence(tmp_path)
    assert "takes 4 channels and returns 9" in message
    assert "fewer (beside an image)" in message


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (
            {
                "addition_embed_type": "text_time",  # Stable Diffusion XL
                "addition_time_embed_dim": 4,
                "projection_class_embeddings_input_dim": 32,
            },
            "addition_embed_type='text_time'",
        ),
        ({"encoder_hid_dim_type": "text_proj", "encoder_hid_dim": 8}, "encoder_hid_dim_type='text_proj'"),
        ({"class_embed_type": "timestep"}, "class_embed_type='timestep'"),
        ({"num_class_embeds": 5}, "num_class_embeds=5"),
    ],
)
def test_unets_that_want_more_than_prompts(config: dict[str, Any], named: str, tmp_path: Path) -> None:
    make_prompted_unet(**config).save_pretrained(tmp_path / "unet")
    DDPMScheduler().save_pretrained(tmp_path / "scheduler")
    assert f"wants more than prompt embeddings ({named})" in one_sentence(tmp_path)


# ---- autoencoders ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"_class_name": "AutoencoderDC"},
            "is a AutoencoderDC, but the supported ones are AutoencoderKL, AutoencoderTiny, VQModel",
        ),
        ({"scaling_factor": 0}, "scaling_factor is 0.0, but it must be finite and not 0"),
        ({"scaling_factor": float("nan")}, "the config has scaling_factor=nan, but a number is expected there"),
    ],
)
@pytest.mark.parametrize("part", ["vae", "vqvae"])
def test_unsupported_autoencoders(changes: dict[str, Any], message: str, part: str, broken: Path) -> None:
    """Refused when the model is loaded, not when the first image is decoded."""
    codec = {"block_out_channels": (8,), "norm_num_groups": 4, "latent_channels": 3}
    seeded(AutoencoderKL, **codec).save_pretrained(broken / part)
    assert Denoiser.from_pretrained(broken, device="cpu").codec is not None
    edit(broken / part / "config.json", **changes)
    assert message in one_sentence(broken)
