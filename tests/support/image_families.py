"""Pipelines that begin with a picture or a video, made of the small families' parts, and how to call them."""

from collections.abc import Callable
from typing import Any

import diffusers
from family_runs import call_of
from small_families import FAMILIES, mask, picture

#: Pipeline's class → (the family that it is made of, the arguments that its call has beside the family's).
FROM_PICTURES: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {}
MORE_STEPS = {"num_inference_steps": 4, "strength": 0.7}


def _enter(family: str, kinds: tuple[str, ...], more: Callable[[], dict[str, Any]]) -> None:
    FROM_PICTURES.update(dict.fromkeys(kinds, (family, more)))


def _begun() -> dict[str, Any]:
    return {"image": picture(), **MORE_STEPS}


def _painted() -> dict[str, Any]:
    return {**_begun(), "mask_image": mask()}


_enter("sd", ("StableDiffusionImg2ImgPipeline",), _begun)
_enter("sd", ("StableDiffusionInpaintPipeline",), _painted)
_enter("sdxl", ("StableDiffusionXLImg2ImgPipeline",), _begun)
_enter("sdxl", ("StableDiffusionXLInpaintPipeline",), _painted)
_enter("sd3", ("StableDiffusion3Img2ImgPipeline",), _begun)
_enter("sd3", ("StableDiffusion3InpaintPipeline",), _painted)
_enter("flux", ("FluxImg2ImgPipeline",), _begun)
_enter("flux", ("FluxInpaintPipeline",), _painted)
_enter("flux", ("FluxKontextPipeline",), lambda: {"image": picture(), "_auto_resize": False, "max_area": 256})
_enter("flux2", ("Flux2KleinInpaintPipeline",), _painted)
_enter("qwen_image", ("QwenImageImg2ImgPipeline",), _begun)
_enter("qwen_image", ("QwenImageInpaintPipeline",), _painted)
_enter("z_image", ("ZImageImg2ImgPipeline",), _begun)
_enter("z_image", ("ZImageInpaintPipeline",), _painted)
_enter("ltx", ("LTXImageToVideoPipeline", "LTXConditionPipeline"), lambda: {"image": picture(size=32)})

_SIZELESS = {"StableDiffusionImg2ImgPipeline", "StableDiffusionXLImg2ImgPipeline"}  # it is the picture's


def made_of(kind: str) -> tuple[Any, dict[str, Any]]:
    """The pipeline of this class, and its call."""
    family, more = FROM_PICTURES[kind]
    base, call = FAMILIES[family](), {**call_of(family), **more()}
    parts = base.components
    if kind == "LTXConditionPipeline":  # it gives no mu
        parts["scheduler"] = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipe = getattr(diffusers, kind)(**parts)
    pipe.set_progress_bar_config(disable=True)
    if kind in _SIZELESS:
        call = {name: value for name, value in call.items() if name not in ("height", "width")}
    return pipe, call
