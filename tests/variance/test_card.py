"""Tables on the hub: the repository that is written, the card that says what was measured, and the way back."""

import functools
import inspect
import re
import shutil
import socket
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
import yaml
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

import diffusion_var as dv
from diffusion_var.models.pretrained.latents import LatentCodec
from diffusion_var.variance.card import FILE, model_card, write_repository

SCHEDULE = dv.NoiseSchedule.linear(100)
SHAPE = (1, 2, 3)


class Network(torch.nn.Module):
    """Has weights, so that there is a fingerprint; indifferent to a condition."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(0.8))

    def forward(self, x_t: torch.Tensor, timestep: torch.Tensor, condition: Any = None) -> torch.Tensor:
        return self.weight * torch.tanh(1.3 * x_t)


def estimated(scale: float = 1.0, codec: bool = False) -> dv.VarianceTable:
    model = dv.Denoiser(Network(), SCHEDULE, shape=SHAPE, guidance_scale=scale, unconditional=0)
    if codec:
        model.codec = LatentCodec(lambda: None, {"scaling_factor": 0.18215}, torch.device("cpu"))
    images = np.tanh(np.random.default_rng(1).normal(size=(12, *SHAPE)))
    conditions = None if scale == 1 else dv.Conditions([1, 2])
    return dv.estimate(model, images, 0.05, seed=4, indices=[5, 40, 90], conditions=conditions, progress=False)


@pytest.fixture(scope="module")
def table() -> dv.VarianceTable:
    return estimated()


def tables(table: dv.VarianceTable) -> dict[str, dv.VarianceTable]:
    return {
        "plain": table,
        "guided latents": estimated(3.0, codec=True),
        "published": dv.VarianceTable.from_moments(dv.NoiseSchedule.flow(30), eps_square=np.linspace(0.1, 1, 30)),
    }


def refusal(error: pytest.ExceptionInfo[dv.InputError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


# ---- a hub in a folder --------------------------------------------------------------------------------------------


class LocalHub:
    """HfApi and hf_hub_download for a folder; every call must be one that the real functions take."""

    def __init__(self, root: Path) -> None:
        self.root, self.calls = root, {}

    def _checked(self, name: str, real: Any, *args: Any, **options: Any) -> None:
        inspect.signature(real).bind(*args, **options)
        self.calls[name] = options

    def __call__(self, **options: Any) -> "LocalHub":
        self.calls["HfApi"] = options
        return self

    def create_repo(self, repo_id: str, **options: Any) -> None:
        self._checked("create_repo", real_api.create_repo, None, repo_id, **options)
        (self.root / repo_id).mkdir(parents=True, exist_ok=options["exist_ok"])

    def upload_folder(self, **options: Any) -> huggingface_hub.CommitInfo:
        self._checked("upload_folder", real_api.upload_folder, None, **options)
        shutil.copytree(options["folder_path"], self.root / options["repo_id"], dirs_exist_ok=True)
        return huggingface_hub.CommitInfo(
            commit_url=f"https://huggingface.co/{options['repo_id']}/commit/abc",
            commit_message=options["commit_message"],
            commit_description="",
            oid="abc",
        )

    def download(self, repo_id: str, filename: str, **options: Any) -> str:
        self._checked("download", real_download, repo_id, filename, **options)
        path = self.root / repo_id / filename
        if not path.is_file():
            raise LocalEntryNotFoundError("Cannot find the file.\nCheck your connection.")
        return str(path)


real_api, real_download = huggingface_hub.HfApi, huggingface_hub.hf_hub_download


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalHub:
    local = LocalHub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", local)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", local.download)
    return local


def test_pushed_and_fetched(table: dv.VarianceTable, hub: LocalHub, tmp_path: Path) -> None:
    for name, one in tables(table).items():
        repository = f"someone/{name.replace(' ', '-')}"
        assert one.push_to_hub(repository) == f"https://huggingface.co/{repository}/commit/abc"
        assert dv.VarianceTable.from_hub(repository).digest == one.digest
        assert sorted(p.name for p in (hub.root / repository).iterdir()) == ["README.md", FILE]
    # Pushed again, it replaces what was there.
    table.push_to_hub("someone/published")
    assert dv.VarianceTable.from_hub("someone/published").digest == table.digest


def test_options_reach_the_hub(table: dv.VarianceTable, hub: LocalHub) -> None:
    table.push_to_hub("a/b", model="m/n", data="digits", private=True, revision="next", token="secret")
    assert hub.calls["HfApi"] == {"token": "secret"}
    assert hub.calls["create_repo"] == {"private": True, "exist_ok": True}
    assert hub.calls["upload_folder"]["revision"] == "next"
    card = (hub.root / "a/b" / "README.md").read_text()
    assert "m/n" in card
    assert "digits" in card
    assert "secret" not in card
    dv.VarianceTable.from_hub("a/b", revision="next", token="secret", cache_dir="somewhere")
    asked = {"revision": "next", "token": "secret", "cache_dir": "somewhere"}
    left = {"subfolder": None, "force_download": False, "local_files_only": False}
    assert hub.calls["download"] == asked | left
    shutil.copy(hub.root / "a/b" / FILE, hub.root / "a/b" / "other.safetensors")
    (hub.root / "a/b" / FILE).unlink()
    assert dv.VarianceTable.from_hub("a/b", filename="other.safetensors").digest == table.digest


def test_a_local_folder_is_read_without_the_hub(table: dv.VarianceTable, tmp_path: Path, hub: LocalHub) -> None:
    folder = write_repository(table, tmp_path / "deep" / "folder")
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", FILE]
    for name in (folder, str(folder)):
        assert dv.VarianceTable.from_hub(name).digest == table.digest
    assert hub.calls == {}
    with pytest.raises(dv.InputError, match="there is no variance table at"):
        dv.VarianceTable.from_hub(folder, filename="other.safetensors")
    (folder / FILE).write_bytes((folder / FILE).read_bytes()[:-1])
    with pytest.raises(dv.InputError, match="damaged"):
        dv.VarianceTable.from_hub(folder)


# ---- the card -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "guided latents", "published"])
@pytest.mark.parametrize(("model", "data"), [(None, None), ("google/ddpm-cifar10-32", "CIFAR10, train")])
def test_the_card_is_markdown_with_front_matter(
    table: dv.VarianceTable, kind: str, model: str | None, data: str | None
) -> None:
    content = model_card(tables(table)[kind], model, data)
    card = huggingface_hub.ModelCard(content)
    assert card.data.library_name == "diffusion_var"
    assert {"diffusion", "variance"} <= set(card.data.tags)
    assert card.data.base_model == model
    front, body = re.fullmatch(r"---\n(.*?)\n---\n(.*)", content, re.DOTALL).groups()
    assert set(yaml.safe_load(front)) == {"library_name", "tags"} | ({"base_model"} if model else set())
    assert body.count("```") == 4
    rows = [line for line in body.splitlines() if line.startswith("|")]
    assert len(rows) == 14
    assert all(len(re.findall(r"\|", row)) == 3 for row in rows)
    assert rows[1] == "|---|---|"


def facts(content: str) -> dict[str, str]:
    return dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", content, re.MULTILINE))


def test_the_card_says_what_was_measured(table: dv.VarianceTable) -> None:
    said = facts(model_card(table, "google/ddpm-cifar10-32", "digits"))
    errors = max(table.relative_error(n) for n in (5, 40, 90))
    assert said["model"] == "`google/ddpm-cifar10-32`"
    assert said["network (SHA-256 of its weights)"] == f"`{table.network}`"
    assert said["shape, prediction, clipping"] == "(1, 2, 3), epsilon, (-1.0, 1.0)"
    assert said["schedule"].startswith("N = 100, log-SNR 9.2")
    assert said["guidance scale"] == said["latents"] == "none"
    assert said["data"] == f"digits, 12 images, fingerprint `{table.data.fingerprint[:12]}`"
    assert said["network evaluations"] == f"{table.evaluations:,} at 3 indices, seed 4"
    assert said["structures"] == "isotropic, channel, pixel, dct"
    assert said["relative standard error (isotropic)"] == f"at most {errors:.2%} (tolerance 0.05)"
    assert 0 < errors <= 0.05
    assert said["digest of the table"] == f"`{table.digest}`"
    assert table.summary() in model_card(table)


def test_the_card_of_a_guided_table_and_of_published_moments(table: dv.VarianceTable) -> None:
    guided = facts(model_card(tables(table)["guided latents"]))
    assert guided["guidance scale"] == "3"
    assert guided["latents"] == "scaled by 0.18215"
    assert guided["model"] == "not named"
    published = facts(model_card(tables(table)["published"]))
    assert published["data"] == "published moments"
    assert published["relative standard error (isotropic)"] == "unknown"
    assert published["network (SHA-256 of its weights)"] == "unknown"


# ---- when it fails ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["create_repo", "upload_folder"])
@pytest.mark.parametrize(
    "fault",
    [
        OfflineModeIsEnabled("offline mode is enabled.\nSet HF_HUB_OFFLINE=0."),
        HFValidationError("Repo id must be in the form 'namespace/repo_name'"),
        PermissionError("401 Client Error.\n\nInvalid username or password."),
        Exception("connection refused"),  # transports have errors of their own, which are no OSErrors
    ],
    ids=["offline", "bad name", "refused", "transport"],
)
def test_a_push_that_fails_is_one_sentence(
    table: dv.VarianceTable, hub: LocalHub, monkeypatch: pytest.MonkeyPatch, step: str, fault: Exception
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise fault

    monkeypatch.setattr(hub, step, fail)
    with pytest.raises(dv.InputError) as error:
        table.push_to_hub("a/b")
    reason = f"{type(fault).__name__}: {str(fault).splitlines()[0]}"
    assert refusal(error).startswith(f"the table could not be pushed to a/b ({reason});")


@pytest.fixture
def closed_port() -> Any:
    """A port on this machine that is held and that nobody listens at."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


