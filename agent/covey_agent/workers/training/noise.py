"""Randomness that a privacy guarantee may rest on: the operating system's generator, nothing seeded.

- An ordinary generator's state can be worked out from its outputs, and with it the noise. `os.urandom` cannot.
- Floating point leaves gaps between the values that one normal variate can take, from which true values have been read back
  (arXiv:2112.05307). The sum of four variates divided by two has the same distribution and closes the gap at a cost of
  2^159 tries: the construction of Opacus' secure mode, section 5.1 of arXiv:2107.10138, whose own generator is not
  available for current PyTorch.
- Which records enter a step must stay unknown too, so Poisson sampling draws from here as well.
"""

import os

import numpy as np
from numpy.typing import NDArray

_SUMMED = 4  # 2n with n = 2 in arXiv:2107.10138
_BITS = 52  # with half a step added, the largest value is still below 1 in double precision


def draw_uniform(count: int) -> NDArray[np.float64]:
    """float64[count], uniform within the open interval (0, 1): the logarithm of each is finite."""
    bits = np.frombuffer(os.urandom(8 * count), dtype="<u8") >> (64 - _BITS)
    return (bits.astype(np.float64) + 0.5) * 2.0**-_BITS


def draw_normal(count: int) -> NDArray[np.float64]:
    """float64[count] of the standard normal distribution, by Box and Muller."""
    pairs = (count + 1) // 2
    radius = np.sqrt(-2.0 * np.log(draw_uniform(pairs)))
    angle = 2.0 * np.pi * draw_uniform(pairs)
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]


def draw_noise(count: int, *, std: float) -> NDArray[np.float64]:
    """float64[count] of a normal distribution with mean 0 and standard deviation `std`, summed as above."""
    total = np.zeros(count)
    for _ in range(_SUMMED):
        total += draw_normal(count)
    total *= std / np.sqrt(_SUMMED)
    return total


def draw_sample(size: int, *, rate: float) -> NDArray[np.int64]:
    """Row numbers of one Poisson sample: each of `size` rows is in it with probability `rate`, independently."""
    return np.flatnonzero(draw_uniform(size) < rate)
