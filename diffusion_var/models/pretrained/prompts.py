"""Prompts as conditions: the last hidden states of a pipeline's text encoder, computed once and kept.

As in Stable Diffusion (arXiv:2112.10752): prompts are padded and cut to the tokenizer's length L, and the encoder's
last hidden states (L, D) are what the network attends to. Needs the package transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from ...errors import InputError
from .aligned import aligned


class PromptEncoder:
    """The tokenizer and text encoder of a pipeline: of a folder, loaded for a call of `encode` and let go after it; or
    those of a loaded one.

    Args:
        folder: of the pipeline.
        variant: of the weight files.
        held: the tokenizer and text encoder of a loaded pipeline, instead of a folder's.
        placed: what puts those on the device while they are used.
    """

    def __init__(
        self,
        folder: Path,
        device: torch.device,
        variant: str | None = None,
        held: tuple[Any, Any] | None = None,
        placed: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.folder, self.device, self.variant, self._held, self._placed = folder, device, variant, held, placed

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], batch_size: int = 32) -> torch.Tensor:
        """(P, L, D) float32 on the CPU, one embedding for each prompt; the empty prompt "" is a prompt."""
        if isinstance(prompts, str) or len(prompts) == 0 or not all(isinstance(p, str) for p in prompts):
            raise InputError(f"prompts={prompts!r} must be a list of at least one text.")
        tokenizer, encoder = self._load() if self._held is None else self._held
        with self._placed():
            return torch.cat(
                [
                    self._embedded(tokenizer, encoder, list(prompts[start : start + batch_size]))
                    for start in range(0, len(prompts), batch_size)
                ]
            )

    def _embedded(self, tokenizer: Any, encoder: Any, prompts: list[str]) -> torch.Tensor:
        tokens = tokenizer(
            prompts,
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        masked = getattr(encoder.config, "use_attention_mask", False)
        mask = tokens.attention_mask.to(self.device) if masked else None
        found: torch.Tensor = encoder(tokens.input_ids.to(self.device), attention_mask=mask)[0]
        return found.float().cpu()

    def _load(self) -> tuple[Any, Any]:
        try:
            from transformers import AutoTokenizer, CLIPTextModel
        except ImportError as error:
            raise InputError(
                "prompts need the package transformers, which is not installed; "
                "`pip install 'diffusion-var[text]'` or pass embeddings."
            ) from error
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.folder / "tokenizer", local_files_only=True)
            loaded: Any = CLIPTextModel.from_pretrained(
                self.folder / "text_encoder",
                local_files_only=True,
                use_safetensors=True,
                variant=self.variant,
                output_loading_info=True,
            )
        except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(f"the text encoder in {self.folder} could not be loaded ({reason}).") from error
        encoder, info = loaded
        # transformers only warns of these, and leaves the missing weights random.
        if missing := sorted(info["missing_keys"]):
            raise InputError(
                f"the text encoder in {self.folder} lacks weights ({len(missing)} are missing, {missing[0]} among "
                "them); save the model again."
            )
        return tokenizer, aligned(encoder.eval(), self.device).to(self.device)
