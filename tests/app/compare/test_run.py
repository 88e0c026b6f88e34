"""The comparison, its report, and what the report says of who wins."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import diffusion_var as dv
from diffusion_var.app.compare.findings import findings, score_rows, verdict
from diffusion_var.app.compare.options import CompareOptions, Method
from diffusion_var.app.compare.result import Cell, Comparison
from diffusion_var.app.compare.run import compare
from diffusion_var.app.compare.run import run as run_compare
from diffusion_var.app.config import load_options
from diffusion_var.errors import InputError
from diffusion_var.metrics.score import Score

SMALL = {
    "tolerance": 0.5,
    "steps": [2, 4],
    "seeds": [0, 1],
    "count": 70,
    "methods": [
        {"covariance": "beta"},
        {"covariance": "beta_tilde", "eta": 0},
        {"covariance": "analytic", "structure": "dct"},
        {"covariance": "analytic", "structure": "dct", "final_noise_cap": 1},
    ],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The same small demo twice."""
    folders = [tmp_path_factory.mktemp("demo") / name for name in ("first", "second")]
    for folder in folders:
        run_compare(load_options(CompareOptions, {**SMALL, "out": folder}))
    return folders


def test_two_runs_with_the_same_seeds_give_the_same_numbers(runs: list[Path]) -> None:
    for name in ("results.json", "results.csv", "report.md", "table.safetensors"):
        assert (runs[0] / name).read_bytes() == (runs[1] / name).read_bytes(), name


def test_scores_are_those_of_the_samplers_own_images(runs: list[Path]) -> None:
    """One cell made again by hand from the public API."""
    content = json.loads((runs[0] / "results.json").read_text())
    cell = next(c for c in content["cells"] if c["structure"] == "dct" and c["final_noise_cap"] and c["steps"] == 4)
    denoiser = dv.Denoiser.from_pretrained(Path(dv.__file__).parent / "assets" / "digits")
    table = dv.VarianceTable.load(runs[0] / "table.safetensors")
    sampler = dv.Sampler(denoiser, dv.Analytic(table, structure="dct"), 4, eta=1.0, final_noise_cap=1.0)
    from diffusion_var.data.digits import digits_splits

    for seed, score in zip(content["seeds"], cell["scores"]["fid"]["values"], strict=True):
        images = sampler.sample(70, seed=seed, batch_size=70)
        assert float(dv.metrics.fid(images, digits_splits().score.images, "digits")) == pytest.approx(score, rel=1e-3)


