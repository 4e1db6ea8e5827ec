"""How close what is stored comes to what the teacher answered, and which code is close enough."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from potstill.cache.codes import Affine, Code, Float, Top

__all__ = ["Fidelity", "candidates", "choose", "divergence"]

ENOUGH = 10_000
"""Rows after which nothing more is measured."""
MARGIN = 2.0
"""How far below its bound a code must be on the first rows: others may fare worse."""


def divergence(live: Tensor, decoded: Tensor, temperature: float) -> Tensor:
    """KL divergence of what was decoded from what was answered, in float64.

    Args:
        live: Logits ``(..., C)``.
        decoded: Logits ``(..., C)``.
        temperature: Of both.

    Returns:
        ``(...)`` in nats.

    >>> import torch
    >>> bool(divergence(torch.zeros(2, 3), torch.zeros(2, 3), 1.0).abs().max() < 1e-12)
    True
    """
    ours, theirs = (
        (each.double() / temperature).clamp_min(-1e30).log_softmax(dim=-1) for each in (live, decoded)
    )
    return (ours.exp() * (ours - theirs)).sum(dim=-1)


class Fidelity:
    """Mean divergence and agreement over the rows that it was shown.

    Args:
        temperatures: At which the divergence is measured.

    >>> import torch
    >>> fidelity = Fidelity([1.0])
    >>> fidelity.add(torch.tensor([[2.0, 0.0]]), torch.tensor([[2.0, 0.0]]))
    >>> fidelity.figures()
    {'kl': {'1': 0.0}, 'agreement': 1.0, 'measured': 1}
    """

    def __init__(self, temperatures: Iterable[float]) -> None:
        self.temperatures = tuple(sorted(set(temperatures)))
        self.rows = 0
        self.agreed = 0
        self._totals = [0.0] * len(self.temperatures)

    @property
    def enough(self) -> bool:
        """Whether more rows would say nothing new."""
        return self.rows >= ENOUGH

    def add(self, live: Tensor, decoded: Tensor) -> None:
        """Count logits ``(..., C)`` and what became of them."""
        self.rows += live.shape[:-1].numel()
        self.agreed += int((live.argmax(dim=-1) == decoded.argmax(dim=-1)).sum())
        for place, temperature in enumerate(self.temperatures):
            self._totals[place] += float(divergence(live, decoded, temperature).sum())

    def kl(self, temperature: float) -> float:
        """Mean divergence at one of the temperatures, in nats."""
        return max(self._totals[self.temperatures.index(temperature)], 0.0) / max(self.rows, 1)

    def figures(self) -> dict[str, Any]:
        """Plain values for a header."""
        kl = {f"{temperature:g}": self.kl(temperature) for temperature in self.temperatures}
        return {"kl": kl, "agreement": self.agreed / max(self.rows, 1), "measured": self.rows}


def candidates(classes: int, top: int | None) -> list[Code]:
    """Codes of an output from small to large; the last is exact."""
    full: list[Code] = [Affine(), Float(16), Float(32)]
    return full if top is None else [Top(min(top, classes)), *full]


def choose(live: Tensor, codes: Sequence[Code], bound: float, temperatures: Sequence[float]) -> Code:
    """The first code whose mean divergence keeps well below a bound.

    Args:
        live: Logits ``(N, ..., C)`` of real samples.
        codes: What to try, the smallest first; the last is taken if none is close enough.
        bound: On the mean divergence at each of ``temperatures``.
        temperatures: Those of the losses.

    >>> import torch
    >>> choose(torch.tensor([[9.0, 0.0, 1.0]]), candidates(3, None), 1e-4, [1.0]).name
    'affine8'
    """
    for code in codes[:-1]:
        decoded = code.decode(code.encode(live), live.shape[-1])
        worst = max(float(divergence(live, decoded, each).mean()) for each in temperatures)
        if worst * MARGIN <= bound:
            return code
    return codes[-1]
