"""Tokenizers and text encoders of random weights: one of each kind that diffusers' pipelines ask for.

A tokenizer's vocabulary is single letters (or bytes), so that every prompt can be written with it.
"""

from functools import cache
from typing import Any

import torch
import transformers

WIDTH = 16  # of every encoder's hidden states
LENGTH = 8  # tokens of a prompt, where a tokenizer decides it
LETTERS = [chr(c) for c in range(ord("a"), ord("z") + 1)]
CHAT = "{% for m in messages %}{% if m['content'] is string %}{{ m['content'] }}{% endif %}{% endfor %}"


def _bytes() -> list[str]:
    """The 256 letters that byte-level tokenizers write bytes with."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in plain]
    return [chr(b) for b in plain] + [chr(256 + i) for i in range(len(rest))]


def _seeded(make: Any, config: Any, seed: int = 0) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make(config).eval().requires_grad_(False)


@cache
def clip_tokenizer() -> Any:
    """CLIP's, of letters."""
    words = [*LETTERS, *(f"{c}</w>" for c in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: i for i, word in enumerate(words)}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=LENGTH)


@cache
def clip_encoder(projected: bool = False, seed: int = 0) -> Any:
    """CLIPTextModel, or the one with a projection."""
    size = 2 * len(LETTERS) + 2
    config = transformers.CLIPTextConfig(
        vocab_size=size,
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        bos_token_id=size - 2,
        eos_token_id=size - 1,
    )
    kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    return _seeded(kind, config, seed)


@cache
def t5_tokenizer() -> Any:
    """T5's, of letters."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((c, -2.0) for c in LETTERS)]
    return transformers.T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=LENGTH)


@cache
def t5_encoder(kind: str = "T5", width: int = WIDTH) -> Any:
    """T5EncoderModel, or UMT5EncoderModel (kind="UMT5")."""
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=32, d_model=width, d_kv=8, d_ff=WIDTH, num_layers=1, num_heads=2, dropout_rate=0.0
    )
    return _seeded(getattr(transformers, f"{kind}EncoderModel"), config)


@cache
def gemma_tokenizer() -> Any:
    """Gemma's, of letters."""
    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *LETTERS]
    return transformers.GemmaTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[])


@cache
def gemma_encoder() -> Any:
    """Gemma2Model."""
    config = transformers.Gemma2Config(
        vocab_size=32,
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    return _seeded(transformers.Gemma2Model, config)


@cache
def qwen_tokenizer() -> Any:
    """Qwen's, of bytes, with a chat template that keeps nothing but what is said."""
    words = [*_bytes(), "<|im_start|>", "<|im_end|>", "<|endoftext|>"]
    vocabulary = {word: i for i, word in enumerate(words)}
    return transformers.Qwen2Tokenizer(vocab=vocabulary, merges=[], chat_template=CHAT)


@cache
def qwen_encoder(causal: bool = False) -> Any:
    """Qwen3Model, or Qwen3ForCausalLM."""
    config = transformers.Qwen3Config(
        vocab_size=260,
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        tie_word_embeddings=True,
    )
    return _seeded(transformers.Qwen3ForCausalLM if causal else transformers.Qwen3Model, config)


@cache
def qwen_vision_encoder() -> Any:
    """Qwen2_5_VLForConditionalGeneration."""
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            "vocab_size": 260,
            "hidden_size": WIDTH,
            "intermediate_size": WIDTH,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "rope_parameters": {"mrope_section": [1, 1, 2], "rope_type": "default", "rope_theta": 10000.0},
        },
        vision_config={
            "depth": 1,
            "hidden_size": WIDTH,
            "intermediate_size": WIDTH,
            "num_heads": 2,
            "out_hidden_size": WIDTH,
            "fullatt_block_indexes": [0],
        },
    )
    return _seeded(transformers.Qwen2_5_VLForConditionalGeneration, config)
