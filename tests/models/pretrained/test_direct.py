"""Networks that are shown an image beside the noisy one: inpainting and enlarging UNets, whose image is a condition."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, UNet2DConditionModel
from small_pipelines import SCHEDULER, UNET, seeded, small_unet

from diffusion_var import Conditions, Denoiser, InputError, estimate

PROMPTS = {"down_block_types": ("CrossAttnDownBlock2D",) * 2, "up_block_types": ("CrossAttnUpBlock2D",) * 2}


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape, dtype=np.float32))


def saved(folder: Path, network: Any) -> Path:
    network.save_pretrained(folder / "unet")
    DDIMScheduler(**SCHEDULER).save_pretrained(folder / "scheduler")
    return folder


def load(folder: Path, **options: Any) -> Denoiser:
    return Denoiser.from_pretrained(folder, device="cpu", **options)


@pytest.fixture(scope="module")
def inpainting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    unet = seeded(UNet2DConditionModel, **UNET, **PROMPTS, cross_attention_dim=8, in_channels=9, out_channels=4)
    return saved(tmp_path_factory.mktemp("inpainting"), unet)


def test_nine_channels_are_four_and_a_condition(inpainting: Path) -> None:
    denoiser, x_t = load(inpainting), noise(2, 4, 8, 8)
    assert denoiser.shape == (4, 8, 8)
    condition = {"prompt": noise(2, 5, 8, seed=1), "concatenated": noise(2, 5, 8, 8, seed=2)}
    unet = UNet2DConditionModel.from_pretrained(inpainting / "unet").eval()
    with torch.no_grad():
        expected = unet(torch.cat([x_t, condition["concatenated"]], 1), torch.tensor(3), condition["prompt"]).sample
        found = denoiser(x_t, 4, condition).eps
        swapped = denoiser(x_t, 4, dict(reversed(condition.items()))).eps
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert torch.equal(swapped, found)


def test_guidance_changes_the_prompt_and_keeps_the_image(inpainting: Path) -> None:
    null, x_t = noise(5, 8, seed=3), noise(2, 4, 8, 8)
    condition = {"prompt": noise(2, 5, 8, seed=1), "concatenated": noise(2, 5, 8, 8, seed=2)}
    plain, guided = load(inpainting), load(inpainting, guidance_scale=3.0, unconditional={"prompt": null})
    with torch.no_grad():
        given = plain(x_t, 4, condition).eps
        free = plain(x_t, 4, {**condition, "prompt": null.expand(2, 5, 8)}).eps
        found = guided(x_t, 4, condition).eps
    torch.testing.assert_close(found, free + 3.0 * (given - free), rtol=0, atol=1e-5)


def test_a_pixel_network_that_enlarges(tmp_path: Path) -> None:
    denoiser = load(saved(tmp_path, small_unet(in_channels=6, out_channels=3)))
    images = noise(6, 3, 8, 8).clamp(-1, 1)
    small = torch.nn.functional.interpolate(images[:, :, ::2, ::2], scale_factor=2)
    table = estimate(
        denoiser,
        images,
        conditions=Conditions({"concatenated": small}, np.arange(6)),
        indices=[4],
        max_evaluations=256,
        batch_size=32,
        progress=False,
    )
    assert table.shape == (3, 8, 8)
    table.check(denoiser)


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        (torch.zeros(2, 5, 8), r'must be \{"concatenated"'),
        ({"prompt": torch.zeros(2, 5, 8)}, r'must be \{"concatenated"'),
        (
            {"prompt": torch.zeros(2, 5, 8), "concatenated": torch.zeros(2, 4, 8, 8)},
            r"but .B, 5, 8, 8. is",
        ),
        (None, "needs a condition"),
    ],
)
def test_conditions_that_do_not_fit(inpainting: Path, condition: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        load(inpainting)(noise(2, 4, 8, 8), 4, condition)


def test_it_is_the_same_network_as_the_pipelines(tmp_path: Path) -> None:
    """Its fingerprint is that of the UNet inside."""
    unet = small_unet(in_channels=6, out_channels=3)
    bare = Denoiser.from_pipeline(DDPMPipeline(unet, DDIMScheduler(**SCHEDULER)))
    assert bare.fingerprint == Denoiser(unet, bare.schedule, shape=(6, 8, 8)).fingerprint
