"""How well a language model predicts texts: perplexity over documents, and closeness to its teacher by token.

Documents are the sample, not tokens: those of one document depend on each other, and an interval that
counted each by itself would be far too narrow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from potstill.metrics.verdict import mean_interval

__all__ = ["Perplexity", "document_scores", "document_sums", "means_by", "perplexity", "token_closeness"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Perplexity:
    """Perplexity of a text.

    Attributes:
        value: ``exp`` of the mean negative log-likelihood of a token.
        interval: The 95 % interval over documents.
        tokens: Number of predicted tokens.
        documents: Number of documents.
    """

    value: float
    interval: tuple[float, float]
    tokens: int
    documents: int


def document_sums(values: ArrayLike, counted: ArrayLike, documents: ArrayLike) -> tuple[Floats, Floats]:
    """Sums of per-token values over each document, and how many tokens each sum has.

    Args:
        values: One value a token, ``(R, L)``.
        counted: Which of them count, ``(R, L)``.
        documents: The document of each, ``(R, L)``, from 0.

    Returns:
        Sums ``(D,)`` and counts ``(D,)`` of the documents that have a token that counts.

    >>> document_sums([[1.0, 2.0, 4.0]], [[True, True, False]], [[0, 2, 2]])
    (array([1., 2.]), array([1., 1.]))
    """
    where = np.asarray(counted, dtype=bool)
    owners = np.asarray(documents)[where]
    sums = np.bincount(owners, weights=np.asarray(values, dtype=np.float64)[where])
    counts: Floats = np.bincount(owners).astype(np.float64)
    there = np.flatnonzero(counts)
    return sums[there].astype(np.float64), counts[there]


def document_scores(losses: ArrayLike, counts: ArrayLike) -> Floats:
    """One score a document, whose plain mean is the mean log-likelihood of a *token*.

    Long documents weigh more in a perplexity, so the mean over documents of their own means is another
    figure. The ratio of two sums is made a mean by its linear part: the variance of these scores over their
    number is the usual (delta method) variance of the ratio, and two models' scores can be paired.

    Formula:
        score_d = -(r + (l_d - r n_d) / mean(n)), r = sum(l) / sum(n)

    Args:
        losses: Negative log-likelihood summed over each document, ``(D,)`` or ``(S, D)``.
        counts: Tokens of each document, ``(D,)``.

    Returns:
        Scores of the shape of ``losses``, in nats a token; higher is better.

    >>> document_scores([2.0, 6.0], [1.0, 3.0]).tolist()
    [-2.0, -2.0]
    """
    sums, sizes = np.asarray(losses, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    ratio = sums.sum(axis=-1, keepdims=True) / sizes.sum()
    scores: Floats = -(ratio + (sums - ratio * sizes) / sizes.mean())
    return scores


def perplexity(losses: ArrayLike, counts: ArrayLike) -> Perplexity:
    """Perplexity with its interval over documents (and seeds, for ``(S, D)``).

    Args:
        losses: As in :func:`document_scores`.
        counts: As in :func:`document_scores`; at least two documents.

    >>> found = perplexity([2.0, 6.0], [1.0, 3.0])
    >>> round(found.value, 3), found.tokens
    (7.389, 4)
    """
    scores = np.atleast_2d(document_scores(losses, counts))
    low, high = mean_interval(scores)
    sizes = np.asarray(counts)
    return Perplexity(
        float(np.exp(-scores.mean())),
        (float(np.exp(-high)), float(np.exp(-low))),
        int(sizes.sum()),
        len(sizes),
    )


def token_closeness(student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
    """How close two models are at each token.

    Args:
        student: Logits ``(..., V)``.
        teacher: Logits of the same shape.

    Returns:
        Tensors of the leading shape: ``kl`` (teacher to student, nats), ``overlap`` (1 less the total
        variation: the chance that speculative decoding accepts what the student drafts) and ``agreement``
        (both choose the same token: 1, else 0).

    Reference:
        Leviathan, Kalman, Matias, "Fast Inference from Transformers via Speculative Decoding", 2023,
        https://arxiv.org/abs/2211.17192

    >>> close = token_closeness(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 100.0]]))
    >>> [round(float(value), 3) for value in close.values()]
    [0.693, 0.5, 0.0]
    """
    ours, theirs = student.float().log_softmax(dim=-1), teacher.float().log_softmax(dim=-1)
    chances = theirs.exp()
    return {
        "kl": (chances * (theirs - ours)).sum(dim=-1),
        "overlap": torch.minimum(ours.exp(), chances).sum(dim=-1),
        "agreement": (ours.argmax(dim=-1) == theirs.argmax(dim=-1)).float(),
    }


def means_by(values: ArrayLike, keys: ArrayLike, edges: Sequence[int]) -> list[dict[str, Any]]:
    """Means of values whose keys lie between neighbouring edges.

    Args:
        values: ``(N,)``.
        keys: ``(N,)`` integers.
        edges: Ascending; bin ``i`` holds keys from ``edges[i]`` to below ``edges[i + 1]``.

    Returns:
        A row a bin that is not empty: ``start``, ``mean``, ``count``.

    >>> means_by([1.0, 3.0, 5.0], [0, 1, 9], [0, 2, 8])
    [{'start': 0, 'mean': 2.0, 'count': 2}, {'start': 8, 'mean': 5.0, 'count': 1}]
    """
    numbers, places = np.asarray(values, dtype=np.float64), np.digitize(np.asarray(keys), edges) - 1
    return [
        {"start": edge, "mean": float(numbers[places == place].mean()), "count": int((places == place).sum())}
        for place, edge in enumerate(edges)
        if (places == place).any()
    ]
