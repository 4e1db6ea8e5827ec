"""Answers to every token of a part, ``(..., R, L, 4)``, and what is read off them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from potstill.data.tokens import TokenSet
from potstill.metrics.perplexity import document_sums, means_by
from potstill.report.content import TokenBin
from potstill.tasks.contract import Answers

__all__ = ["CHOICE", "KL", "LOSS", "OVERLAP", "by_document", "divergences", "joined", "mean_loss"]

LOSS, KL, OVERLAP, CHOICE = range(4)
"""What is kept of an answer to each token: loss, divergence from and overlap with the teacher, best token."""
POSITIONS = (0, 1, 4, 16, 64, 256, 1024, 4096)
FREQUENCIES = (0, 1, 10, 100, 1000, 10000)


def mean_loss(losses: NDArray[Any], part: TokenSet) -> float:
    """Mean over the predictions that count, of losses ``(R, L)`` in nats."""
    return float(losses[part.packed.counted].astype(np.float64).mean())


def by_document(answers: Answers, part: TokenSet) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Losses ``(..., D)`` and counts ``(D,)`` of the documents."""
    flat = answers[..., LOSS].reshape(-1, *part.packed.counted.shape)
    found = [document_sums(each, part.packed.counted, part.packed.documents) for each in flat]
    sums = np.stack([each[0] for each in found])
    return sums.reshape(*answers.shape[:-3], -1), found[0][1]


def joined(answers: Sequence[Answers]) -> Answers:
    """Answers of the mean of the networks' probabilities; its best token is the first network's."""
    all_of = np.stack(answers)
    found: Answers = all_of.mean(axis=0)
    found[..., LOSS] = -np.log(np.exp(-all_of[..., LOSS]).mean(axis=0))
    found[..., CHOICE] = all_of[0][..., CHOICE]
    return found


def divergences(
    answers: Mapping[str, Answers], part: TokenSet, frequencies: NDArray[Any], vocabulary: int
) -> dict[str, dict[str, tuple[TokenBin, ...]]]:
    """How far from the teacher, and how often the same, by ``position`` and ``frequency`` of the token.

    Args:
        answers: ``(S, R, L, 4)`` for ``S`` seeds, by arm; ``teacher`` is among them.
        part: What was answered.
        frequencies: How often each token occurs in the training part, ``(V,)``.
        vocabulary: Number of tokens that an output tells apart.
    """
    where = part.packed.counted
    seen = np.append(frequencies, np.zeros(max(vocabulary - len(frequencies), 0), np.int64))
    keys: dict[str, tuple[NDArray[Any], Sequence[int]]] = {
        "position": (part.packed.positions[where], POSITIONS),
        "frequency": (seen[part.targets[where]], FREQUENCIES),
    }
    same = answers["teacher"][0, ..., CHOICE]
    return {
        name: {
            arm: _bins(values, same, where, places, edges)
            for arm, values in answers.items()
            if arm != "teacher"
        }
        for name, (places, edges) in keys.items()
    }


def _bins(
    values: Answers, same: Answers, where: NDArray[Any], places: NDArray[Any], edges: Sequence[int]
) -> tuple[TokenBin, ...]:
    """Divergence and agreement of answers ``(S, R, L, 4)`` by a key of their tokens."""
    far = means_by(values[..., KL].mean(axis=0)[where], places, edges)
    alike = means_by((values[..., CHOICE] == same).mean(axis=0)[where], places, edges)
    return tuple(TokenBin(**row, agreement=other["mean"]) for row, other in zip(far, alike, strict=True))
