"""Trained weights as names and arrays."""

import hashlib

import numpy as np
from numpy.typing import NDArray

Weights = dict[str, NDArray[np.float32]]


def fingerprint(weights: Weights) -> str:
    """sha256 over names, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        value = np.ascontiguousarray(weights[name], dtype="<f4")
        digest.update(f"{name}{value.shape}".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()
