"""A pipeline of every family that diffusers has, of diffusers' own classes with random weights, and how to call it.

`FAMILIES[name]()` makes a new pipeline and scheduler around the networks of that family, which are made once;
`CALLS[name]` are the arguments of a call that makes one small latent sample (pictures, where a pipeline has no
latents to give). All can be saved and loaded by diffusers.
"""

import small_beta_families
import small_flow_families
from small_family_parts import CALLS, FAMILIES, STEPS, mask, picture, seeded

__all__ = ["BETA", "CALLS", "FAMILIES", "FLOW", "STEPS", "mask", "picture", "seeded"]

FLOW = ("sd3", "flux", "flux2", "sana", "lumina2", "qwen_image", "z_image", "wan", "ltx")
BETA = ("ddpm", "ldm", "dit", "sd", "sd_inpaint", "sdxl", "pixart_sigma", "text_to_video")
assert {*FLOW, *BETA, "stable_audio"} == {*FAMILIES}, (small_beta_families, small_flow_families)
