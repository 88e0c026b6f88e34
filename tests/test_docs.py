"""Every Python block of the README and of docs/ runs, on small things in place of what a reader brings."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from places import ROOT
from small_families import FAMILIES
from small_pipelines import save_dit
from small_text import save_stable_diffusion

import diffusion_var as dv
from diffusion_var import testing
from diffusion_var.app.cli import COMMANDS
from diffusion_var.app.compare.options import CompareOptions
from diffusion_var.app.config import load_options

#: What a reader fills in, block by block, and what is filled in here. Each must occur: no block changes unnoticed.
#: None stands for blocks that other tests run (named there).
PAGES: dict[str, list[dict[str, str]] | None] = {
    "../README": [
        {
            '"path/to/ddpm-pipeline"': '"digits"',
            "dv.estimate(denoiser, images,": "dv.estimate(denoiser, images, 9.0, indices=[1, 30, 100, 300, 500, 1000],",
            "steps=10, eta": "steps=3, eta",
            'features="inception"': 'features="digits"',
            "(denoiser, images, table)": "(denoiser, images[:9], table, [1, 100, 1000])",
            "table, 10, structure": "table, 3, structure",
            "held_out, steps": "others[:9], steps",
            "pipe.scheduler = ": "pipe = digits_pipeline(); pipe.scheduler = ",
        }
    ],
    "index": [
        {
            '"path/to/pipeline"': '"digits"',
            "dv.estimate(denoiser, images)": "dv.estimate(denoiser, images, 9.0, indices=[1, 30, 100, 300, 1000])",
            "steps=10, eta=0.0).sample(64)": "steps=3, eta=0.0).sample(4)",
            "held_out, steps=10": "others[:9], steps=3",
        }
    ],
    "tour": [
        {
            '"path/to/ddpm-pipeline"': '"digits"',
            "dv.estimate(denoiser, images,": "dv.estimate(denoiser, images, 9.0, indices=[1, 30, 100, 300, 500, 1000],",
            "range(50_000)": "range(20)",
            'features="inception"': 'features="digits"',
        },
        {
            "12)": "4)",
            "steps=50, levels": "steps=3, levels",
            "50, eta=0.0).invert": "4, eta=0.0).invert",
            "steps=100)": "steps=4)",
        },
    ],
    "table": [
        {"tolerance=0.02": "tolerance=0.5", "images, tolerance": "images, indices=[1, 100, 500, 1000], tolerance"}
    ],
    "which_variance": [
        {
            '("isotropic", "channel", "pixel", "dct")': '("isotropic", "dct")',
            "steps=10, eta=0.0).sample(100)": "steps=2, eta=0.0).sample(20)",
            "images, steps=10": "images[:10], steps=2",
        }
    ],
    "many_machines": [
        {
            "dv.estimate(denoiser, images)": "dv.estimate(denoiser, images, 9.0, indices=[1, 30, 100, 300, 1000])",
            "torch.distributed.get_rank()": "0",
            "10, eta=0.0": "2, eta=0.0",
        }
    ],
    "advise": [
        {
            "denoiser, images)  ": "denoiser, images) # ",
            "denoiser, images, budget=60_000)": "denoiser, reference_images, 4_000, steps=[2], table=table)",
        }
    ],
    "diffusers": [
        {"pipe.scheduler = ": "pipe = digits_pipeline(); pipe.scheduler = "},
        {
            "out = scheduler.step(": "scheduler = pipe.scheduler; scheduler.set_timesteps(4); "
            "t = scheduler.timesteps[1]; generator = torch.Generator().manual_seed(0); "
            "sample = model_output = new_output = latents; "
            "out = scheduler.step("
        },
        {
            "(pipe, guidance_scale=4.5, height=1024, width=1024)": "(flux(), guidance_scale=4.5, height=16, width=16)",
            '"path/to/pipeline"': "stable_diffusion",
            '"height": 1024, "width": 1024}': '"height": 16, "width": 16}',
        },
        {
            '"path/to/stable-diffusion"': "stable_diffusion",
            ', dtype=torch.float16, variant="fp16"': "",
            'dusk", ...])': 'dusk", "cat"] * 4)',
            "dv.encode_latents(denoiser, images,": "dv.encode_latents(denoiser, pictures,",
            "dv.estimate(denoiser, latents,": "dv.estimate(denoiser, latents, 9.0,",
            "sampler.sample(2": "dv.Sampler(denoiser, dv.Analytic(table), 3).sample(2",
            "table.push_to_hub(": "(lambda *_, **__: None)(",
        },
    ],
    "reinforcement_learning": [
        {
            "scheduler = dv.": "transformer, table = small_flow(); pipe = flow_scheduler(); scheduler = dv.",
            "torch.randn(32, 16, 64, 64)": "torch.randn(4, 1, 8, 8)",
            "rewards(path[-1])": "path[-1].sum((1, 2, 3))",
        },
        {},
    ],
    "heads": [
        {
            "steps=10_000": "steps=3, batch_size=8, likelihood_images=0",
            "pipe.scheduler = ": "pipe = digits_pipeline(); pipe.scheduler = ",
        }
    ],
    "structured": [
        {
            "dv.estimate(denoiser, images)": "dv.estimate(denoiser, images, 9.0, indices=[1, 30, 100, 300, 1000])",
            "steps=5, eta=0.0).sample(64)": "steps=2, eta=0.0).sample(4)",
            "held_out, steps=5": "others[:4], steps=2",
        },
        {"batch_size=64": "batch_size=4, rounds=1"},
        {"schedule, 10)": "schedule, 3)", "sample(64)": "sample(4)"},
        {"scheduler = dv.": "pipe = digits_pipeline(); scheduler = dv."},
    ],
    "likelihoods": [{}],
    "restoration": [
        {
            "patches, structures": "patches[:80], 9.0, indices=[1, 60, 300, 1000], structures",
            "steps=20, draws=8": "steps=2, draws=2",
        },
        {"steps=20": "steps=2"},
        {},
        {
            '"path/to/latent-pipeline"': "stable_diffusion",
            "Measurement(y, A": "Measurement(y[:1], smaller",
            "steps=20).mean": "steps=2, conditions=denoiser.prompts.encode(['cat'])).mean",
        },
    ],
    "your_network": None,  # tests/test_recipes.py
    "extending": None,  # below
    "equations": None,  # tests/test_house.py
}


def blocks(path: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL)


def filled_in(block: str, replacements: dict[str, str]) -> str:
    for given, used in replacements.items():
        assert given in block, f"the block no longer has {given!r}"
        block = block.replace(given, used)
    return block


def digits_pipeline() -> Any:
    """The bundled model in diffusers' own pipeline."""
    from diffusers import DDPMPipeline, DDPMScheduler

    return DDPMPipeline(dv.Denoiser.from_pretrained("digits").network, DDPMScheduler())


