"""Methods with Jacobian-vector products in a comparison have the steps that their evaluations allow, and say so."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import diffusion_var as dv
from diffusion_var.app.compare.decisions import needs_measuring
from diffusion_var.app.compare.loop import CellLoop, identity_of
from diffusion_var.app.compare.options import CompareOptions, Method
from diffusion_var.app.compare.pictures import _colour
from diffusion_var.app.compare.product_costs import product_costs
from diffusion_var.app.compare.report import as_json
from diffusion_var.app.compare.result import Cell, Comparison
from diffusion_var.app.compare.run import run
from diffusion_var.app.config import load_options
from diffusion_var.app.model import open_model
from diffusion_var.errors import InputError
from diffusion_var.metrics.score import Score
from diffusion_var.models.product_cost import ProductCost

#: Of the digits' network many small variances are cut, which is said.
pytestmark = pytest.mark.filterwarnings("ignore::diffusion_var.errors.DiffusionVarWarning")

METHODS: list[dict[str, Any]] = [
    {"covariance": "beta_tilde", "eta": 0},
    {"covariance": "jacobian", "eta": 0, "bands": 4},
    {"covariance": "lanczos", "eta": 0, "krylov_steps": 1},
    {"covariance": "jacobian", "eta": 0, "bands": 4, "derivative": "difference"},
]
SMALL: dict[str, Any] = {"steps": [3, 6], "seeds": [0], "count": 10, "batch_size": 20, "baseline": None}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("table") / "table.safetensors"
    images = dv.data.open_images("digits:table")
    indices = [1, 30, 100, 300, 500, 1000]
    dv.estimate(dv.Denoiser.from_pretrained("digits"), images, 9.0, indices=indices, progress=False).save(path)
    return path


def options(out: Path, table: Path | None, **others: Any) -> CompareOptions:
    given = {**SMALL, "methods": METHODS, "out": out, **({} if table is None else {"table": table}), **others}
    return load_options(CompareOptions, given)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, table: Path) -> Path:
    out = tmp_path_factory.mktemp("products") / "x"
    run(options(out, table, product_cost=1.25))
    return out


def test_a_method_has_the_steps_that_its_evaluations_allow(folder: Path) -> None:
    found = json.loads((folder / "results.json").read_text())
    spent = {(c["method"], c["steps"]): (c["evaluations"], c.get("equivalents")) for c in found["cells"]}
    assert spent == {
        ("DDIM", 3): (3, None),
        ("DDIM", 6): (6, None),
        ("DDIM Jacobian-4", 3): (1, 1.0),
        ("DDIM Jacobian-4", 6): (3, 3 + 2 * 1.25),
        ("DDIM Lanczos-1", 3): (1, 1.0),
        ("DDIM Lanczos-1", 6): (2, 2 + 2.25),
        ("DDIM Jacobian-4, by differences", 3): (2, 3.0),
        ("DDIM Jacobian-4, by differences", 6): (3, 5.0),
    }
    assert found["product_costs"] == {
        "forward": {"with_mean": 1.25, "alone": 2.25},
        "difference": {"with_mean": 1.0, "alone": 1.0},
    }


def test_reports_say_what_is_spent_and_what_a_product_counts_for(folder: Path) -> None:
    for kind in ("md", "html"):
        text = (folder / f"report.{kind}").read_text()
        assert "† DDIM Jacobian-4 spends 1 of 3, 5.5 of 6 evaluations: no more of its steps fit." in text
        assert "counts for 1.25 evaluations where it comes with the mean, and for 2.25 by itself" in text
        assert "Jacobian, Lanczos" in text
    with (folder / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["equivalents"] for row in rows if row["method"] == "DDIM"} == {"3", "6"}
    assert {row["equivalents"] for row in rows if row["method"] == "DDIM Jacobian-4"} == {"1", "5.5"}


def test_what_was_measured_first_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that goes on, on a machine where a product is dearer, has the price of the first, and so its cells."""
    prices = iter([1.239, 5.0])
    asked: list[int] = []

    def priced(denoiser: Any, batch_size: int, condition: Any) -> ProductCost:
        asked.append(batch_size)
        return ProductCost.forward(next(prices), (0.5, 1.1))

    monkeypatch.setattr("diffusion_var.app.compare.product_costs.product_cost", priced)
    given = options(tmp_path, None, methods=METHODS[1:2])
    model = open_model("digits", given)
    said: list[str] = []
    found = [product_costs(given, model, tmp_path, said.append)["forward"] for _ in range(2)]
    assert found[0] == found[1] == ProductCost.forward(1.24, (0.5, 1.1))
    assert asked == [10]
    assert len(said) == 1
    # A damaged file is measured again; what is given is not measured, and a difference never.
    next((tmp_path / "cells").glob("product-cost-*.json")).write_text('{"with_mean": "x"}')
    assert product_costs(given, model, tmp_path, said.append)["forward"].with_mean == 5.0
    both = options(tmp_path, None, product_cost=1.5)
    costs = {"forward": ProductCost.forward(1.5), "difference": ProductCost.difference()}
    assert product_costs(both, model, tmp_path, said.append) == costs
    assert product_costs(options(tmp_path, None, methods=METHODS[:1]), model, tmp_path, said.append) == {}
    assert len(asked) == len(said) == 2


