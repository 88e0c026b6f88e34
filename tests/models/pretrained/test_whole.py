"""Whole pipelines from folders: nothing is made up that is missing, no code is run that a folder brings along."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffusion_var import Denoiser, InputError
from diffusion_var.models.pretrained import folder as folders

pytest.importorskip("transformers")
from small_families import FAMILIES

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
CALL = {"height": 16, "width": 16, "max_sequence_length": 8}
NETWORK = Path("transformer") / "diffusion_pytorch_model.safetensors"
ENCODER = Path("text_encoder") / "model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pipelines") / "flux"
    FAMILIES["flux"]().save_pretrained(path)
    return path


@pytest.fixture
def broken(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def load(path: Path, **options: Any) -> Denoiser:
    return Denoiser.from_pretrained(path, device="cpu", call=CALL, **options)


def one_sentence(path: Path, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        load(path, **options)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")
    return str(caught.value)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_the_scale_that_a_network_is_told_is_its_pipelines_own(saved: Path) -> None:
    assert load(saved).identity().facts["embedded_guidance"] == 3.5
    other = load(saved, guidance_scale=2.0)
    assert (other.guidance_scale, other.identity().facts["embedded_guidance"]) == (1.0, 2.0)


def test_half_precision(saved: Path) -> None:
    half = load(saved, dtype=torch.bfloat16)
    assert half.in_half_precision
    x = torch.zeros(1, *half.shape)
    assert half(x, 5, half.prompts.encode(["a cat"])).mean.dtype == torch.float32


@pytest.mark.parametrize("file", [NETWORK, ENCODER])
def test_missing_weights_are_not_made_up(file: Path, broken: Path) -> None:
    weights = load_file(broken / file)
    gone = next(name for name in weights if name.endswith("weight"))
    save_file({name: t for name, t in weights.items() if name != gone}, broken / file, metadata={"format": "pt"})
    assert gone.rpartition(".")[0].rpartition(".")[2] in one_sentence(broken)


@pytest.mark.parametrize("file", [NETWORK, ENCODER, Path("vae") / NETWORK.name])
def test_damaged_and_absent_weights(file: Path, broken: Path) -> None:
    (broken / file).write_bytes((broken / file).read_bytes()[:100])
    assert f"{broken / file.parent} could not be loaded" in one_sentence(broken)
    (broken / file).unlink()
    assert f"{broken / file.parent} could not be loaded" in one_sentence(broken)


def test_pickles_are_not_read_unasked(broken: Path) -> None:
    torch.save(load_file(broken / ENCODER), broken / "text_encoder" / "pytorch_model.bin")
    (broken / ENCODER).unlink()
    assert "is not read; convert it to safetensors" in one_sentence(broken)


def test_parts_that_are_not_there(broken: Path) -> None:
    shutil.rmtree(broken / "tokenizer_2")
    assert "the tokenizer_2 in" in one_sentence(broken)


@pytest.mark.parametrize("part", ["tokenizer_2", "text_encoder", "text_encoder_2"])
def test_a_part_that_is_not_there_is_not_asked_of_the_hub(
    part: str, broken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative path of two words has the form of a hub id."""
    monkeypatch.chdir(broken.parent)
    shutil.rmtree(broken / part)
    said = f"the {part} in model is missing: there is no folder {broken / part}; save the pipeline again."
    assert one_sentence(Path("model")) == said


