"""Token dropout and span masking: views of texts that depend on nothing but (seed, view, index).

A token's random numbers belong to its sample and its place, so padding, batch size and order do not matter.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from potstill.augment.draws import Draws, Share, uniform
from potstill.losses import Range

__all__ = ["Covering", "SpanMasking", "TextAugment", "TokenDropout"]

PLACES = 1 << 20
"""Tokens that a text may have: places of different samples must not share a number."""
BISECTIONS = 60


def by_place(draws: Draws, number: int, count: int) -> Tensor:
    """One uniform number for each of the first ``count`` places of each sample, ``(N, count)`` float64."""
    places = draws.index[:, None] * PLACES + torch.arange(count, device=draws.index.device)
    return uniform(places, seed=draws.seed, view=draws.view, draw=draws.first + number)


class Covering(ABC):
    """A choice of tokens that are covered; its fields are a recipe's keys."""

    probability: float
    shorthand: ClassVar[str] = "rate"

    @abstractmethod
    def covered(self, length: int, draws: Draws) -> Tensor:
        """Which of ``length`` places are covered, ``(N, length)`` boolean; draw 0 is taken."""


@dataclass(frozen=True, kw_only=True)
class TokenDropout(Covering):
    """Each token is covered with a probability, whatever happens to its neighbours.

    Reference:
        Iyyer and others, "Deep Unordered Composition Rivals Syntactic Methods for Text Classification",
        2015, https://aclanthology.org/P15-1162
    """

    rate: Share
    """Probability of each token."""
    probability: Share = 1.0
    """Of a text to be changed at all."""

    def covered(self, length: int, draws: Draws) -> Tensor:
        """Which of ``length`` places are covered, ``(N, length)`` boolean."""
        return by_place(draws, 1, length) < self.rate


@dataclass(frozen=True, kw_only=True)
class SpanMasking(Covering):
    """Runs of neighbouring tokens are covered; how long a run is follows a geometric distribution.

    A span begins at any place with one chance, also before the text, so that each token is covered with the
    same probability ``rate``. Spans may touch and overlap.

    Reference:
        Joshi and others, "SpanBERT: Improving Pre-training by Representing and Predicting Spans", 2019,
        https://arxiv.org/abs/1907.10529
    """

    rate: Annotated[float, Range(least=0, most=0.9)] = 0.15
    """Share of all tokens that is covered, on average."""
    stop: Annotated[float, Range(above=0, most=1)] = 0.2
    """Probability that a span ends after each of its tokens; 1 is token dropout."""
    longest: Annotated[int, Range(least=1, most=100)] = 10
    """Longer spans are cut to this many tokens."""
    probability: Share = 1.0
    """Of a text to be changed at all."""

    def chance(self) -> float:
        """Probability that a span begins at a place.

        Formula: the ``q`` of ``1 - prod_k (1 - q (1 - stop)^k) = rate``, ``k`` from 0 to ``longest - 1``: a
        token is left where no span that began ``k`` places before it is longer than ``k``.
        """
        low, high = 0.0, 1.0
        for _ in range(BISECTIONS):
            middle, left = 0.5 * (low + high), 1.0
            for places in range(self.longest):
                left *= 1.0 - middle * (1.0 - self.stop) ** places
            low, high = (middle, high) if 1.0 - left < self.rate else (low, middle)
        return high if self.rate else 0.0

    def covered(self, length: int, draws: Draws) -> Tensor:
        """Which of ``length`` places are covered, ``(N, length)`` boolean."""
        before = self.longest - 1
        begins = by_place(draws, 1, before + length) < self.chance()
        spans = self._lengths(by_place(draws, 2, before + length))
        places = torch.arange(before + length, device=begins.device)
        ends = torch.where(begins, places + spans, 0)  # the first place after a span
        return (ends.cummax(dim=1).values > places)[:, before:]

    def _lengths(self, numbers: Tensor) -> Tensor:
        """Geometric lengths from uniform numbers, 1 to ``longest``."""
        if self.stop == 1:
            return torch.ones_like(numbers, dtype=torch.int64)
        whole = (numbers.neg().log1p() / torch.tensor(1.0 - self.stop, dtype=torch.float64).log()).floor()
        return 1 + whole.clamp(0, self.longest - 1).long()


class TextAugment:
    """The augmentation of texts of one run; call it with a batch.

    Args:
        coverings: What to do, in order, by name, each with the number of its first draw:
            :meth:`AugmentConfig.coverings` of a recipe's ``augment``.
        seed: Seed of the run.

    Example:
        >>> hide = TextAugment([("token_dropout", 0, TokenDropout(rate=1.0))], seed=0)
        >>> ids = torch.tensor([[101, 7, 8, 102, 0]])
        >>> may = torch.tensor([[False, True, True, False, False]])
        >>> hide(ids, may, torch.tensor([5]), view=0, replacement=103).tolist()
        [[101, 103, 103, 102, 0]]
    """

    def __init__(self, coverings: Sequence[tuple[str, int, Covering]], seed: int) -> None:
        self.coverings = coverings
        self.seed = seed

    def __call__(self, ids: Tensor, may: Tensor, index: Tensor, view: int, *, replacement: int) -> Tensor:
        """A view of each text.

        Args:
            ids: Token numbers ``(N, L)`` int64.
            may: Where a token may be covered, ``(N, L)`` boolean: not padding, not special tokens.
            index: Positions in the data set, ``(N,)`` int64; fastest on the CPU.
            view: Number of the view.
            replacement: What covers a token: the tokenizer's mask, or its unknown token.

        Returns:
            Token numbers of the same shape; the lengths of texts stay.

        Raises:
            ValueError: If the shapes differ or a text is too long.
        """
        if ids.shape != may.shape or ids.shape[0] != index.shape[0] or ids.shape[1] > PLACES // 2:
            got = f"{tuple(ids.shape)}, {tuple(may.shape)} and {tuple(index.shape)}"
            raise ValueError(f"expected ids and may (N, L), index (N,), got {got}")
        for _, first, covering in self.coverings:
            draws = Draws(index, self.seed, view, first)
            covered = covering.covered(ids.shape[1], draws) & (draws(0) < covering.probability)[:, None]
            ids = ids.masked_fill(covered.to(ids.device) & may, replacement)
        return ids