def test_another_network_guidance_or_precision_has_a_price_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prices = iter([1.0, 2.0, 3.0, 4.0, 5.0])
    price = "diffusion_var.app.compare.product_costs.product_cost"
    monkeypatch.setattr(price, lambda *_, **__: ProductCost.forward(next(prices), (0.5, 1.0)))

    def found(fingerprint: str = "a", guidance_scale: float | None = None, **others: Any) -> float:
        denoiser = SimpleNamespace(fingerprint=fingerprint, guidance_scale=guidance_scale)
        model: Any = SimpleNamespace(denoiser=denoiser, sample_conditions=lambda _: None)
        given = options(tmp_path, None, methods=METHODS[1:2], **others)
        return product_costs(given, model, tmp_path, lambda _: None)["forward"].with_mean

    for _ in range(2):  # measured, and as they are kept
        half = [found(dtype="bfloat16"), found(weights_dtype="bfloat16")]
        assert [found(), found("b"), found("a", 2.0), *half] == [3.0, 4.0, 5.0, 1.0, 2.0]


def test_cells_are_those_of_their_table() -> None:
    """Which both covariances with products take; with another table a cell is measured anew."""
    loop: Any = SimpleNamespace(_table_hash="of the table")
    sampler: Any = SimpleNamespace(steps=[1, 10])
    for name, expected in (("jacobian", "of the table"), ("lanczos", "of the table"), ("beta", None)):
        assert CellLoop._own(loop, Method(name), sampler, 0)["table"] == expected


def test_reports_without_products_stay_as_they_were() -> None:
    result = Comparison(options(Path("x"), None, methods=METHODS[:1], steps=[2]), None)
    result.cells.append(Cell(result.options.methods[0], 2, {"fid": [Score(1.0, {})]}, evaluations=2))
    found = as_json(result)
    assert "product_costs" not in found
    assert "equivalents" not in found["cells"][0]
    assert found["cells"][0]["evaluations"] == 2


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "bands of another": ({"methods": [{"covariance": "beta", "bands": 4}]}, "bands=4 has no meaning with the cov"),
    "Krylov steps of another": (
        {"methods": [{"covariance": "jacobian", "krylov_steps": 4}]},
        "krylov_steps=4 has no meaning with the covariance jacobian; leave it out, or choose lanczos",
    ),
    "a structure": (
        {"methods": [{"covariance": "jacobian", "structure": "pixel"}]},
        "structure=pixel has no meaning with the covariance jacobian",
    ),
    "an estimator": (
        {"methods": [{"covariance": "lanczos", "estimator": "score_norm"}]},
        "estimator=score_norm has no meaning with the covariance lanczos",
    ),
    "a scaled Lanczos": ({"methods": [{"covariance": "lanczos", "factor": 2}]}, "choose jacobian"),
    "no Krylov step": ({"methods": [{"covariance": "lanczos", "krylov_steps": 0}]}, "krylov_steps"),
    "a price of nothing": ({"methods": METHODS[:1], "product_cost": 1.0}, "product_cost=1.0 has no meaning"),
    "a negative price": ({"product_cost": -1.0}, "product_cost"),
    "more than a share": ({"methods": [{"covariance": "analytic", "multistep": 2}]}, "multistep=2.0 must be a number"),
    "a share of products": (
        {"methods": [{"covariance": "lanczos", "multistep": 1}]},
        "lanczos-3, no table is known by",
    ),
    "a share of β̃": ({"methods": [{"covariance": "beta_tilde", "multistep": "auto"}]}, "says nothing of Cov[x_0|x_t]"),
    "bands of a solver": ({"methods": [{"sampler": "unipc", "bands": 4}]}, "no meaning for a solver"),
}


@pytest.mark.parametrize(("given", "said"), WRONG.values(), ids=WRONG)
def test_what_makes_no_sense_is_refused_before_the_work(tmp_path: Path, given: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        run(options(tmp_path / "x", None, **given))
    assert said in str(caught.value)
    assert not list(tmp_path.rglob("*.checkpoint"))


def test_methods_are_told_apart() -> None:
    lanczos = Method("lanczos", eta=0.0)
    assert lanczos.label == "DDIM Lanczos-3"
    assert Method("jacobian", probes=2).label == "DDPM Jacobian-16, 2 probes"
    assert needs_measuring(lanczos)
    names = {
        json.dumps(identity_of(m)) for m in (lanczos, Method("lanczos", eta=0.0, krylov_steps=5), Method("jacobian"))
    }
    assert len(names) == 3
    assert not {"bands", "probes", "krylov_steps", "derivative"} & {*identity_of(Method("analytic"))}


def test_shares_of_second_order_stand_beside_others(tmp_path: Path, table: Path) -> None:
    """A share leaves the covariance the rest: the trial without a table, before the work, is not for it to fail."""
    methods = [
        {"covariance": "analytic", "eta": 0, "structure": "dct", "multistep": "auto"},
        {"covariance": "jacobian", "eta": 0, "bands": 4, "multistep": 0.5},
    ]
    out = tmp_path / "x"
    run(options(out, table, methods=methods, steps=[4], product_cost=1.0))
    found = json.loads((out / "results.json").read_text())
    assert [(c["method"], c["evaluations"]) for c in found["cells"]] == [
        ("Analytic-DDIM dct, multistep auto", 4),
        ("DDIM Jacobian-4, multistep 0.5", 2),
    ]


def test_each_kind_has_its_own_colour() -> None:
    methods = [Method(**given) for given in METHODS]
    assert len({_colour(method, methods) for method in methods[:3]}) == 3
