"""A teacher that answers from the cache; what is not there it asks the live one, once, and keeps.

What it answers is always what is stored, also when it was just computed: a training that is resumed, or
repeated with a full cache, sees the same numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import nn

from potstill.batch import Batch, Inputs, Signals
from potstill.cache.layout import OUTPUT
from potstill.cache.vault import Vault
from potstill.errors import UserError
from potstill.losses.heads import Projected
from potstill.matching.comparison import mean_over_positions
from potstill.matching.recording import LayerShape, record
from potstill.matching.taps import INPUT
from potstill.teachers import Teacher, as_teacher

__all__ = ["Cached", "stored_of"]


class Place(Protocol):
    """Where the answers of a teacher are kept."""

    def vault(self, layers: Sequence[str]) -> Vault:
        """The cache that holds ``layers`` beside the output."""

    def layers(self, inputs: Inputs, found: Callable[[], Sequence[LayerShape]]) -> Sequence[LayerShape]:
        """The teacher's layers for an example: what is kept of them, else what ``found`` gives."""


class Cached(nn.Module):
    """A teacher behind a cache.

    Args:
        live: Gives the live network; called when it is first needed, and never where all is stored.
        shelf: Gives the cache for the layers that are tapped, and keeps what layers there are.
        paths: Layers to tap.
        pooled: Those of them of which only the mean over positions is stored and answered.

    Attributes:
        asked: Samples that the live teacher was asked for.

    Raises:
        UserError: If ``:input`` is tapped: a stored answer has no gradient by the input.
    """

    def __init__(
        self,
        live: Callable[[], nn.Module],
        shelf: Place,
        paths: Sequence[str] = (),
        pooled: Collection[str] = (),
    ) -> None:
        super().__init__()
        if INPUT in paths:
            raise UserError(
                "teacher.cache",
                "a term needs the teacher's gradient by its input, which only the live teacher has; leave "
                "the cache or the term out",
            )
        self.paths = tuple(paths)
        self.pooled = frozenset(pooled) & set(paths)
        self.asked = 0
        self._live, self._shelf = live, shelf
        self._vault: Vault | None = None
        self._taught: list[Teacher] = []  # a list hides it: it is no part of the module
        self.eval()

    @property
    def network(self) -> nn.Module:
        """The live network; asking for it loads it."""
        return cast(Teacher, as_teacher(self._live())).network

    @property
    def vault(self) -> Vault:
        """Where the answers are."""
        if self._vault is None:
            self._vault = self._shelf.vault([self.name_of(path) for path in self.paths])
        return self._vault

    def name_of(self, path: str) -> str:
        """What a layer's stored tensor is called: its path, with a word where it is a mean."""
        return f"{path} (mean)" if path in self.pooled else path

    def layers(self, inputs: Inputs) -> Sequence[LayerShape]:
        """The network's layers, as they were found once."""
        return self._shelf.layers(inputs, lambda: record(self.network, inputs))

    def tapping(self, paths: Sequence[str], pooled: Collection[str] = ()) -> Cached:
        """The same teacher with ``paths`` tapped."""
        return Cached(self._live, self._shelf, paths, pooled)

    def train(self, mode: bool = True) -> Cached:
        """Stay in eval mode whatever ``mode`` says."""
        super().train(False)
        return self

    def forward(self, batch: Batch, given: Any = None) -> Signals:
        """Answer to a batch, without a gradient.

        Args:
            batch: Its view and index say what is looked up.
            given: Not looked at: a teacher whose answer depends on it, a detector, has no cache.

        Raises:
            UserError: If the live teacher's answer cannot be stored.
        """
        del given
        index = batch.index.cpu().numpy()
        records, there = self.vault.read(batch.view, index)
        if not there.all():
            if not self.vault.writing and self.vault.layout is None:
                return self.ask(batch)
            rows = np.flatnonzero(~there)
            # A batch that is mostly missing is computed whole: rounding may depend on what stands beside. So
            # is one whose answers are mixed, as partners stand behind its own samples.
            whole = 2 * len(rows) > len(index) or batch.mixture is not None
            asked = np.arange(len(index)) if whole else rows
            answer = self.ask(_some(batch, asked))
            kept = torch.from_numpy(np.searchsorted(asked, rows)).to(batch.index.device)
            made = self.vault.keep(batch.view, index[rows], stored_of(answer, kept))
            records = made if len(rows) == len(index) else _put(records, rows, made)
        layout = self.vault.layout
        assert layout is not None, "what was read or kept has a layout"
        tensors = layout.decode(records.to(batch.index.device, non_blocking=True))
        output, taps = tensors[OUTPUT], {path: tensors[path] for path in self.paths}
        if layout.tokens is not None:
            return Signals(output[-1], taps, known=output)
        return Signals(output, taps)

    def ask(self, batch: Batch) -> Signals:
        """The live teacher's answer, as it is."""
        if not self._taught:
            teacher = cast(Teacher, as_teacher(self._live()))
            self._taught.append(teacher.tapping(self.paths) if self.paths else teacher)
        self.asked += len(batch)
        with torch.no_grad():
            answer: Signals = self._taught[0](batch)
        tokens = batch.tokens("teacher")
        means = {path: mean_over_positions(answer.taps[path], tokens) for path in self.pooled}
        return dataclasses.replace(answer, taps={**answer.taps, **means})


def stored_of(answer: Signals, rows: torch.Tensor | None = None) -> dict[str, torch.Tensor | Projected]:
    """What is stored of an answer, of all samples or those at ``rows``, by path."""

    def some(tensor: torch.Tensor) -> torch.Tensor:
        return tensor if rows is None else tensor[rows]

    output = some(answer.output)
    whole = output if answer.head is None else Projected(output, answer.head)
    return {OUTPUT: whole, **{path: some(tap) for path, tap in answer.taps.items()}}


def _some(batch: Batch, rows: np.ndarray[Any, Any]) -> Batch:
    """The samples at ``rows`` of a batch."""
    if len(rows) == len(batch):
        return batch
    chosen = torch.from_numpy(rows).to(batch.index.device)

    def of(inputs: Inputs) -> Inputs:
        if isinstance(inputs, torch.Tensor):
            return inputs[chosen]
        return {name: tensor[chosen] for name, tensor in inputs.items()}

    return dataclasses.replace(
        batch,
        inputs={role: of(inputs) for role, inputs in batch.inputs.items()},
        target=None if batch.target is None else batch.target[chosen],
        where=None if batch.where is None else batch.where[chosen],
        index=batch.index[chosen],
    )


def _put(records: torch.Tensor, rows: np.ndarray[Any, Any], made: torch.Tensor) -> torch.Tensor:
    records = records.clone()
    records[torch.from_numpy(rows)] = made
    return records
