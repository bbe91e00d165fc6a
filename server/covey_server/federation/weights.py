"""Weights as names and arrays: to a checkpoint (safetensors) and back, and the equal-weight average of contributions.

A checkpoint holds the whole state of the model, so that a release is made from it and the task's code alone. What travels in
rounds is the trained part.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from covey_server.errors import InvalidInputError

Weights = dict[str, NDArray[np.float32]]
State = dict[str, NDArray[np.generic]]


def to_checkpoint(state: State) -> bytes:
    """A state dict as safetensors; equal states give equal bytes."""
    return save({name: np.ascontiguousarray(state[name]) for name in sorted(state)})


def from_checkpoint(data: bytes) -> State:
    """The inverse. Raises InvalidInputError."""
    try:
        return load(data)
    except (SafetensorError, ValueError, KeyError) as exc:
        raise InvalidInputError(f"expected a checkpoint in safetensors, got {len(data)} bytes: {exc}") from exc


def find_fault(change: Weights, *, like: Weights) -> str:
    """Why a contribution cannot be used; empty if it can. One that is not finite would ruin the model for everybody."""
    if change.keys() != like.keys():
        return f"expected a change of {', '.join(sorted(like))}, got {', '.join(sorted(change))[:200]}"
    for name, value in change.items():
        if value.shape != like[name].shape:
            return f"expected {name} in the shape {like[name].shape}, got {value.shape}"
        if not np.isfinite(value).all():
            return f"{name} holds values that are not finite"
    return ""


def apply_average(weights: Weights, changes: Sequence[Weights]) -> Weights:
    """`weights` plus the mean of `changes`.

    Each participant counts the same, however much data it has: weights by size would tell sizes, and would let the largest one
    dominate. Sums are made in double precision and in the given order, so a repetition gives the same bits.
    """
    if not changes:
        raise InvalidInputError("there is nothing to average")
    return {
        name: (value.astype(np.float64) + np.mean([change[name].astype(np.float64) for change in changes], axis=0)).astype(np.float32)
        for name, value in weights.items()
    }
