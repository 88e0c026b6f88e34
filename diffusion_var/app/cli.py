"""The command line, `diffusion-var`. Flags are made from `options`; heavy imports wait until a command runs."""

from __future__ import annotations

import typer

from . import options as option_sets
from .flags import command, new_app, run_app
from .head_options import TrainHeadOptions

app = new_app("diffusion-var", "The reverse covariance of diffusion models: measure it once, sample and score with it.")


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


@command(app, option_sets.CompareOptions, "demo")
def demo(options: option_sets.CompareOptions) -> None:
    """Compare every choice of reverse variance on the bundled digits model; writes a report."""
    from .commands.outputs import run_compare

    run_compare(options)


@command(app, option_sets.CompareOptions, "compare")
def compare(options: option_sets.CompareOptions) -> None:
    """Compare methods by their scores; writes a report."""
    from .commands.outputs import run_compare

    run_compare(options)


@command(app, option_sets.EstimateOptions, "estimate")
def estimate(options: option_sets.EstimateOptions) -> None:
    """Write a variance table."""
    from .commands.outputs import run_estimate

    run_estimate(options)


@command(app, option_sets.ShowOptions, "show")
def show(options: option_sets.ShowOptions) -> None:
    """Print a variance table and draw it."""
    from .commands.outputs import run_show

    run_show(options)


@command(app, option_sets.SampleOptions, "sample")
def sample(options: option_sets.SampleOptions) -> None:
    """Write samples."""
    from .commands.outputs import run_sample

    run_sample(options)


@command(app, option_sets.NllOptions, "nll")
def nll(options: option_sets.NllOptions) -> None:
    """Print a likelihood bound."""
    from .commands.nll import run_nll

    run_nll(options)


@command(app, option_sets.StepsOptions, "steps")
def steps(options: option_sets.StepsOptions) -> None:
    """Print optimal trajectories."""
    from .commands.nll import run_steps

    run_steps(options)


@command(app, TrainHeadOptions, "train-head")
def train_head(options: TrainHeadOptions) -> None:
    """Train a covariance head."""
    from .commands.train_head import run_train_head

    run_train_head(options)


@command(app, option_sets.StatsOptions, "stats")
def stats(options: option_sets.StatsOptions) -> None:
    """Write feature statistics."""
    from .commands.fid import run_stats

    run_stats(options)


@command(app, option_sets.FidOptions, "fid")
def fid(options: option_sets.FidOptions) -> None:
    """Print scores."""
    from .commands.fid import run_fid

    run_fid(options)


if __name__ == "__main__":
    main()
