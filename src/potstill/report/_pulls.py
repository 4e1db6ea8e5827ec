"""Which terms do nothing and which drown the rest, by the norms of their gradients at the student."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from potstill.report._format import percent

__all__ = ["pulls"]

IDLE = 0.01
"""A term whose gradient is shorter than this share of the labels' does nothing."""
DROWNING = 10.0
"""A term whose gradient is longer than this many times all others together drowns them."""
KIND = "weighted_gradient_norms"

Norms = Mapping[str, float]


def pulls(rows: Sequence[Mapping[str, object]], names: Sequence[str]) -> list[str]:
    """A sentence for each term that hardly moved the student, or that alone did.

    Args:
        rows: The student's rows of ``metrics.jsonl``.
        names: The terms, ``labels`` included.

    >>> pulls([{"weighted_gradient_norms": {"labels": 1.0, "kl": 20.0}}], ["labels", "kl"])
    ['kl drowned the rest: its gradient was 20 times as long as those of all other parts together.']
    """
    measured = [
        {name: norm for name, norm in found.items() if math.isfinite(norm)}
        for row in rows
        if isinstance(found := row.get(KIND), Mapping)
    ]
    terms = [name for name in names if name != "labels"]
    return [sentence for name in terms if (sentence := _sentence(name, measured, names))]


def _sentence(name: str, measured: Sequence[Norms], names: Sequence[str]) -> str:
    others = [other for other in names if other != name]
    mine = [norms for norms in measured if name in norms and any(other in norms for other in others)]
    if not mine:
        return ""
    own, rest = sum(norms[name] for norms in mine), sum(_rest(mine, others))
    if own > DROWNING * rest:
        times = f"{own / rest:.0f} times as long as" if rest > 0 else "all there was beside"
        return f"{name} drowned the rest: its gradient was {times} those of all other parts together."
    labels = sum(norms["labels"] for norms in mine if "labels" in norms)
    if own < IDLE * labels:
        return f"{name} did next to nothing: its gradient was {percent(own / labels)} as long as the labels'."
    return ""


def _rest(measured: Sequence[Norms], others: Sequence[str]) -> Iterator[float]:
    return (norms[other] for norms in measured for other in others if other in norms)
