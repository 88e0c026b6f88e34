"""The command line, `diffusion-var`. Flags are made from option sets; heavy imports wait until a command runs."""

from __future__ import annotations

if __name__ == "__main__":  # `python -m diffusion_var.app.cli` has no other edge while it imports
    from ..stopping import StopSignals

    StopSignals().__enter__()

from importlib import import_module
from typing import Any

import typer

from .commands.train_features import TrainFeaturesOptions
from .commands.train_unet import TrainUNetOptions
from .compare.options import CompareOptions
from .flags import command, new_app, run_app
from .options import (
    EstimateOptions,
    FidOptions,
    NllOptions,
    SampleOptions,
    ShowOptions,
    StatsOptions,
    StepsOptions,
    TrainHeadOptions,
)

app = new_app("diffusion-var", "The reverse covariance of diffusion models: measure it once, sample and score with it.")

#: Name: its options, whose docstring is its help, and the module whose function `run` carries it out.
COMMANDS: dict[str, tuple[type[Any], str]] = {
    "demo": (CompareOptions, "compare.run"),
    "compare": (CompareOptions, "compare.run"),
    "estimate": (EstimateOptions, "commands.estimate"),
    "show": (ShowOptions, "commands.show"),
    "sample": (SampleOptions, "commands.sample"),
    "nll": (NllOptions, "commands.nll"),
    "steps": (StepsOptions, "commands.steps"),
    "train-head": (TrainHeadOptions, "commands.train_head"),
    "train-unet": (TrainUNetOptions, "commands.train_unet"),
    "train-features": (TrainFeaturesOptions, "commands.train_features"),
    "stats": (StatsOptions, "commands.stats"),
    "fid": (FidOptions, "commands.fid"),
}


def main() -> None:
    """Entry point of the console script."""
    run_app(app)


@app.callback()
def _version(
    version: bool = typer.Option(False, "--version", help="Print the version and leave.", is_eager=True),
) -> None:
    if version:
        from importlib.metadata import version as installed

        typer.echo(f"diffusion-var {installed('diffusion-var')}")
        raise typer.Exit


def _register(name: str, kind: type[Any], home: str) -> None:
    def carry_out(options: Any) -> None:
        import_module(f".{home}", __package__).run(options)

    command(app, kind, name)(carry_out)


for _name, (_kind, _home) in COMMANDS.items():
    _register(_name, _kind, _home)

if __name__ == "__main__":
    main()
