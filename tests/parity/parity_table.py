"""One comparison: asserted, and printed as a row of a table (`pytest tests/parity -s | grep '^|'`).

What is compared is named "group: case"; `report.py` prints the groups.
"""

import numpy as np


def agree(what, found, expected, tolerance, unit="largest", floor=1e-300):
    """Assert that two arrays agree, and print by how much.

    `unit`: the difference is relative to the "largest" expected number, or to "each", those below `floor` counting as
    that much.
    """
    found, expected = (np.asarray(a, dtype=np.float64).ravel() for a in (found, expected))
    assert found.shape == expected.shape, f"{what}: {found.shape} against {expected.shape}"
    assert np.isfinite(expected).all(), what
    difference = np.abs(found - expected)
    difference = difference / (np.abs(expected).max() if unit == "largest" else np.maximum(np.abs(expected), floor))
    worst = float(difference.max())
    print(f"\n| {what} | {found.size} | {worst:.1e} | {tolerance:.1e} |")
    assert worst <= tolerance, f"{what}: {worst:.3g} > {tolerance:g}"


def differ(what, ours, theirs, low, high, unit="each"):
    """A known and wanted difference: its size, relative or absolute, is asserted to lie in [low, high], and printed."""
    ours, theirs = (np.asarray(a, dtype=np.float64).ravel() for a in (ours, theirs))
    difference = np.abs(ours - theirs)
    if unit == "each":
        difference = difference / np.maximum(np.abs(theirs), 1e-300)
    worst = float(difference.max())
    print(f"\n| (differs) {what} | {ours.size} | {worst:.2e} | {low:.1e} to {high:.1e} |")
    assert low <= worst <= high, f"{what}: {worst:.3g} is not between {low:g} and {high:g}"