def flow_scheduler() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(shift=3.0)


def small_flow() -> Any:
    """An untrained network of a flow, called with an image and a timestep, and its table."""
    layer = torch.nn.Conv2d(1, 1, 3, padding=1)

    def network(x: torch.Tensor, timestep: torch.Tensor) -> Any:
        return layer(x)

    denoiser = dv.Denoiser(network, dv.NoiseSchedule.flow(1000), "flow", (1, 8, 8), clip=None, data_range=(-1.0, 1.0))
    images = dv.data.digits_splits().table.images[:60]
    return network, dv.estimate(denoiser, images, 9.0, indices=[1, 500, 1000], progress=False)


@pytest.mark.filterwarnings("ignore::diffusion_var.errors.DiffusionVarWarning")
def test_the_page_on_extending_runs_and_keeps_its_contracts() -> None:
    found = blocks(ROOT / "docs" / "extending.md")
    denoiser = dv.Denoiser.from_pretrained("digits")
    images = dv.data.digits_splits().table.images[:20]
    table = dv.estimate(denoiser, images, 9.0, indices=[1, 30, 100, 1000], structures=["pixel"], progress=False)
    names: dict[str, Any] = {"denoiser": denoiser, "images": images, "table": table, "__name__": "extending"}
    for block in found:
        exec(compile(block.replace("steps=25", "steps=4"), "docs/extending.md", "exec"), names)
    assert issubclass(names["TestRows"], testing.StructureContract)
    assert issubclass(names["TestRowAnalytic"], testing.CovarianceContract)
    assert 0 < names["bits"].value < 100
    assert names["sampler"].sample(2).shape == (2, 1, 8, 8)


def test_a_dit_loads_as_the_page_on_diffusers_says(tmp_path: Path) -> None:
    """DiT's learned range, latents, classes and guidance, from the table of models."""
    denoiser = dv.Denoiser.from_pretrained(save_dit(tmp_path / "dit"), guidance_scale=2.0)
    images = dv.Sampler(denoiser, dv.LearnedRange([1, 4, 8]), [1, 4, 8]).sample(2, conditions=[0, 2])
    assert denoiser.codec is not None
    assert denoiser.codec.decode(images).shape == (2, 3, 16, 16)


