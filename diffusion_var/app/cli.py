"""The command line, `diffusion-var`. Flags are made from option sets; heavy imports wait until a command runs."""

from __future__ import annotations

if __name__ == "__main__":  # `python -m diffusion_var.app.cli` has no other edge while it imports
    from ..stopping import StopSignals

    StopSignals().__enter__()

import sys
from importlib import import_module
from typing import Any

import typer

from ..progress import quiet
from .commands.train_features import TrainFeaturesOptions
from .commands.train_unet import TrainUNetOptions
from .compare.options import CompareOptions
from .demo.options import DemoOptions
from .flags import command, new_app, run_app
from .options import (
    AdviseOptions,
    EstimateOptions,
    FidOptions,
    NllOptions,
    SampleOptions,
    ShowOptions,
    StatsOptions,
    StepsOptions,
    TrainHeadOptions,
)
from .processes import carried_out, starting
from .restore.options import RestoreOptions

app = new_app("diffusion-var", "The reverse covariance of diffusion models: measure it once, sample and score with it.")

#: Name: its options, whose docstring is its help, and the module whose function `run` carries it out.
COMMANDS: dict[str, tuple[type[Any], str]] = {
    "demo": (DemoOptions, "demo.run"),
    "compare": (CompareOptions, "compare.run"),
    "advise": (AdviseOptions, "commands.advise"),
    "estimate": (EstimateOptions, "commands.estimate"),
    "show": (ShowOptions, "commands.show"),
    "sample": (SampleOptions, "commands.sample"),
    "nll": (NllOptions, "commands.nll"),
    "steps": (StepsOptions, "commands.steps"),
    "restore": (RestoreOptions, "restore.run"),
    "train-head": (TrainHeadOptions, "commands.train_head"),
    "train-unet": (TrainUNetOptions, "commands.train_unet"),
    "train-features": (TrainFeaturesOptions, "commands.train_features"),
    "stats": (StatsOptions, "commands.stats"),
    "fid": (FidOptions, "commands.fid"),
}
#: Those whose work processes do not share: the first one does it.
OF_ONE_PROCESS = frozenset({"advise", "show", "train-features"})
#: What the list of commands says of those whose first sentence does not fit into a line.
IN_SHORT = {
    "demo": "See what a measured variance does; takes some minutes.",
    "compare": "Compare methods, numbers of steps and seeds by scores.",
    "advise": "Advise on a model of one's own, from held-out images.",
    "nll": "Bound the likelihood of images, in bits/dim.",
    "steps": "Find the step lists that are best for likelihoods.",
    "restore": "Restore images from measurements, and score it.",
    "train-head": "Train a head: variances that depend on the image.",
    "train-unet": "Train a UNet on images, as a diffusers pipeline.",
    "train-features": "Train a small classifier, whose features scores use.",
    "stats": "Write the feature statistics of images, to score against.",
    "fid": "Score images against a reference: FID, KID, precision, …",
}


def main() -> None:
    """Entry point of the console script."""
    with starting(sys.argv[1:]):
        run_app(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version as installed

        typer.echo(f"diffusion-var {installed('diffusion-var')}")
        raise typer.Exit


@app.callback()
def _every_command(
    context: typer.Context,
    version: bool = typer.Option(
        False, "--version", "-V", help="Print the version and leave.", is_eager=True, callback=_print_version
    ),
    silent: bool = typer.Option(False, "--quiet", "-q", help="Show no progress."),
    debug: bool = typer.Option(False, "--debug", help="Show an error's traceback, with its causes."),
) -> None:
    context.with_resource(quiet(silent))  # `debug` is what each command looks up here


@app.command("help", help="Show this help, or that of one command.")
def _help(name: str | None = typer.Argument(None, metavar="COMMAND", help="e.g. estimate", show_default=False)) -> None:
    typer.main.get_command(app)(args=[*([] if name is None else [name]), "--help"], prog_name="diffusion-var")


def _register(name: str, kind: type[Any], home: str) -> None:
    def carry_out(options: Any) -> None:
        if (code := carried_out(options)) is not None:
            raise typer.Exit(code)
        import_module(f".{home}", __package__).run(options)

    command(app, kind, name, IN_SHORT.get(name), name not in OF_ONE_PROCESS)(carry_out)


for _name, (_kind, _home) in COMMANDS.items():
    _register(_name, _kind, _home)

if __name__ == "__main__":
    main()
