"""The golden numbers are what the plain code says, and small."""

import json
import subprocess
import sys

import numpy as np
import pytest
from make_golden import FILES, FOLDER, golden, plain


def leaves(value):
    """The numbers of a nest, in order, with where they are."""
    if isinstance(value, dict):
        return [(f"{key}/{where}", leaf) for key in sorted(value) for where, leaf in leaves(value[key])]
    if isinstance(value, list):
        return [(f"{k}/{where}", leaf) for k, inner in enumerate(value) for where, leaf in leaves(inner)]
    return [("", value)]


@pytest.mark.parametrize("name", FILES)
def test_the_plain_code_gives_the_golden_numbers(name):
    made, stored = leaves(json.loads(json.dumps(plain(FILES[name]())))), leaves(golden(name))
    assert [where for where, _ in made] == [where for where, _ in stored]
    a, b = (np.array([value for _, value in numbers], dtype=np.float64) for numbers in (made, stored))
    assert np.isfinite(b).all()
    # Other processors and versions of NumPy may round the last digits of sin, exp and log otherwise.
    np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_there_are_no_other_files_and_they_are_small():
    found = {path.name: path.stat().st_size for path in (FOLDER / "golden").iterdir()}
    assert set(found) == {f"{name}.json" for name in FILES}
    assert sum(found.values()) < 100_000


def test_the_plain_code_needs_nothing_of_the_package():
    code = f"import sys; sys.path.insert(0, {str(FOLDER)!r}); import make_golden; print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    for name in ("diffusion_var", "torch", "scipy", "diffusers"):
        assert f"'{name}'" not in done.stdout
