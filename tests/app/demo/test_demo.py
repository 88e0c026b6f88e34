"""The demo: its parts, in small; the same numbers twice; and what its report says of them."""

import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

import diffusion_var as dv
from diffusion_var.app.compare.decisions import choose, decisions, headline, solver_findings
from diffusion_var.app.compare.options import CompareOptions, Method
from diffusion_var.app.compare.result import Cell, Comparison
from diffusion_var.app.compare.run import compare
from diffusion_var.app.config import load_options
from diffusion_var.app.demo.options import DemoOptions, demo_parts
from diffusion_var.app.demo.run import run
from diffusion_var.app.model import mixture_size
from diffusion_var.metrics.score import Score

SMALL = {"size": 4, "count": 40, "seeds": [0, 1], "steps": [2, 3], "tolerance": 0.5}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two parts of the demo."""
    folder = tmp_path_factory.mktemp("demo") / "first"
    run(load_options(DemoOptions, {**SMALL, "parts": ["exact", "likelihood"], "out": folder}))
    return folder


@pytest.mark.slow
def test_another_run_gives_the_same_numbers(demo: Path, tmp_path: Path) -> None:
    run(load_options(DemoOptions, {**SMALL, "parts": ["exact"], "out": tmp_path / "second"}))
    for name in ("table.safetensors", "comparison.json"):
        assert (demo / "exact" / name).read_bytes() == (tmp_path / "second" / "exact" / name).read_bytes(), name
    first, second = (json.loads((folder / "results.json").read_text()) for folder in (demo, tmp_path / "second"))
    assert first["parts"]["exact"] == second["parts"]["exact"]


@pytest.mark.slow
def test_the_report_has_a_sentence_a_part_one_figure_and_all_details(demo: Path) -> None:
    page, text = ((demo / f"report.{kind}").read_text() for kind in ("html", "md"))
    opening = page[page.index('class="opening"') : page.index("<h2>Which variance should I take?")]
    assert opening.count("<p>") == 2
    assert opening.count("<img ") == 1
    assert page.index("<h2>Which variance") < page.index("<h2>The words") < page.index("<h2>Details")
    assert page.count("<details>\n<summary>") == 2  # a part each, folded
    assert not re.search(r'(src|href)="(?!data:)', page)
    for picture in re.findall(r"\]\((.*?\.png)\)", text):
        assert Image.open(demo / picture).size[0] > 300
    content = json.loads((demo / "results.json").read_text())
    assert list(content["parts"]) == ["exact", "likelihood"]
    assert {c["evaluations"] for c in content["parts"]["exact"]["cells"]} == {2, 3}


@pytest.mark.slow
def test_distances_are_to_the_mixtures_own_moments(demo: Path) -> None:
    """One cell made again by hand: samples that are neither rounded nor clamped."""
    from diffusion_var.app.compare.exact import table_images

    mixture = dv.oracles.fit_mixture(dv.data.photographs_part("fit", 4, 10_000).images, 6)
    table = dv.VarianceTable.load(demo / "exact" / "table.safetensors")
    cells = json.loads((demo / "results.json").read_text())["parts"]["exact"]["cells"]
    cell = next(c for c in cells if c["structure"] == "dct" and c["steps"] == 3)
    sampler = dv.Sampler(mixture, dv.Analytic(table, structure="dct"), 3, eta=0.0)
    flat = sampler.sample(40, seed=1, batch_size=40).double().flatten(1)
    expected = dv.metrics.frechet_distance((flat.mean(0), flat.T.cov()), mixture.moments())
    assert cell["scores"]["fid"]["values"][1] == pytest.approx(float(expected), rel=1e-4)
    assert len(table_images(mixture)) == 4000


def test_parts_are_named_and_take_what_all_are_given(tmp_path: Path) -> None:
    parts = demo_parts(DemoOptions(out=tmp_path, seeds=[5], count=7, size=8))
    assert [part.part for part in parts] == ["exact", "trained", "likelihood"]
    assert {(tuple(part.seeds), part.count) for part in parts} == {((5,), 7)}
    assert parts[0].model == "photographs:mixture:8"
    assert [part.out for part in parts] == [tmp_path / part.part for part in parts]
    labels = [method.label for method in parts[0].methods]
    assert "DPM-Solver++(2M)" in labels
    assert "Analytic-DDIM dct" in labels
    with pytest.raises(dv.InputError, match="the demo has no part nothing; its parts are exact, trained, likelihood"):
        demo_parts(DemoOptions(parts=["nothing"]))
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(dv.InputError, match="not empty"):
        run(DemoOptions(out=tmp_path, parts=["exact"]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "digits"}, "the images 'exact' are those of a model whose data are known"),
        ({"features": "digits"}, "features=digits; take features=pixels"),
        ({"model": "photographs:mixture:0"}, "must be photographs:mixture or photographs:mixture:SIZE"),
        ({"model": "photographs:mixture:big"}, "must be photographs:mixture or photographs:mixture:SIZE"),
        ({"guidance_scale": 2.0}, "the model photographs:mixture is no network"),
    ],
)
def test_what_has_no_meaning_for_known_data_is_refused(
    change: dict[str, object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rough = dv.oracles.MixtureDenoiser(dv.NoiseSchedule.linear(1000), torch.zeros(2, 3, 4, 4), 0.5)
    monkeypatch.setattr("diffusion_var.app.model.fit_mixture", lambda *_, **__: rough)
    settings = {"model": "photographs:mixture:4", "table_images": "exact", "reference": "exact", "baseline": "exact"}
    settings |= {"features": "pixels", "steps": [2], "count": 4, "methods": [{"covariance": "analytic"}]}
    with pytest.raises(dv.InputError, match=re.escape(message)):
        compare(load_options(CompareOptions, {**settings, **change, "out": tmp_path / "x"}), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_size_of_patches_is_in_the_models_name() -> None:
    assert [mixture_size(name) for name in ("photographs:mixture", "photographs:mixture:9", "photographs")] == [
        16,
        9,
        None,
    ]


# ---- what to take --------------------------------------------------------------------------------------------------

DDIM, SOLVER = Method("beta_tilde", eta=0.0), Method(sampler="dpm_solver_pp", spacing="log_snr")
DCT, PIXEL = (Method("analytic", eta=0.0, structure=structure) for structure in ("dct", "pixel"))


def compared(scores: dict[tuple[int, int], list[float]], methods: list[Method]) -> Comparison:
    steps = sorted({k for _, k in scores})
    result = Comparison(CompareOptions(methods=methods, steps=steps, seeds=[0, 1, 2]), None)
    for (i, k), values in scores.items():
        result.cells.append(Cell(methods[i], k, {"fid": [Score(value, {}) for value in values]}))
    return result


def test_what_to_take_is_the_simplest_of_equals() -> None:
    won, lost, tied = [1.0, 1.1, 1.2], [9.0, 9.1, 9.3], [0.9, 1.2, 1.1]
    methods = [DDIM, SOLVER, DCT, PIXEL]
    result = compared(
        {(0, 3): lost, (1, 3): lost, (2, 3): won, (3, 3): lost}
        | {(0, 5): lost, (1, 5): won, (2, 5): lost, (3, 5): lost}
        | {(0, 10): won, (1, 10): lost, (2, 10): tied, (3, 10): lost},
        methods,
    )
    found = [choose(result, k, "fid") for k in (3, 5, 10)]
    assert [(choice.kind, choice.taken.method) for choice in found if choice is not None] == [
        ("measured", DCT),
        ("free", SOLVER),
        ("tie", DDIM),
    ]
    assert decisions(result, "fid") == [
        "For samples at 3 evaluations take Analytic-DDIM dct: 1.10, where the best that needs no table (DDIM) has 9.13"
        "; every other variance has at least 8.3 times as much.",
        "For samples at 5 evaluations take DPM-Solver++(2M), which needs no table: 1.10. The best measured variance "
        "(Analytic-DDIM dct) has 9.13 and is worse.",
        "For samples at 10 evaluations take DDIM, which needs no table: 1.10. The best measured variance "
        "(Analytic-DDIM dct) has 1.07, which 3 seeds do not tell apart.",
    ]
    assert solver_findings(result, "fid") == [
        "DPM-Solver++(2M) is better than the best measured variance at 5, worse than it at 3 and 10 evaluations."
    ]
    assert headline(result, "fid").startswith(
        "Fréchet distance (lower is better): at 3 evaluations Analytic-DDIM dct has 1.10, against 9.13 of the best "
        "without a table (DDIM); at 5 evaluations DPM-Solver++(2M) has 1.10, against 9.13"
    )


def test_the_same_answer_is_said_once() -> None:
    won, lost = [1.0, 1.1, 1.2], [9.0, 9.1, 9.3]
    result = compared({(0, 3): lost, (1, 3): won, (0, 5): lost, (1, 5): won}, [DDIM, DCT])
    assert decisions(result, "fid") == [
        "For samples at 3 and 5 evaluations take Analytic-DDIM dct: 1.10 and 1.10, where the best that needs no table "
        "(DDIM) has 9.13 and 9.13; every other variance has at least 8.3 times as much."
    ]
