"""PromptEncoder: the same embeddings as a Stable Diffusion pipeline's, and one sentence for every fault."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_text import LENGTH, save_text_encoder

from diffusion_var import InputError
from diffusion_var.models.pretrained.prompts import PromptEncoder

transformers = pytest.importorskip("transformers")

CPU = torch.device("cpu")
PROMPTS = ["cat", "", "dog cat", "a dog and a cat and a dog and a cat", "bird"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tokenizer/ and text_encoder/ as a pipeline's save_pretrained writes them."""
    root = tmp_path_factory.mktemp("pipeline")
    save_text_encoder(root)
    return root


@pytest.fixture(scope="module")
def embeddings(folder: Path) -> torch.Tensor:
    return PromptEncoder(folder, CPU).encode(PROMPTS)


def with_attention_mask(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target)
    path = target / "text_encoder" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "use_attention_mask": True}))
    return target


# ---- what it gives ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True])
def test_the_embeddings_of_the_pipeline(folder: Path, tmp_path: Path, masked: bool) -> None:
    from diffusers import StableDiffusionPipeline

    folder = with_attention_mask(folder, tmp_path / "masked") if masked else folder
    pipeline = StableDiffusionPipeline(
        vae=None,
        unet=None,
        scheduler=None,
        tokenizer=transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        text_encoder=transformers.CLIPTextModel.from_pretrained(folder / "text_encoder").eval(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    with torch.no_grad():
        given, empty = pipeline.encode_prompt(PROMPTS, CPU, 1, True, negative_prompt=[""] * len(PROMPTS))
    mine = PromptEncoder(folder, CPU).encode(PROMPTS)
    assert mine.shape == (len(PROMPTS), LENGTH, 8)
    torch.testing.assert_close(mine, given, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(mine[1].expand_as(empty), empty, rtol=1e-5, atol=1e-6)


def test_the_attention_mask_is_used_only_where_the_encoder_asks_for_it(
    folder: Path, embeddings: torch.Tensor, tmp_path: Path
) -> None:
    masked = PromptEncoder(with_attention_mask(folder, tmp_path / "masked"), CPU).encode(PROMPTS)
    assert float((masked[1] - embeddings[1])[2:].abs().max()) > 1e-3  # behind the end of the text


def test_prompts_are_told_apart_and_cut_to_the_tokenizers_length(folder: Path, embeddings: torch.Tensor) -> None:
    gaps = torch.cdist(embeddings.flatten(1), embeddings.flatten(1)) + 10 * torch.eye(len(PROMPTS))
    assert float(gaps.min()) > 0.1
    longer = PromptEncoder(folder, CPU).encode([PROMPTS[3] + " and a bird"])
    torch.testing.assert_close(longer[0], embeddings[3], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_the_batch_size_does_not_matter(folder: Path, embeddings: torch.Tensor, batch_size: int) -> None:
    found = PromptEncoder(folder, CPU).encode(tuple(PROMPTS), batch_size)
    assert float((found - embeddings).abs().max()) <= 1e-5


def test_results_are_ordinary_float32_tensors(folder: Path) -> None:
    found = PromptEncoder(folder, CPU).encode(["cat"])
    assert found.dtype == torch.float32
    assert found.device == CPU
    found.mul_(2.0)
    found.requires_grad_().square().sum().backward()
    assert torch.equal(found.grad, 2 * found.detach())


# ---- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompts", ["a cat", "", [], (), [1], ["cat", None], [["cat"]]])
def test_anything_but_a_list_of_texts_is_refused(folder: Path, prompts: Any) -> None:
    with pytest.raises(InputError, match=r"^prompts=.* must be a list of at least one text\.$"):
        PromptEncoder(folder, CPU).encode(prompts)


def test_without_transformers_it_is_said_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = PromptEncoder(folder, CPU)
    monkeypatch.setitem(sys.modules, "transformers", None)  # makes the import fail
    with pytest.raises(
        InputError, match=r"need the package transformers.*pip install 'diffusion-var\[text\]'"
    ) as error:
        encoder.encode(["cat"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("missing", ["text_encoder/model.safetensors", "tokenizer"])
def test_a_folder_that_is_not_whole_is_refused(folder: Path, tmp_path: Path, missing: str) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    if (broken / missing).is_dir():
        shutil.rmtree(broken / missing)
    else:
        (broken / missing).unlink()
    with pytest.raises(InputError, match=r"the text encoder in .*broken could not be loaded \(.*\)\.$") as error:
        PromptEncoder(broken, CPU).encode(["cat"])
    assert "\n" not in str(error.value)


def test_damaged_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    weights = broken / "text_encoder" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(InputError, match="broken could not be loaded"):
        PromptEncoder(broken, CPU).encode(["cat"])


def test_pickled_weights_are_not_read(folder: Path, tmp_path: Path) -> None:
    pickled = tmp_path / "pickled"
    shutil.copytree(folder, pickled)
    weights = pickled / "text_encoder" / "model.safetensors"
    model = transformers.CLIPTextModel.from_pretrained(folder / "text_encoder")
    torch.save(model.state_dict(), weights.with_name("pytorch_model.bin"))
    weights.unlink()
    with pytest.raises(InputError, match="pickled could not be loaded"):
        PromptEncoder(pickled, CPU).encode(["cat"])


def test_missing_weights_are_not_made_up(folder: Path, tmp_path: Path) -> None:
    """transformers would draw them at random: other embeddings at every load."""
    copy = Path(shutil.copytree(folder, tmp_path / "model"))
    file = copy / "text_encoder" / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(file).items() if "token_embedding" not in name}
    save_file(kept, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lacks weights \(1 are missing, .*token_embedding\.weight among them\)"):
        PromptEncoder(copy, CPU).encode(["cat"])
