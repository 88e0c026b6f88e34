"""`diffusion-var` and `python -m diffusion_var`: signals are listened to before the imports, which take a while."""

from __future__ import annotations

import os

from .stopping import StopSignals


def main() -> None:
    """Entry point of the console script."""
    if "RANK" in os.environ or "SLURM_PROCID" in os.environ:  # what c10d warns of is said in one sentence
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    with StopSignals():
        from .app.processes import watch_starter

        watch_starter()
        from .app.cli import main as command_line

        command_line()


if __name__ == "__main__":
    main()
