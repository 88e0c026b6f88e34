"""More flow pipelines, each of which treats its scheduler in a way of its own: networks of random weights alone, which
are handed encoded prompts and give latents.

    bria          asks a scheduler that is not diffusers' own to scale the network's input
    mochi         inverted σ, and a network that says x_0 − ε
    kandinsky5    the channels last, and a slice of the latents stepped in place
    wan22         two networks, one for each half of the noise levels; timesteps for every token
"""

from collections.abc import Callable
from typing import Any

import diffusers
import torch
from small_encoders import WIDTH
from small_family_parts import STEPS, seeded
from small_pipelines import CODEC

OTHERS: dict[str, Callable[[], tuple[Any, dict[str, Any]]]] = {}
#: (C, *spatial) of what their schedulers are handed, as images.
OTHER_SHAPES: dict[str, tuple[int, ...]] = {}


def entered(name: str, shape: tuple[int, ...]) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """Enter a function that gives a pipeline and the arguments of its call under a name."""

    def enter(make: Callable[[], Any]) -> Callable[[], Any]:
        OTHERS[name] = make
        OTHER_SHAPES[name] = shape
        return make

    return enter


def tokens(width: int = WIDTH, length: int = 4, seed: int = 0) -> torch.Tensor:
    """Encoded prompts (1, length, width)."""
    return torch.randn((1, length, width), generator=torch.Generator().manual_seed(seed))


def asked(size: int, **more: Any) -> dict[str, Any]:
    """A call with encoded prompts."""
    embedded = {"prompt_embeds": tokens(), "negative_prompt_embeds": tokens(seed=1)}
    return {"height": size, "width": size, "num_inference_steps": STEPS, "output_type": "latent", **embedded, **more}


def seen() -> dict[str, Any]:
    """Masks of the prompts' tokens, the last of which is none."""
    mask = torch.ones((1, 4), dtype=torch.bool)
    mask[:, -1] = False
    return {"prompt_attention_mask": mask, "negative_prompt_attention_mask": mask.clone()}


def flow(**config: Any) -> Any:
    """The scheduler of flow pipelines."""
    return diffusers.FlowMatchEulerDiscreteScheduler(**config)


@entered("bria", (4, 8, 8))
def _bria() -> Any:
    transformer = seeded(
        diffusers.BriaTransformer2DModel,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=[4, 4, 8],
    )
    vae = seeded(diffusers.AutoencoderKL, **CODEC, latent_channels=4, shift_factor=0.0)  # of which the shift is asked
    parts = {"vae": vae, "text_encoder": None, "tokenizer": None, "transformer": transformer}
    return diffusers.BriaPipeline(scheduler=flow(shift=3.0), **parts), asked(16)


@entered("chroma", (4, 8, 8))
def _chroma() -> Any:
    transformer = seeded(
        diffusers.ChromaTransformer2DModel,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 4, 8),
        approximator_num_channels=8,
        approximator_hidden_dim=16,
        approximator_layers=1,
    )
    parts = {"vae": None, "text_encoder": None, "tokenizer": None, "transformer": transformer}
    call = asked(64, **seen())
    return diffusers.ChromaPipeline(scheduler=flow(use_dynamic_shifting=True), **parts), call


@entered("aura_flow", (4, 8, 8))
def _aura_flow() -> Any:
    transformer = seeded(
        diffusers.AuraFlowTransformer2DModel,
        sample_size=8,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        caption_projection_dim=16,
        pos_embed_max_size=64,
    )
    parts = {"vae": None, "text_encoder": None, "tokenizer": None, "transformer": transformer}
    return diffusers.AuraFlowPipeline(scheduler=flow(shift=1.73), **parts), asked(64, **seen())


@entered("mochi", (4, 2, 8, 8))
def _mochi() -> Any:
    transformer = seeded(
        diffusers.MochiTransformer3DModel,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        pooled_projection_dim=8,
        in_channels=4,
        text_embed_dim=WIDTH,
        time_embed_dim=4,
        max_sequence_length=4,
    )
    parts = {"vae": None, "text_encoder": None, "tokenizer": None, "transformer": transformer}
    return diffusers.MochiPipeline(scheduler=flow(invert_sigmas=True), **parts), asked(64, num_frames=7, **seen())


@entered("kandinsky5", (4, 2, 8, 8))
def _kandinsky5() -> Any:
    transformer = seeded(
        diffusers.Kandinsky5Transformer3DModel,
        in_visual_dim=4,
        out_visual_dim=4,
        in_text_dim=WIDTH,
        in_text_dim2=WIDTH,
        time_dim=16,
        model_dim=16,
        ff_dim=16,
        num_text_blocks=1,
        num_visual_blocks=1,
        axes_dims=(4, 4, 8),
    )
    parts = {"vae": None, "text_encoder": None, "tokenizer": None, "text_encoder_2": None, "tokenizer_2": None}
    lengths = torch.tensor([0, 4], dtype=torch.int32)
    embedded = {
        f"{sign}{name}": value
        for sign, seed in (("", 0), ("negative_", 1))
        for name, value in {
            "prompt_embeds_qwen": tokens(seed=seed),
            "prompt_embeds_clip": tokens(seed=seed)[:, 0],
            "prompt_cu_seqlens": lengths,
        }.items()
    }
    call = {"height": 64, "width": 64, "num_frames": 5, "num_inference_steps": STEPS, "output_type": "latent"}
    pipe = diffusers.Kandinsky5T2VPipeline(scheduler=flow(shift=5.0), transformer=transformer, **parts)
    return pipe, {**call, **embedded}


@entered("hunyuan_video", (4, 2, 8, 8))
def _hunyuan_video() -> Any:
    transformer = seeded(
        diffusers.HunyuanVideoTransformer3DModel,
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        text_embed_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        rope_axes_dim=(4, 4, 8),
    )
    parts = {"vae": None, "text_encoder": None, "tokenizer": None, "text_encoder_2": None, "tokenizer_2": None}
    call = asked(64, num_frames=5, pooled_prompt_embeds=tokens()[:, 0], **seen())
    return diffusers.HunyuanVideoPipeline(scheduler=flow(shift=7.0), transformer=transformer, **parts), call


@entered("cogview4", (4, 8, 8))
def _cogview4() -> Any:
    transformer = seeded(
        diffusers.CogView4Transformer2DModel,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        text_embed_dim=WIDTH,
        time_embed_dim=8,
        condition_dim=4,
        pos_embed_max_size=16,
        sample_size=8,
        rope_axes_dim=(16, 16),
    )
    parts = {"vae": None, "text_encoder": None, "tokenizer": None, "transformer": transformer}
    scheduler = flow(use_dynamic_shifting=True, time_shift_type="linear", base_shift=0.25, max_shift=0.75)
    return diffusers.CogView4Pipeline(scheduler=scheduler, **parts), asked(64)


@entered("wan22", (4, 2, 8, 8))
def _wan22() -> Any:
    first, second = (
        seeded(
            diffusers.WanTransformer3DModel,
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            text_dim=WIDTH,
            freq_dim=8,
            ffn_dim=width,
            num_layers=1,
            rope_max_seq_len=32,
        )
        for width in (16, 24)
    )
    parts = {"vae": None, "text_encoder": None, "tokenizer": None}
    pipe = diffusers.WanPipeline(
        transformer=first, transformer_2=second, boundary_ratio=0.8, scheduler=flow(shift=3.0), **parts
    )
    return pipe, asked(64, num_frames=5)