def test_a_hub_that_is_not_there(table: dv.VarianceTable, monkeypatch: pytest.MonkeyPatch, closed_port: int) -> None:
    """The real client, so that its own errors are met."""
    nowhere = f"http://127.0.0.1:{closed_port}"
    monkeypatch.setattr(huggingface_hub, "HfApi", functools.partial(real_api, endpoint=nowhere))
    with pytest.raises(dv.InputError) as error:
        table.push_to_hub("someone/table", token="hf_none")
    assert "could not be pushed to someone/table" in refusal(error)


@pytest.mark.parametrize("name", ["someone/table", "not a name", "a/b/c"])
def test_a_table_that_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    """The real client, in its offline mode."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(dv.InputError) as error:
        dv.VarianceTable.from_hub(name, cache_dir=tmp_path)
    message = refusal(error)
    assert message.startswith(f"there is no folder {name}, and {FILE} of {name} could not be had from the hub (")
    assert "use VarianceTable.load" in message


def test_a_transfer_that_breaks_off(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    class ReadTimeout(Exception):
        """As a transport has it: no OSError."""

    def fail(*_: Any, **__: Any) -> None:
        raise ReadTimeout("timed out")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(dv.InputError, match=r"could not be had from the hub \(ReadTimeout\)") as error:
        dv.VarianceTable.from_hub("someone/table")
    refusal(error)


def test_a_repository_without_a_table(hub: LocalHub) -> None:
    with pytest.raises(dv.InputError, match=r"could not be had from the hub \(LocalEntryNotFoundError\)"):
        dv.VarianceTable.from_hub("someone/else")
