"""What a comparison counts a Jacobian-vector product for: measured once, and kept beside its cells.

A method's steps are as many as its evaluations allow, products included. So the price decides its cells, and a run that
goes on, on whatever machine, keeps what the first one measured.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ... import parallel
from ...files import make_folder, write_atomic
from ...json_text import parse_json
from ...models.product_cost import ProductCost, product_cost
from ..cell_files import FOLDER
from ..model import Model
from .options import CompareOptions

_DIGITS = 2  # that are kept of what was measured: more would be noise


def product_costs(
    options: CompareOptions, model: Model, folder: Path, announce: Callable[[str], None]
) -> dict[str, ProductCost]:
    """The price of a product for every derivative that a method takes; of no method with products, nothing is done.

    The first process measures, or reads what a run before has measured, and tells the others.
    """
    wanted = derivatives(options)
    costs = {"difference": ProductCost.difference()} if "difference" in wanted else {}
    if "forward" in wanted and options.product_cost is not None:
        costs["forward"] = ProductCost.forward(options.product_cost)
    elif "forward" in wanted:
        plain = parallel.team().first_alone(lambda: _kept(options, model, folder, announce))
        costs["forward"] = _cost(plain)
    return dict(sorted(costs.items(), reverse=True))


def derivatives(options: CompareOptions) -> set[str]:
    """Those by which methods take products."""
    return {method.derivative or "forward" for method in options.methods if method.takes_products}


def _kept(options: CompareOptions, model: Model, folder: Path, announce: Callable[[str], None]) -> dict[str, Any]:
    """What was measured of this network, by a run before or now, as plain data."""
    denoiser = model.denoiser
    belongs = [options.model, options.dtype, denoiser.fingerprint, denoiser.guidance_scale]
    if options.weights_dtype is not None:  # of which a fingerprint says nothing, where they were rounded so before
        belongs.append(options.weights_dtype)
    name = hashlib.sha256(json.dumps(belongs, default=str).encode()).hexdigest()[:12]
    path = folder / FOLDER / f"product-cost-{name}.json"
    if (found := _read(path)) is not None:
        return found
    announce(f"1/3 measuring what a Jacobian-vector product of {options.model} costs")
    size = min(options.batch_size, options.count)
    conditions = model.sample_conditions(range(size))
    cost = product_cost(denoiser, batch_size=size, condition=None if conditions is None else conditions[:size])
    assert cost.seconds is not None
    measured = {"with_mean": round(cost.with_mean, _DIGITS), "seconds": list(cost.seconds), "batch_size": size}
    make_folder(path.parent)
    write_atomic(path, (json.dumps(measured, indent=2) + "\n").encode())
    return measured


def _cost(plain: dict[str, Any]) -> ProductCost:
    evaluation, with_tangent = plain["seconds"]
    return ProductCost.forward(plain["with_mean"], (float(evaluation), float(with_tangent)))


def _read(path: Path) -> dict[str, Any] | None:
    """What a file keeps; None where there is none, or a damaged one, which is measured again."""
    try:
        content = parse_json(path.read_bytes())
        _cost(content)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return dict(content)
