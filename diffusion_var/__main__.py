"""`diffusion-var` and `python -m diffusion_var`: signals are listened to before the imports, which take a while."""

from __future__ import annotations

from .stopping import StopSignals


def main() -> None:
    """Entry point of the console script."""
    with StopSignals():
        from .app.cli import main as command_line

        command_line()


if __name__ == "__main__":
    main()