def test_report_files(runs: list[Path]) -> None:
    folder = runs[0]
    with (folder / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * 2 * 2
    assert {row["method"] for row in rows} == {"DDPM β", "DDIM", "Analytic-DDPM dct", "Analytic-DDPM dct, cap 1"}
    html = (folder / "report.html").read_text()
    assert html.count('src="data:image/png;base64,') == 4
    assert not re.search(r'(src|href)="(?!data:)', html)
    markdown = (folder / "report.md").read_text()
    for picture in re.findall(r"\]\((.*?\.png)\)", markdown):
        assert Image.open(folder / picture).size[0] > 300
    cells = json.loads((folder / "results.json").read_text())["cells"]
    for steps in (2, 4):
        best = min(c["scores"]["fid"]["mean"] for c in cells if c["steps"] == steps)
        assert f"**{best:.2f} ±" in markdown
        assert f'<td class="best">{best:.2f} ±' in html


def _comparison(scores: dict[tuple[int, int], list[float]], methods: list[Method], seeds: int = 3) -> Comparison:
    options = CompareOptions(methods=methods, steps=sorted({k for _, k in scores}), seeds=list(range(seeds)))
    result = Comparison(options, None)
    for (i, k), values in scores.items():
        result.cells.append(Cell(methods[i], k, {"fid": [Score(value, {}) for value in values]}))
    return result


FIXED, DDIM, ANALYTIC = Method("beta_tilde"), Method("beta_tilde", eta=0.0), Method("analytic", structure="dct")


def test_verdict_compares_seed_by_seed() -> None:
    """Scores that vary much over seeds, but together, are told apart; scores that cross are not."""
    low, high = (
        Cell(FIXED, 5, {"fid": scores, "recall": scores}, torch.empty(0))
        for scores in ([1.0, 5.0, 9.0], [2.0, 6.1, 9.9])
    )
    crossed = Cell(FIXED, 5, {"fid": [9.1, 5.2, 1.0]}, torch.empty(0))
    assert verdict(low, high, "fid") == -1
    assert verdict(high, low, "fid") == 1
    assert verdict(low, crossed, "fid") == 0
    assert verdict(low, high, "recall") == 1
    # Differences 1.0, 1.1 against 0.9 ± 0.9 of a few seeds: a paired t-test at 5 % needs 4.3 standard errors at three.
    near = Cell(FIXED, 5, {"fid": [1.5, 6.4, 9.2]}, torch.empty(0))
    assert verdict(low, near, "fid") == 0
    one = [Cell(FIXED, 5, {"fid": [score]}, torch.empty(0)) for score in (1.0, 100.0)]
    assert verdict(*one, "fid") == 0


def test_the_verdict_errs_in_about_one_of_twenty_cases() -> None:
    stream = np.random.default_rng(0)
    for seeds in (2, 3, 5):
        cells = [
            [Cell(FIXED, 5, {"fid": list(scores)}, torch.empty(0)) for scores in stream.standard_normal((2, seeds))]
            for _ in range(2000)
        ]
        wrong = np.mean([verdict(a, b, "fid") != 0 for a, b in cells])
        assert 0.035 < wrong < 0.065


def test_with_one_seed_nothing_is_claimed_to_be_better() -> None:
    said = findings(_comparison({(0, 5): [1.0], (1, 5): [100.0]}, [FIXED, ANALYTIC], seeds=1))
    assert said == [
        "K = 5: DDPM β̃ has the best score, 1.00.",
        "With one seed no two methods can be told apart; give more seeds.",
    ]


def test_findings_say_so_where_the_fixed_variance_wins() -> None:
    methods = [FIXED, ANALYTIC]
    lost = findings(_comparison({(0, 5): [1.0, 1.1, 1.2], (1, 5): [2.0, 2.1, 2.3]}, methods))
    assert "DDPM β̃ has the best score" in lost[0]
    assert "A fixed variance wins here" in lost[0]
    assert "0 of 1 analytic rows are better, 0 not told apart, 1 worse: Analytic-DDPM dct (2.13 ± 0.15)" in lost[1]
    won = findings(_comparison({(0, 5): [2.0, 2.1, 2.3], (1, 5): [1.0, 1.1, 1.2]}, methods))
    assert "Analytic-DDPM dct has the best score" in won[0]
    assert "The best fixed choice is DDPM β̃" in won[0]
    assert "1 of 1 analytic rows are better" in won[1]


def test_findings_count_heads_as_measured() -> None:
    head = Method("head", head=Path("runs/npr/head.safetensors"))
    scores = {(0, 5): [2.0, 2.1, 2.3], (1, 5): [3.0, 3.1, 3.2], (2, 5): [1.0, 1.1, 1.2]}
    said = findings(_comparison(scores, [FIXED, ANALYTIC, head]))
    assert "DDPM head npr has the best score" in said[0]
    assert "The best fixed choice is DDPM β̃" in said[0]
    assert "DDPM β̃ (2.13 ± 0.15), 1 of 2 analytic rows and heads are better, 0 not told apart, 1 worse" in said[1]


def test_findings_of_the_cap() -> None:
    capped = Method("analytic", structure="dct", final_noise_cap=1.0)
    scores = {(0, 5): [2.0, 2.1, 2.2], (1, 5): [1.0, 1.1, 1.2], (0, 10): [1.0, 1.1, 1.2], (1, 10): [3.0, 3.1, 3.2]}
    assert "helps in 1 of 2 cells and harms in 1; in 0" in findings(_comparison(scores, [ANALYTIC, capped]))[-1]


def test_best_of_each_column_is_marked() -> None:
    result = _comparison(
        {(0, 5): [2.0] * 3, (1, 5): [1.0] * 3, (0, 10): [1.0] * 3, (1, 10): [3.0] * 3}, [FIXED, ANALYTIC]
    )
    assert [[best for _, best in cells] for _, cells in score_rows(result, "fid")] == [[False, True], [True, False]]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"steps": [5, 5]}, "steps must hold"),
        ({"seeds": []}, "seeds must hold"),
        ({"methods": []}, "methods must hold"),
        ({"count": 1}, "count=1"),
        ({"steps": [0]}, "steps=0"),
        ({"reference": "digits:none"}, "no split"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"features": "none"}, "features"),
        ({"methods": [{"covariance": "beta", "eta": 0}]}, "eta=1"),
        ({"methods": [{"covariance": "analytic", "eta": 2}]}, "outside"),
        ({"methods": [{"covariance": "analytic", "final_noise_cap": 0}]}, "final_noise_cap"),
    ],
)
def test_bad_comparisons_are_refused_before_anything_is_measured(
    tmp_path: Path, change: dict[str, object], said: str
) -> None:
    options = load_options(CompareOptions, {**SMALL, "out": tmp_path / "x", **change})
    with pytest.raises(InputError, match=said):
        compare(options, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_bundled_digits_look_like_their_kind() -> None:
    """The shipped model at 25 steps scores within a few times what real images score, and far better than noise."""
    from diffusion_var.data.digits import digits_splits

    splits = digits_splits()
    denoiser = dv.Denoiser.from_pretrained(Path(dv.__file__).parent / "assets" / "digits", device="cpu")
    images = dv.Sampler(denoiser, dv.FixedSmall(), 25).sample(300, batch_size=300)
    score = float(dv.metrics.fid(images, splits.score.images, "digits"))
    real = float(dv.metrics.fid(splits.train.images[:300], splits.score.images, "digits"))
    noise = np.random.default_rng(0).integers(0, 256, (300, 1, 8, 8), dtype=np.uint8)
    assert score < 4 * real
    assert score < float(dv.metrics.fid(noise, splits.score.images, "digits")) / 5
