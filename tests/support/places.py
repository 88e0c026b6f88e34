"""Where things are in the repository."""

import json
from pathlib import Path
from typing import Any

SUPPORT = Path(__file__).parent
ROOT = SUPPORT.parents[1]
SCRIPTS, CONFIGS = ROOT / "scripts", ROOT / "configs"
DIGITS = ROOT / "diffusion_var" / "assets" / "digits"  # the bundled model


def golden() -> dict[str, Any]:
    """Published reverse variances and trajectories."""
    found: dict[str, Any] = json.loads((ROOT / "tests" / "golden" / "reverse_variance.json").read_text())
    return found
