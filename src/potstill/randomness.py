"""The random generators that a network, a data set or a transform may use without being asked to."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

__all__ = ["random_state", "reseed", "restore_random_state", "under"]


def reseed(seed: int) -> None:
    """Seed all global generators alike."""
    torch.manual_seed(seed)
    np.random.seed(seed % (1 << 32))
    random.seed(seed)


@contextmanager
def under(seed: int) -> Iterator[None]:
    """Run the block with global generators at ``seed``, and leave them as they were.

    >>> before = torch.get_rng_state()
    >>> with under(1):
    ...     one = torch.rand(2)
    >>> with under(1):
    ...     print(torch.equal(torch.rand(2), one))
    True
    >>> torch.equal(torch.get_rng_state(), before)
    True
    """
    before = random_state()
    try:
        reseed(seed)
        yield
    finally:
        restore_random_state(before)


def random_state() -> dict[str, Any]:
    """The state of every random generator that a network or a transform may use."""
    _, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": random.getstate(),
        "numpy": [
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            int(position),
            int(has_gauss),
            float(gauss),
        ],
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Put the generators back to what :func:`random_state` found."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, cached))
