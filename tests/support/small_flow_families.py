"""The families of flow-matching pipelines, of pictures and of video."""

from typing import Any

import diffusers
import small_encoders as text
import torch
from small_family_parts import PICTURE, codec, family, seeded
from small_pipelines import CODEC

WIDTH = text.WIDTH


def flow_codec(**config: Any) -> Any:
    """An AutoencoderKL with the scale and shift that flow models use."""
    return codec(scaling_factor=1.5, shift_factor=0.1, **config)


def flow(**config: Any) -> Any:
    """The scheduler of most flow pipelines."""
    return diffusers.FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **config})


DYNAMIC = {"use_dynamic_shifting": True, "base_image_seq_len": 4, "max_image_seq_len": 64, "shift": 1.0}


# ---- of pictures, by flow -------------------------------------------------------------------------------------------


@family("sd3", **PICTURE, max_sequence_length=8)
def _sd3() -> Any:
    transformer = seeded(
        diffusers.SD3Transformer2DModel,
        sample_size=8,
        patch_size=2,
        in_channels=16,  # what its inpainting asks for
        out_channels=16,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=16,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=16,
    )
    parts = {
        "vae": flow_codec(channels=16),
        "text_encoder": text.clip_encoder(projected=True),
        "text_encoder_2": text.clip_encoder(projected=True, seed=1),
        "text_encoder_3": text.t5_encoder("T5", 2 * WIDTH),
        "tokenizer": text.clip_tokenizer(),
        "tokenizer_2": text.clip_tokenizer(),
        "tokenizer_3": text.t5_tokenizer(),
        "transformer": transformer,
    }
    return diffusers.StableDiffusion3Pipeline, flow(), parts


@family("flux", **PICTURE, max_sequence_length=8)
def _flux() -> Any:
    transformer = seeded(
        diffusers.FluxTransformer2DModel,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(4, 4, 8),
    )
    parts = {
        "vae": flow_codec(),
        "text_encoder": text.clip_encoder(),
        "text_encoder_2": text.t5_encoder(),
        "tokenizer": text.clip_tokenizer(),
        "tokenizer_2": text.t5_tokenizer(),
        "transformer": transformer,
    }
    return diffusers.FluxPipeline, flow(**DYNAMIC), parts


@family("flux2", **PICTURE, max_sequence_length=8, text_encoder_out_layers=(1, 2))
def _flux2() -> Any:
    transformer = seeded(
        diffusers.Flux2Transformer2DModel,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=2 * WIDTH,
        timestep_guidance_channels=8,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    vae = seeded(diffusers.AutoencoderKLFlux2, **CODEC, latent_channels=4, sample_size=16)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        vae.bn.running_mean.normal_(std=0.1)
        vae.bn.running_var.uniform_(0.5, 2.0)
    parts = {
        "vae": vae,
        "text_encoder": text.qwen_encoder(causal=True),
        "tokenizer": text.qwen_tokenizer(),
        "transformer": transformer,
    }
    return diffusers.Flux2KleinPipeline, flow(**DYNAMIC), parts


@family(
    "sana",
    **{**PICTURE, "height": 32, "width": 32},
    max_sequence_length=8,
    use_resolution_binning=False,
    complex_human_instruction=None,
)
def _sana() -> Any:
    transformer = seeded(
        diffusers.SanaTransformer2DModel,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=WIDTH,
        sample_size=8,
    )
    vae = seeded(
        diffusers.AutoencoderDC,
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock",) * 3,
        decoder_block_types=("ResBlock",) * 3,
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        encoder_qkv_multiscales=((),) * 3,
        decoder_qkv_multiscales=((),) * 3,
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.41,
    )
    parts = {
        "vae": vae,
        "text_encoder": text.gemma_encoder(),
        "tokenizer": text.gemma_tokenizer(),
        "transformer": transformer,
    }
    return diffusers.SanaPipeline, flow(), parts


@family("lumina2", **{**PICTURE, "height": 64, "width": 64}, max_sequence_length=32, system_prompt="b")
def _lumina2() -> Any:
    transformer = seeded(
        diffusers.Lumina2Transformer2DModel,
        sample_size=8,
        patch_size=2,
        in_channels=4,
        hidden_size=24,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=8,
        axes_dim_rope=(4, 4, 4),
        axes_lens=(64, 16, 16),
        cap_feat_dim=WIDTH,
    )
    parts = {
        "vae": flow_codec(blocks=4),
        "text_encoder": text.gemma_encoder(),
        "tokenizer": text.gemma_tokenizer(),
        "transformer": transformer,
    }
    return diffusers.Lumina2Pipeline, flow(), parts


LATENTS = {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [1.5, 0.5, 2.0, 1.0]}


@family("qwen_image", **PICTURE, max_sequence_length=8, true_cfg_scale=2.0, negative_prompt="a dog")
def _qwen_image() -> Any:
    transformer = seeded(
        diffusers.QwenImageTransformer2DModel,
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 4, 8),
    )
    vae = seeded(
        diffusers.AutoencoderKLQwenImage,
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[False],
        **LATENTS,
    )
    parts = {
        "vae": vae,
        "text_encoder": text.qwen_vision_encoder(),
        "tokenizer": text.qwen_tokenizer(),
        "transformer": transformer,
    }
    return diffusers.QwenImagePipeline, flow(**DYNAMIC, shift_terminal=0.02), parts


