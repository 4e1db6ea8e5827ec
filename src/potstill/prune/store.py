"""Scores on disk: computed once for a network and its calibration samples, read for every target."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from potstill.files import write_atomic

__all__ = ["Scores", "stored"]

DIGITS = 16
UNITS, BLOCKS = "units/", "blocks/"


@dataclass(frozen=True)
class Scores:
    """What every unit and block of a network matters; the least may go first.

    Attributes:
        units: ``(units,)`` float64 by name of the group.
        blocks: One number by path of the block.
    """

    units: Mapping[str, Tensor]
    blocks: Mapping[str, float]


def stored(folder: Path, key: Mapping[str, str], compute: Callable[[], Scores]) -> Scores:
    """Scores from ``folder``, or computed and kept there.

    Args:
        folder: Where scores are kept.
        key: All that they depend on; its hash is the file's name.
        compute: Makes them.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as place:
        ...     made = stored(Path(place), {"model": "a"}, lambda: Scores({"c": torch.ones(2)}, {"b": 3.0}))
        ...     again = stored(Path(place), {"model": "a"}, lambda: 1 / 0)
        >>> again.units["c"].tolist(), again.blocks
        ([1.0, 1.0], {'b': 3.0})
    """
    digest = hashlib.sha256(repr(sorted(key.items())).encode()).hexdigest()[:DIGITS]
    path = folder / f"scores-{digest}.safetensors"
    if path.is_file():
        try:
            return _read(path)
        except (SafetensorError, ValueError, OSError):  # damaged: they are computed again
            path.unlink()
    scores = compute()
    tensors = {UNITS + name: values.contiguous() for name, values in scores.units.items()}
    tensors |= {
        BLOCKS + name: torch.tensor([value], dtype=torch.float64) for name, value in scores.blocks.items()
    }
    with write_atomic(path) as aside:
        save_file(tensors, aside, metadata=dict(key))
    return scores


def _read(path: Path) -> Scores:
    tensors = load_file(path)
    units = {name.removeprefix(UNITS): values for name, values in tensors.items() if name.startswith(UNITS)}
    blocks = {
        name.removeprefix(BLOCKS): float(value) for name, value in tensors.items() if name.startswith(BLOCKS)
    }
    return Scores(units, blocks)
