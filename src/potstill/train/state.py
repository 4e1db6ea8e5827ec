"""Checkpoints that are whole or not there, and that notice when the disk lied.

A file's name holds the first 16 digits of its content's SHA-256: a torn or damaged file no longer fits its
name, and the one before is used.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from potstill import distributed
from potstill.errors import UserError
from potstill.files import write_bytes

__all__ = ["Checkpoints", "seed_everything"]

DIGITS = 16


class Checkpoints:
    """The newest checkpoints of one cell.

    Args:
        folder: Where they stand.
        keep: How many to keep.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder = folder
        self.keep = keep

    def paths(self) -> list[Path]:
        """All checkpoint files, oldest first."""
        return sorted(self.folder.glob("step-*.pt"))

    def save(self, step: int, payload: dict[str, Any]) -> Path:
        """Write a checkpoint aside, rename it, then remove all but the newest.

        Files of later steps go too: damaged ones that a resumed training passed over. So does what a
        killed process left half written.

        Raises:
            UserError: If the disk is full or the folder cannot be written; older checkpoints stay.
        """
        buffer = io.BytesIO()
        torch.save(payload, buffer)
        content = buffer.getvalue()
        digest = hashlib.sha256(content).hexdigest()[:DIGITS]
        path = self.folder / f"step-{step:08d}-{digest}.pt"
        write_bytes(path, content)
        before = [other for other in self.paths() if _step_of(other) < step]
        kept = {path, *before[max(0, len(before) - self.keep + 1) :]}
        for other in [*self.paths(), *self.folder.glob(".step-*.partial.pt")]:
            if other not in kept:
                other.unlink(missing_ok=True)
        return path

    def refuse_others(self) -> None:
        """Make sure that a training that starts anew finds no checkpoints of another one.

        Raises:
            UserError: If there are any.
        """
        if self.paths():
            raise UserError(
                str(self.folder), "holds checkpoints of another training; go on with it or use another folder"
            )

    def latest(self) -> tuple[dict[str, Any] | None, list[str]]:
        """The newest whole checkpoint, and a note for each damaged one that was passed over.

        Returns:
            The payload, or ``None`` where there is no checkpoint to go on from.

        Raises:
            UserError: If there are checkpoints but all of them are damaged.
        """
        notes: list[str] = []
        paths = self.paths()
        for path in reversed(paths):
            payload = self._read(path)
            if payload is not None:
                return payload, notes
            notes.append(
                f"the checkpoint {path.name} is damaged (its content does not fit its name); passed over"
            )
        if paths:
            raise UserError(
                str(self.folder), f"all {len(paths)} checkpoints are damaged; remove the folder to start anew"
            )
        return None, notes

    @staticmethod
    def _read(path: Path) -> dict[str, Any] | None:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest()[:DIGITS] != path.stem.rpartition("-")[2]:
            return None
        try:
            payload: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError):
            return None
        return payload


def _step_of(path: Path) -> int:
    return int(path.name.split("-")[1])


def seed_everything(seed: int) -> None:
    """Seed all global random generators; each process draws its own numbers."""
    rank = distributed.rank()
    torch.manual_seed(seed + rank * 0x9E3779B1)  # must differ in the low 32 bits: the CPU uses no others
    random.seed(f"{seed}/{rank}")
    np.random.seed([seed, rank])
