"""`python -m diffusion_var` is the command `diffusion-var`."""

from .app.cli import main

main()