@family("z_image", **PICTURE, max_sequence_length=8)
def _z_image() -> Any:
    transformer = seeded(
        diffusers.ZImageTransformer2DModel,
        in_channels=4,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=WIDTH,
        axes_dims=[4, 4, 8],
        axes_lens=[64, 16, 16],
    )
    for name in ("x_pad_token", "cap_pad_token"):  # left empty where no weights are loaded
        torch.nn.init.zeros_(getattr(transformer, name))
    parts = {
        "vae": flow_codec(),
        "text_encoder": text.qwen_encoder(),
        "tokenizer": text.qwen_tokenizer(),
        "transformer": transformer,
    }
    return diffusers.ZImagePipeline, flow(), parts


# ---- of video, by flow ----------------------------------------------------------------------------------------------


@family("wan", **PICTURE, num_frames=5, max_sequence_length=8)
def _wan() -> Any:
    transformer = seeded(
        diffusers.WanTransformer3DModel,
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=WIDTH,
        freq_dim=8,
        ffn_dim=16,
        num_layers=1,
        rope_max_seq_len=32,
    )
    vae = seeded(
        diffusers.AutoencoderKLWan,
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        scale_factor_temporal=2,
        scale_factor_spatial=4,
        **LATENTS,
    )
    parts = {
        "vae": vae,
        "text_encoder": text.t5_encoder("UMT5"),
        "tokenizer": text.t5_tokenizer(),
        "transformer": transformer,
    }
    return diffusers.WanPipeline, flow(), parts


@family("ltx", **{**PICTURE, "height": 32, "width": 32}, num_frames=9, max_sequence_length=8)
def _ltx() -> Any:
    transformer = seeded(
        diffusers.LTXVideoTransformer3DModel,
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        cross_attention_dim=24,
        num_layers=1,
        caption_channels=WIDTH,
    )
    vae = seeded(
        diffusers.AutoencoderKLLTXVideo,
        latent_channels=4,
        block_out_channels=(8, 8),
        down_block_types=("LTXVideoDownBlock3D",) * 2,
        decoder_block_out_channels=(8, 8),
        layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        spatio_temporal_scaling=(True, True),
        decoder_spatio_temporal_scaling=(True, True),
        decoder_inject_noise=(False, False, False),
        downsample_type=("conv", "conv"),
        upsample_residual=(False, False),
        upsample_factor=(1, 1),
        patch_size=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        vae.latents_mean.normal_(std=0.1)
        vae.latents_std.uniform_(0.5, 2.0)
    parts = {
        "vae": vae,
        "text_encoder": text.t5_encoder(),
        "tokenizer": text.t5_tokenizer(),
        "transformer": transformer,
    }
    return diffusers.LTXPipeline, flow(**DYNAMIC), parts