@pytest.mark.parametrize("part", ["tokenizer", "text_encoder", "transformer"])
def test_nothing_of_a_folder_comes_from_the_hub(part: str, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import diffusers
    import transformers

    kinds = {
        "tokenizer": transformers.CLIPTokenizer,
        "text_encoder": transformers.CLIPTextModel,
        "transformer": diffusers.FluxTransformer2DModel,
    }
    kind, given = kinds[part], []
    made = kind.from_pretrained

    def watched(path: Any, **options: Any) -> Any:
        given.append((Path(path).is_absolute(), options.get("local_files_only")))
        return made(path, **options)

    monkeypatch.setattr(kind, "from_pretrained", watched)
    monkeypatch.chdir(saved.parent)
    load(Path("flux"))
    assert given == [(True, True)]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"_class_name": "OwnPipeline"},
            r"is a OwnPipeline, which this diffusers \(.*\) does not have; load it",
        ),
        ({"_class_name": "FluxTransformer2DModel"}, "is a FluxTransformer2DModel, which this diffusers"),
        ({"tokenizer": ["own_code", "Tokenizer"]}, "has a tokenizer of the class own_code.Tokenizer, which neither"),
        ({"tokenizer": ["os", "path"]}, "has a tokenizer of the class os.path, which neither"),
        ({"tokenizer": [None, None]}, "its tokenizer is None"),
        ({"text_encoder": ["transformers", "AutoModel"]}, "of the class transformers.AutoModel, which is no network"),
        ({"tokenizer": ["transformers", "AutoTokenizer"]}, "of the class transformers.AutoTokenizer, which is no"),
        ({"vae": ["diffusers", "DiffusionPipeline"]}, "of the class diffusers.DiffusionPipeline, which is no network"),
        ({"tokenizer": ["flux", "FluxPipeline"]}, "of the class flux.FluxPipeline, which is no network, tokenizer"),
        ({"vae": ["diffusers", "AutoPipelineForText2Image"]}, "AutoPipelineForText2Image, which is no network"),
        ({"../elsewhere": ["transformers", "CLIPTokenizer"]}, r"has a part '\.\./elsewhere' in its model_index.json"),
        (
            {"elsewhere": ["transformers", "CLIPTokenizer"]},
            r"has a elsewhere, which a FluxPipeline of diffusers .* does not take; load",
        ),
    ],
)
def test_classes_that_are_nobodys(changes: dict[str, Any], said: str, broken: Path) -> None:

    edit(broken / "model_index.json", **changes)
    assert re.search(said, one_sentence(broken))


def test_weights_of_an_unnamed_class_are_not_made_up(broken: Path) -> None:
    """Of transformers' AutoModel the class would be the config's, and pickles would be read."""
    weights = load_file(broken / ENCODER)
    gone = next(name for name in weights if name.endswith("weight"))
    torch.save({name: t for name, t in weights.items() if name != gone}, broken / "text_encoder" / "pytorch_model.bin")
    (broken / ENCODER).unlink()
    edit(broken / "model_index.json", text_encoder=["transformers", "AutoModel"])
    assert "transformers.AutoModel" in one_sentence(broken)


def test_no_part_of_a_hub_repository_is_outside_of_it(broken: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edit(broken / "model_index.json", **{"../elsewhere": ["transformers", "CLIPTokenizer"]})
    asked: list[list[str]] = []

    def fetched(name: str, patterns: list[str], failed: Any, revision: str | None) -> Path:
        asked.append(patterns)
        return broken

    monkeypatch.setattr(folders, "fetch_snapshot", fetched)
    assert "has a part '../elsewhere'" in one_sentence(Path("some/one"))
    assert not [pattern for patterns in asked for pattern in patterns if ".." in pattern]


def test_what_stands_for_none_is_a_negative_prompt(saved: Path) -> None:
    assert "give negative_prompt in the pipeline's call" in one_sentence(saved, unconditional=torch.zeros(1))


def test_of_a_hub_repository_the_parts_are_fetched(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights of the variant, what text encoders need, and no file of all weights at the root."""
    asked: list[list[str]] = []

    def fetched(name: str, patterns: list[str], failed: Any, revision: str | None) -> Path:
        asked.append(patterns)
        return saved

    monkeypatch.setattr(folders, "fetch_snapshot", fetched)
    assert load(Path("some/one")).shape == (4, 8, 8)
    last = asked[-1]
    for wanted in ("text_encoder_2/*.json", "text_encoder_2/model.safetensors", "tokenizer_2/*.json", str(NETWORK)):
        assert wanted in last
    assert not [
        pattern for pattern in last if pattern.startswith("*") or ("/" not in pattern and pattern.endswith("rs"))
    ]
