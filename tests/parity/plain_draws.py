"""Numbers that look random and are the same everywhere: splitmix64 (whole-number arithmetic, so exact), and normal ones
by Box and Muller. No library's generator is asked, whose streams may change from version to version."""

import math

import numpy as np

_MASK = (1 << 64) - 1


def uniform(seed, *shape):
    """Numbers in (0, 1), float64."""
    state, out = (seed * 0x9E3779B97F4A7C15 + 0x1234567) & _MASK, []
    for _ in range(math.prod(shape)):
        state = (state + 0x9E3779B97F4A7C15) & _MASK
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        out.append((((z ^ (z >> 31)) >> 11) + 0.5) / (1 << 53))
    return np.array(out).reshape(shape)


def normal(seed, *shape):
    """Standard normal numbers, rounded to float32 so that every precision has the same; as float64."""
    count = math.prod(shape)
    u = uniform(seed, (count + 1) // 2, 2)
    radius, angle = np.sqrt(-2.0 * np.log(u[:, 0])), 2.0 * math.pi * u[:, 1]
    both = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).ravel()[:count]
    return both.astype(np.float32).astype(np.float64).reshape(shape)


def pixels(seed, *shape):
    """8-bit images of low and of high contrast, 0 and 255 among them; uint8."""
    contrast = 20.0 + 100.0 * uniform(seed + 1, shape[0], *(1,) * (len(shape) - 1))
    return np.clip(np.round(127.5 + contrast * normal(seed, *shape)), 0, 255).astype(np.uint8)
