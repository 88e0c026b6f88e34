"""Pipelines of random weights, as diffusers saves them, small enough for a test: 8 noise levels, 16 × 16 pictures."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    LDMPipeline,
    UNet2DModel,
    VQModel,
)

STEPS = 8
CLASSES = 3  # that the tests use
LATENT_SIZE = 8
# ᾱ falls from 0.98 to 0.001 in 8 steps, as it does in 1,000.
SCHEDULER = {
    "num_train_timesteps": STEPS,
    "beta_start": 0.02,
    "beta_end": 0.9,
    "clip_sample": False,
    "set_alpha_to_one": True,
}


UNET: dict[str, Any] = {
    "sample_size": 8,
    "layers_per_block": 1,
    "block_out_channels": (8, 8),
    "norm_num_groups": 4,
    "attention_head_dim": 4,
}
ATTENTION: dict[str, Any] = {
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}
CODEC: dict[str, Any] = {
    "block_out_channels": (4, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 2,
}


def seeded(make: Callable[..., Any], **config: Any) -> Any:
    """A network of random weights, the same every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make(**config).eval().requires_grad_(False)


def small_unet(**config: Any) -> UNet2DModel:
    """A UNet2DModel of 8 × 8 images with attention."""
    unet: UNet2DModel = seeded(UNet2DModel, **{**UNET, **ATTENTION, **config})
    return unet


def save_dit(folder: Path) -> Path:
    """A class-conditional latent model with a learned range."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer = DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            out_channels=8,
            num_layers=1,
            sample_size=LATENT_SIZE,
            patch_size=2,
            num_embeds_ada_norm=1000,  # what DiTPipeline takes for granted
            norm_num_groups=4,
        )
        for parameter in transformer.proj_out_2.parameters():  # initialised with zeros
            torch.nn.init.normal_(parameter, std=0.2)
        vae = AutoencoderKL(
            **CODEC,
            latent_channels=4,
            sample_size=16,
            scaling_factor=0.5,
        )
        DiTPipeline(transformer, vae, DDIMScheduler(**SCHEDULER)).save_pretrained(folder)
    return folder


def save_ldm(folder: Path) -> Path:
    """An unconditional latent model with a VQ autoencoder."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        vqvae = VQModel(
            **CODEC,
            latent_channels=3,
            num_vq_embeddings=16,
        )
        unet = UNet2DModel(
            sample_size=LATENT_SIZE,
            layers_per_block=1,
            block_out_channels=(8, 8),
            norm_num_groups=4,
            down_block_types=("DownBlock2D",) * 2,
            up_block_types=("UpBlock2D",) * 2,
        )
        LDMPipeline(vqvae=vqvae, unet=unet, scheduler=DDIMScheduler(**SCHEDULER)).save_pretrained(folder)
    return folder
