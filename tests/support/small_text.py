"""A tokenizer and a text encoder of random weights, and a Stable Diffusion pipeline around them."""

import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from small_pipelines import CODEC, SCHEDULER, UNET, seeded
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

LENGTH = 8
WIDTH = 8


def save_text_encoder(root: Path) -> Path:
    """tokenizer/ and text_encoder/ as a pipeline's save_pretrained writes them."""
    source = root / "vocabulary"
    source.mkdir(parents=True)
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(f"{c}</w>" for c in letters), "ca", "cat</w>", "do", "dog</w>", "<|startoftext|>"]
    words.append("<|endoftext|>")
    (source / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (source / "merges.txt").write_text("#version: 0.2\nc a\nca t</w>\nd o\ndo g</w>\n")
    tokenizer = CLIPTokenizer.from_pretrained(source, model_max_length=LENGTH)
    tokenizer.save_pretrained(root / "tokenizer")
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        bos_token_id=len(words) - 2,
        eos_token_id=len(words) - 1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        CLIPTextModel(config).save_pretrained(root / "text_encoder")
    shutil.rmtree(source)
    return root


def save_stable_diffusion(folder: Path) -> Path:
    """A whole pipeline: 8 noise levels, 16 × 16 pictures, prompts of one encoder."""
    parts = save_text_encoder(folder.with_name(f"{folder.name}-text"))
    kinds = {"down_block_types": ("CrossAttnDownBlock2D",) * 2, "up_block_types": ("CrossAttnUpBlock2D",) * 2}
    pipe = StableDiffusionPipeline(
        vae=seeded(AutoencoderKL, **CODEC, latent_channels=4, sample_size=16),
        text_encoder=CLIPTextModel.from_pretrained(parts / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(parts / "tokenizer"),
        unet=seeded(UNet2DConditionModel, **UNET, **kinds, cross_attention_dim=WIDTH, in_channels=4, out_channels=4),
        scheduler=DDIMScheduler(**SCHEDULER),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder)
    return folder