def test_the_comparison_that_is_shown_is_a_config(tmp_path: Path) -> None:
    (config,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "comparing.md").read_text(), re.DOTALL)
    (tmp_path / "c.yaml").write_text(config)
    options = load_options(CompareOptions, {}, tmp_path / "c.yaml")
    assert [method.label for method in options.methods][1] == "DDIM"


def test_every_page_with_python_is_run_somewhere() -> None:
    found = {path.stem for path in (ROOT / "docs").glob("*.md") if blocks(path)} | {"../README"}
    assert found == {*PAGES}


def test_the_readme_is_short_and_runs_what_is_run_here() -> None:
    """One screen or two, with the commands that continuous integration runs, and nothing left to fill in."""
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 135
    assert any(line.startswith("make test ") for line in lines)
    assert "make test" in (ROOT / ".ci" / "run").read_text().splitlines()
    assert not [line for line in lines if re.search(r"[A-Z]{3,}_[A-Z]{3,}|TODO", line)]


@pytest.fixture(scope="module")
def brought(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a reader of any page has already: a model, images, a table, and what was made of them."""
    folder = tmp_path_factory.mktemp("pages")
    splits, denoiser = dv.data.digits_splits(), dv.Denoiser.from_pretrained("digits")
    images = splits.table.images[:60]
    names = ("isotropic", "channel", "pixel", "dct")
    table = dv.estimate(denoiser, images, 9.0, indices=[1, 100, 300, 600, 1000], structures=names, progress=False)
    return {
        "denoiser": denoiser,
        "images": images,
        "table": table,
        "covariance": dv.Analytic(table),
        "sampler": dv.Sampler(denoiser, dv.Analytic(table), 3),
        "others": splits.score.images[:20],
        "reference_images": splits.score.images[:100],
        "latents": torch.tanh(torch.randn(20, 1, 8, 8, generator=torch.Generator().manual_seed(0))),
        "pictures": np.random.default_rng(0).integers(0, 256, (8, 3, 16, 16), dtype=np.uint8),
        "of_image": np.arange(8),
        "stable_diffusion": save_stable_diffusion(folder / "sd"),
        "digits_pipeline": digits_pipeline,
        "flow_scheduler": flow_scheduler,
        "small_flow": small_flow,
        "flux": FAMILIES["flux"],
        "torch": torch,
        "dv": dv,
    }


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::diffusion_var.errors.DiffusionVarWarning")  # of so few images and draws
@pytest.mark.parametrize("page", [name for name, given in PAGES.items() if given is not None])
def test_a_pages_python_runs(
    page: str, brought: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each page alone, from what any reader has."""
    found, replacements = blocks(ROOT / "docs" / f"{page}.md"), PAGES[page]
    assert replacements is not None
    assert len(found) == len(replacements)
    monkeypatch.chdir(tmp_path)
    brought["table"].save("table.safetensors")
    names = dict(brought)
    for block, given in zip(found, replacements, strict=True):
        exec(compile(filled_in(block, given), f"docs/{page}.md", "exec"), names)


def commands_shown() -> list[tuple[str, str]]:
    """(where, command line) of every `diffusion-var …` that documents and configs show; lines ending in \\ joined."""
    paths = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "results").glob("*.md")]
    paths += [*(ROOT / "configs").glob("*.yaml"), ROOT / "Makefile"]
    found = []
    for path in sorted(paths):
        text = re.sub(r"\\\n\s*#?\s*", " ", path.read_text())
        for line in text.splitlines():
            if match := re.match(r"\s*#?\s*(?:\S*python -m diffusion_var|\S*diffusion-var) ([a-z-]+)( .*|$)", line):
                found.append((path.name, f"{match[1]}{match[2].split('  #')[0]}"))
    return found


def test_every_command_that_is_shown_has_the_options_it_is_shown_with() -> None:
    shown = commands_shown()
    assert {line.split()[0] for _, line in shown} >= {"estimate", "sample", "nll", "compare", "train-head", "fid"}
    for where, line in shown:
        name, *words = line.split()
        assert name in COMMANDS, f"{where}: {line}"
        known = {f"--{field.replace('_', '-')}" for field in COMMANDS[name][0].__dataclass_fields__} | {"--config"}
        known |= {"--pipeline"} if "--model" in known else set()
        flags = {word.split("=")[0] for word in words if word.startswith("--")}
        assert flags <= known, f"{where}: {line}"
