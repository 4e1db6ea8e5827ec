"""Figures of a training: what each part of the loss came to, in a step and between two rows of figures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from potstill import distributed
from potstill.batch import Share

__all__ = ["Figures", "Tally"]


class Tally:
    """The totals of one step and phase, added up batch by batch without waiting for the device.

    Attributes:
        weights: What each part was multiplied by.
    """

    def __init__(self) -> None:
        self.weights: dict[str, float] = {}
        self._totals: dict[str, Tensor] = {}

    def add(self, parts: Mapping[str, Share], loss: Tensor) -> None:
        """Count one batch: its parts and the loss that was made of them."""
        self.weights |= {name: part.weight for name, part in parts.items()}
        totals = {name: part.total.detach() for name, part in parts.items()}
        for name, part in parts.items():
            totals |= {f"{name}/{region}": total for region, total in part.regions.items()}
        for name, total in {**totals, "": loss.detach()}.items():
            self._totals[name] = self._totals[name] + total if name in self._totals else total

    def joint(self) -> dict[str, float]:
        """The totals over all processes; a step waits for the device here.

        The whole loss has no name; of what a part is the sum of there is ``part/region``.
        """
        stacked = torch.stack([total.double() for total in self._totals.values()])
        return dict(zip(self._totals, distributed.sum_tensor(stacked).tolist(), strict=True))


class Figures:
    """Means since the last row of figures."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, float, float]] = {}  # of each part: total, weighted, count
        self._norms: dict[str, tuple[float, float, int]] = {}  # of each part: plain, weighted, measurements

    def add(
        self, totals: Mapping[str, float], weights: Mapping[str, float], counts: Mapping[str, float]
    ) -> None:
        """Count a step's totals by part."""
        for name, value in totals.items():
            part = name.partition("/")[0]
            if part in weights:
                total, weighted, count = self._sums.get(name, (0.0, 0.0, 0.0))
                self._sums[name] = (total + value, weighted + weights[part] * value, count + counts[part])

    def add_norms(self, norms: Mapping[str, float], weights: Mapping[str, float]) -> None:
        """Count gradient norms of unweighted parts, as they were measured in a step."""
        for name, norm in norms.items():
            if math.isfinite(norm):
                plain, weighted, times = self._norms.get(name, (0.0, 0.0, 0))
                self._norms[name] = (plain + norm, weighted + weights[name] * norm, times + 1)

    def row(self) -> dict[str, dict[str, float]]:
        """The means by name, and forget them.

        Returns:
            ``parts``, ``weighted``, and, where they were measured, ``gradient_norms`` of the unweighted
            parts and ``weighted_gradient_norms``; ``regions`` of parts that tell them, weighted.
        """
        sums, norms = self._sums, self._norms
        self._sums, self._norms = {}, {}
        whole = {name: each for name, each in sums.items() if "/" not in name}
        row = {
            "parts": {name: total / max(count, 1.0) for name, (total, _, count) in whole.items()},
            "weighted": {name: total / max(count, 1.0) for name, (_, total, count) in whole.items()},
        }
        if len(whole) < len(sums):
            split = {name: each for name, each in sums.items() if "/" in name}
            row["regions"] = {name: total / max(count, 1.0) for name, (_, total, count) in split.items()}
        if norms:
            row["gradient_norms"] = {name: norm / times for name, (norm, _, times) in norms.items()}
            row["weighted_gradient_norms"] = {name: norm / times for name, (_, norm, times) in norms.items()}
        return row

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs."""
        return {"sums": dict(self._sums), "norms": dict(self._norms)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` gave."""
        self._sums, self._norms = dict(state["sums"]), dict(state["norms"])
