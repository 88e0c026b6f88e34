"""The options of the demo, and its parts: comparisons with a title and words of their own, read from demo.yaml."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from ...checks import refuse
from ..compare.options import CompareOptions
from ..options import DeviceHelp, Options, ProcessesHelp

#: Where the parts have the side of the photographs' patches, and how many images likelihoods are of, by default.
_SIZE, _IMAGES, _MOST_IMAGES = "SIZE", "IMAGES", 300


@dataclass
class PartOptions(CompareOptions):
    """One part of the demo: a comparison, and what is said of it."""

    part: str = ""  # of its files, and of --parts
    title: str = ""
    text: str = ""
    remarks: list[str] = field(default_factory=list)
    floor: str = "real images"


@dataclass
class DemoOptions(Options):
    """See what a measured variance does: an exact mean, a trained one, and likelihoods; takes minutes.

    Each part is a comparison: photographs under a model whose mean is exact, a trained network, and likelihoods.
    """

    out: Annotated[Path, "folder for the report and for what an interrupted run continues from"] = Path("runs/demo")
    parts: Annotated[list[str] | None, "parts to run, comma-separated; by default all"] = None
    steps: Annotated[list[int] | None, "numbers of network evaluations, comma-separated; by default each part's"] = None
    seeds: Annotated[list[int] | None, "seeds, comma-separated; by default each part's own"] = None
    count: Annotated[int | None, "images a method, number of evaluations and seed; by default each part's own"] = None
    tolerance: Annotated[float | None, "tolerance of the variance tables; by default each part's own"] = None
    size: Annotated[int, "side of the photographs' patches; smaller ones are quicker"] = 16
    device: Annotated[str | None, DeviceHelp] = None
    processes: Annotated[int, ProcessesHelp] = 0
    overwrite: Annotated[bool, "begin anew, or write beside other files"] = False

    def cells_left(self) -> int:
        """How many cells of the largest part are to be measured."""
        return max(part.cells_left() for part in demo_parts(self))


def demo_parts(options: DemoOptions) -> list[PartOptions]:
    """The parts that the options name, in the demo's order; InputError for unknown ones."""
    from ..config import load_options
    from ..yaml_text import parse_yaml

    text = (resources.files("diffusion_var.app.demo") / "demo.yaml").read_text(encoding="utf-8")
    images = _MOST_IMAGES if options.count is None else min(options.count, _MOST_IMAGES)
    text = text.replace(_SIZE, str(options.size)).replace(_IMAGES, str(images))
    content = parse_yaml(text, "demo.yaml")
    every: list[PartOptions] = [load_options(PartOptions, part) for part in content["parts"]]
    names = [part.part for part in every]
    wanted = names if options.parts is None else options.parts
    unknown = [name for name in wanted if name not in names]
    refuse(
        bool(unknown) or not wanted,
        f"the demo has no part {', '.join(unknown) or 'to run'}; its parts are {', '.join(names)}.",
    )
    own: dict[str, Any] = {f.name: getattr(options, f.name) for f in fields(options)}
    given = {name: own[name] for name in ("steps", "seeds", "count", "tolerance", "device") if own[name] is not None}
    return [
        replace(part, out=options.out / part.part, overwrite=options.overwrite, **given)
        for part in every
        if part.part in wanted
    ]
