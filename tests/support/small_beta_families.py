"""The families of pipelines whose noise levels are given by betas, and the one of sound, by σ."""

from typing import Any

import diffusers
import small_encoders as text
from small_family_parts import BETAS, PICTURE, codec, family, mask, picture, seeded
from small_pipelines import ATTENTION, CODEC, UNET

WIDTH = text.WIDTH


# ---- of pictures, by betas ------------------------------------------------------------------------------------------


@family("ddpm", output_type="np")
def _ddpm() -> Any:
    unet = seeded(diffusers.UNet2DModel, **UNET, **ATTENTION)
    known = {name: value for name, value in BETAS.items() if name != "set_alpha_to_one"}
    return diffusers.DDPMPipeline, diffusers.DDPMScheduler(**known), {"unet": unet}


@family("ldm", output_type="np", eta=0.0)
def _ldm() -> Any:
    kinds = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    return (
        diffusers.LDMPipeline,
        diffusers.DDIMScheduler(**BETAS),
        {
            "vqvae": seeded(diffusers.VQModel, **CODEC, latent_channels=3, num_vq_embeddings=16),
            "unet": seeded(diffusers.UNet2DModel, **UNET, **kinds),
        },
    )


@family("dit", class_labels=[1], output_type="np")
def _dit() -> Any:
    transformer = seeded(
        diffusers.DiTTransformer2DModel,
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=1000,
        norm_num_groups=4,
    )
    parts = {"transformer": transformer, "vae": codec(scaling_factor=0.5)}
    return diffusers.DiTPipeline, diffusers.DDIMScheduler(**BETAS), parts


CROSS = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}


def _stable_diffusion(channels: int = 4) -> dict[str, Any]:
    return {
        "vae": codec(),
        "text_encoder": text.clip_encoder(),
        "tokenizer": text.clip_tokenizer(),
        "unet": seeded(
            diffusers.UNet2DConditionModel,
            **UNET,
            **CROSS,
            in_channels=channels,
            out_channels=4,
            cross_attention_dim=WIDTH,
        ),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


@family("sd", **PICTURE)
def _sd() -> Any:
    return diffusers.StableDiffusionPipeline, diffusers.DDIMScheduler(**BETAS, steps_offset=1), _stable_diffusion()


@family("sd_inpaint", **PICTURE, image=picture(), mask_image=mask())
def _sd_inpaint() -> Any:
    return (
        diffusers.StableDiffusionInpaintPipeline,
        diffusers.DDIMScheduler(**BETAS, steps_offset=1),
        _stable_diffusion(9),
    )


@family("sdxl", **PICTURE)
def _sdxl() -> Any:
    unet = seeded(
        diffusers.UNet2DConditionModel,
        **UNET,
        **CROSS,
        in_channels=4,
        out_channels=4,
        cross_attention_dim=2 * WIDTH,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + WIDTH,
    )
    parts = {
        "vae": codec(scaling_factor=0.13),
        "text_encoder": text.clip_encoder(),
        "text_encoder_2": text.clip_encoder(projected=True, seed=1),
        "tokenizer": text.clip_tokenizer(),
        "tokenizer_2": text.clip_tokenizer(),
        "unet": unet,
    }
    return diffusers.StableDiffusionXLPipeline, diffusers.DDIMScheduler(**BETAS), parts


@family("pixart_sigma", **PICTURE, max_sequence_length=8, use_resolution_binning=False, clean_caption=False)
def _pixart_sigma() -> Any:
    transformer = seeded(
        diffusers.PixArtTransformer2DModel,
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        cross_attention_dim=16,
        sample_size=8,
        patch_size=2,
        caption_channels=WIDTH,
        norm_num_groups=4,
        use_additional_conditions=False,
    )
    parts = {
        "vae": codec(scaling_factor=0.13),
        "text_encoder": text.t5_encoder(),
        "tokenizer": text.t5_tokenizer(),
        "transformer": transformer,
    }
    return diffusers.PixArtSigmaPipeline, diffusers.DDIMScheduler(**BETAS), parts


@family("text_to_video", **PICTURE, num_frames=3)
def _text_to_video() -> Any:
    unet = seeded(
        diffusers.UNet3DConditionModel,
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
    )
    parts = {
        "vae": codec(),
        "text_encoder": text.clip_encoder(),
        "tokenizer": text.clip_tokenizer(),
        "unet": unet,
    }
    return diffusers.TextToVideoSDPipeline, diffusers.DDIMScheduler(**BETAS), parts


# ---- of sound, by σ -------------------------------------------------------------------------------------------------


@family("stable_audio", prompt="a cat", audio_end_in_s=0.05, output_type="latent")
def _stable_audio() -> Any:
    transformer = seeded(
        diffusers.StableAudioDiTModel,
        sample_size=16,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        num_key_value_attention_heads=2,
        cross_attention_dim=WIDTH,
        cross_attention_input_dim=WIDTH,
        global_states_input_dim=2 * WIDTH,
        time_proj_dim=8,
    )
    parts = {
        "vae": seeded(
            diffusers.AutoencoderOobleck,
            encoder_hidden_size=8,
            downsampling_ratios=[2, 2],
            channel_multiples=[1, 2],
            decoder_channels=4,
            decoder_input_channels=4,
            audio_channels=2,
            sampling_rate=400,
        ),
        "text_encoder": text.t5_encoder(),
        "projection_model": seeded(
            diffusers.StableAudioProjectionModel,
            text_encoder_dim=WIDTH,
            conditioning_dim=WIDTH,
            min_value=0,
            max_value=32,
        ),
        "tokenizer": text.t5_tokenizer(),
        "transformer": transformer,
    }
    scheduler = diffusers.EDMDPMSolverMultistepScheduler(
        sigma_min=0.3, sigma_max=50.0, sigma_data=1.0, prediction_type="v_prediction", sigma_schedule="exponential"
    )
    return diffusers.StableAudioPipeline, scheduler, parts
