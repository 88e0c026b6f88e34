"""A whole pipeline from its folder, by diffusers' own classes, none of its weights made up.

`DiffusionPipeline.from_pretrained` warns of weights that are missing, and leaves them random. Here every part is loaded
alone and looked at, and the pipeline is put together from them. Only classes of diffusers and transformers are made;
code that a folder brings along is not run.
"""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import Any

import torch

from ... import checks
from ...errors import InputError
from .components import load_module, unloadable
from .folder import ModelFolder

#: Where parts are from, beside modules of a pipeline in diffusers; the last for schedulers that stand in pipelines.
_LIBRARIES = ("diffusers", "transformers", "diffusion_var")
#: What only looks at finished pictures, or makes conditions of others.
_LEFT_OUT = ("safety_checker", "feature_extractor", "image_encoder")


def read_pipeline(folder: ModelFolder, dtype: torch.dtype | None, allow_pickle: bool) -> Any:
    """The pipeline of a folder with a model_index.json, on the CPU.

    Raises InputError for a class that is not diffusers', and parts that are missing or damaged, or do not fit their
    config.
    """
    import diffusers

    index = folder.index()
    name = str(index.get("_class_name"))
    kind: Any = getattr(diffusers, name, None)
    checks.refuse(
        not (isinstance(kind, type) and issubclass(kind, diffusers.DiffusionPipeline)),
        f"{folder.name} is a {name}, which this diffusers ({diffusers.__version__}) does not have; load it by its own "
        "code and use dv.Denoiser.from_pipeline(pipe).",
    )
    optional = [part for part in _LEFT_OUT if part in getattr(kind, "_optional_components", ())]
    known = inspect.signature(kind).parameters
    given: dict[str, Any] = {}
    for part, entry in folder.parts().items():
        if not isinstance(entry, list):
            given[part] = entry
        elif part in optional or None in entry:
            given[part] = None
        else:
            checks.refuse(
                part not in known,
                f"{folder.name} has a {part}, which a {name} of diffusers {diffusers.__version__} does not take; "
                "load it by its own code and use dv.Denoiser.from_pipeline(pipe).",
            )
            given[part] = _part(folder, part, _class(folder, part, entry), dtype, allow_pickle)
    if "requires_safety_checker" in given:
        given["requires_safety_checker"] = False
    try:
        return kind(**{part: value for part, value in given.items() if part in known})
    except Exception as error:  # what a class makes of parts that are not its own is not to be foreseen
        raise InputError(
            f"the {name} in {folder.name} could not be put together ({_reason(error)}); save it again."
        ) from error


def _class(folder: ModelFolder, part: str, entry: list[Any]) -> Any:
    """The class that model_index.json names, of diffusers, transformers, or a pipeline's module in diffusers: of a
    network, whose weights are looked at, or of what has no weights. Of others (AutoModel, a pipeline) the first would
    be whatever the folder says it is."""
    library, name = (str(word) for word in entry[:2]) if len(entry) >= 2 else ("", str(entry))
    found = None
    if library.isidentifier() and name.isidentifier():
        place = library if library in _LIBRARIES else f"diffusers.pipelines.{library}"
        try:
            found = getattr(import_module(place), name, None)
        except ImportError:
            found = None
    found = checks.given(
        found,
        f"{folder.name} has a {part} of the class {library}.{name}, which neither diffusers nor transformers has here; "
        "install what it needs, or load it by its own code and use dv.Denoiser.from_pipeline(pipe).",
    )
    checks.refuse(
        not isinstance(found, type) or not issubclass(found, (torch.nn.Module, *_weightless())),
        f"{folder.name} has a {part} of the class {library}.{name}, which is no network, tokenizer, processor or "
        "scheduler; load it by its own code and use dv.Denoiser.from_pipeline(pipe).",
    )
    return found


def _weightless() -> tuple[type, ...]:
    """The bases of parts that have no weights: tokenizers, processors, schedulers."""
    from diffusers import SchedulerMixin
    from diffusers.image_processor import VaeImageProcessor
    from transformers import FeatureExtractionMixin, PreTrainedTokenizerBase, ProcessorMixin
    from transformers.image_processing_base import ImageProcessingMixin

    texts = (PreTrainedTokenizerBase, ProcessorMixin)
    return (*texts, ImageProcessingMixin, FeatureExtractionMixin, SchedulerMixin, VaeImageProcessor)


def _part(folder: ModelFolder, part: str, kind: Any, dtype: torch.dtype | None, allow_pickle: bool) -> Any:
    where = folder.path / part
    checks.refuse(
        not where.is_dir(),
        f"the {part} in {folder.name} is missing: there is no folder {where}; save the pipeline again.",
    )
    if issubclass(kind, torch.nn.Module):
        if hasattr(kind, "load_config"):  # one of diffusers'
            return load_module(folder, part, kind, dtype, allow_pickle)
        return _encoder(folder, part, kind, dtype, allow_pickle)
    try:
        return kind.from_pretrained(where, local_files_only=True)
    except Exception as error:
        raise InputError(
            f"the {part} in {folder.name} could not be loaded ({_reason(error)}); save the pipeline again."
        ) from error


def _encoder(folder: ModelFolder, part: str, kind: Any, dtype: torch.dtype | None, allow_pickle: bool) -> Any:
    """A network of transformers'."""
    try:
        found, info = kind.from_pretrained(
            folder.path / part,
            local_files_only=True,
            use_safetensors=None if allow_pickle else True,
            variant=folder.variant,
            output_loading_info=True,
            torch_dtype=dtype or torch.float32,
        )
    except Exception as error:
        raise InputError(unloadable(folder, part, error, allow_pickle)) from error
    missing = sorted(info["missing_keys"])
    checks.refuse(
        bool(missing),
        f"the {part} in {folder.name} lacks weights ({len(missing)} are missing, {(missing or [''])[0]} among them); "
        "save the pipeline again.",
    )
    return found.eval().requires_grad_(False)


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
