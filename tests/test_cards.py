"""Model cards: metadata that the hub reads, the numbers of the run, and no broken table."""

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import yaml

import diffusion_var as dv
from diffusion_var.app.commands.train_unet import TrainUNetOptions
from diffusion_var.app.commands.train_unet import run as train_unet
from diffusion_var.cards import card_text, facts_table

UNET = {
    "layers_per_block": 1,
    "block_out_channels": [8],
    "down_block_types": ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"],
    "norm_num_groups": 4,
}


def read(path: Path) -> tuple[Any, dict[str, str]]:
    """A card as the hub reads it, and its table."""
    card = huggingface_hub.ModelCard.load(path)
    rows = [line.strip("| ").split(" | ") for line in card.text.splitlines() if line.startswith("| ")]
    return card, {row[0]: row[1] for row in rows if len(row) == 2}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "model"
    given = {"images": "digits:train[:40]", "held_out": "digits:table[:20]", "out": folder, "unet": UNET}
    few = {"steps": 3, "batch_size": 4, "evaluate_every": 3, "scheduler": {"num_train_timesteps": 50}}
    train_unet(TrainUNetOptions(**given, **few, license="apache-2.0"))  # type: ignore[arg-type]
    return folder


def test_a_networks_card(trained: Path) -> None:
    card, facts = read(trained / "README.md")
    record = json.loads((trained / "training.json").read_text())
    assert card.data.license == "apache-2.0"
    assert card.data.library_name == "diffusers"
    assert "unconditional-image-generation" in card.data.tags
    assert facts["trained on"] == "`digits:train[:40]`"
    assert facts["held out"] == "`digits:table[:20]`"
    assert facts["held-out loss"] == f"{record['held_out_loss']:.4g}"
    assert facts["training loss"] == f"{record['train_loss']:.4g}"
    assert f"{record['parameters']:,} parameters" in facts["network"]
    assert "steps 3" in facts["training"]
    assert "README.md" in (trained / "SHA256SUMS").read_text()
    assert dv.Denoiser.from_pretrained(trained, device="cpu").shape == (1, 8, 8)


def test_a_heads_card(trained: Path, tmp_path: Path) -> None:
    from diffusion_var.app.commands.train_head import run as train_head
    from diffusion_var.app.options import TrainHeadOptions

    table = tmp_path / "table.safetensors"
    images = dv.data.digits_splits().table.images[:40]
    denoiser = dv.Denoiser.from_pretrained(trained, device="cpu")
    dv.estimate(denoiser, images, 9.0, indices=[1, 10, 50], structures=["isotropic"], progress=False).save(table)
    given = {"model": str(trained), "table": table, "images": "digits:train[:40]", "held_out": "digits:score[:20]"}
    few = {"steps": 2, "batch_size": 4, "evaluate_every": 2, "likelihood_images": 2, "likelihood_steps": 3}
    train_head(TrainHeadOptions(**given, **few, out=tmp_path / "npr"))  # type: ignore[arg-type]
    card, facts = read(tmp_path / "npr" / "README.md")
    head = dv.Head.load(tmp_path / "npr" / "head.safetensors")
    assert card.data.license is None
    assert facts["licence"] == "not stated"
    assert card.data.base_model is None  # a folder is no model of the hub
    assert facts["network (SHA-256 of its weights)"] == f"`{head.table.network}`"
    assert facts["target, size, output"] == "npr, simple, ratio"
    assert facts["bits/dim, held-out images, K = 3"] == f"{head.training['last']['bits_per_dim']:.4g}"
    assert facts["held out"] == "`digits:score[:20]`"


def test_a_licence_of_a_table(tmp_path: Path) -> None:
    from diffusion_var.variance.card import model_card

    table = dv.VarianceTable.from_moments(dv.NoiseSchedule.linear(10), eps_square=[0.5] * 10)
    (tmp_path / "card.md").write_text(model_card(table, "owner/model", license="mit"))
    card, facts = read(tmp_path / "card.md")
    assert (card.data.license, card.data.base_model) == ("mit", "owner/model")
    assert facts["model"] == "`owner/model`"


def test_metadata_and_tables_survive_what_is_put_in() -> None:
    text = card_text("A: title", "body", tags=["a: b"], license="other: [x]")
    front = yaml.safe_load(text.split("---")[1])
    assert front == {"library_name": "diffusion_var", "license": "other: [x]", "tags": ["a: b"]}
    assert facts_table({"a": "b | c\nd"}) == "| | |\n|---|---|\n| a | b \\| c d |"
