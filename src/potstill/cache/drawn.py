"""Words drawn from a next-token distribution in few bytes: unbiased, where the likeliest words are not.

A student that learns from the likeliest words alone never hears of the rest, and ends too sure. Words that
are drawn come as often as they are likely, so the mean gradient over draws is the true one. The draws are
systematic: one random offset and equal steps through the cumulated probabilities, so a word of probability
``p`` is drawn ``count * p`` times, rounded up or down, with the right mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from potstill.cache._bytes import as_bytes, as_values, place_bytes, places_as_bytes, places_from_bytes
from potstill.losses.heads import Draws

__all__ = ["Drawn"]


@dataclass(frozen=True)
class Drawn:
    """Words drawn from each token's distribution, and its ``sum p log p`` as a float16.

    Args:
        count: How many are drawn.
        temperature: Of the distribution.

    Reference:
        Anshumann and others, "Sparse Logit Sampling: Accelerating Knowledge Distillation in LLMs", 2025,
        https://arxiv.org/abs/2503.16870; systematic draws: Kitagawa, "Monte Carlo Filter and Smoother for
        Non-Gaussian Nonlinear State Space Models", 1996, https://doi.org/10.2307/1390750

    >>> Drawn(63).width(49152)
    128
    >>> code, logits = Drawn(4), torch.tensor([[0.5, 0.25, 0.25]]).log()
    >>> code.known(code.encode(logits, torch.tensor([0.5])), 3).ids.tolist()
    [[0, 0, 1, 2]]
    """

    count: int
    temperature: float = 1.0

    @property
    def name(self) -> str:
        """Such as ``drawn63`` or ``drawn63 at 2``."""
        return f"drawn{self.count}" + ("" if self.temperature == 1 else f" at {self.temperature:g}")

    def width(self, size: int) -> int:
        """Bytes of a token over ``size`` words."""
        return self.count * place_bytes(size) + 2

    def encode(self, rows: Tensor, offsets: Tensor) -> Tensor:
        """Logits ``(..., size)`` and offsets ``(...)`` in [0, 1) as bytes ``(..., width(size))``."""
        logs = (rows.float() / self.temperature).log_softmax(dim=-1)
        chances = logs.exp()
        information = (chances * logs.clamp_min(-1e4)).sum(dim=-1, keepdim=True)
        upto = chances.double().cumsum(dim=-1)
        places = torch.arange(self.count, dtype=torch.float64, device=rows.device)
        points = (places + offsets.to(upto).unsqueeze(-1)) / self.count * upto[..., -1:]
        ids = torch.searchsorted(upto, points, right=True).clamp_max(rows.shape[-1] - 1)
        return torch.cat([places_as_bytes(ids, rows.shape[-1]), as_bytes(information.half())], dim=-1)

    def known(self, codes: Tensor, size: int) -> Draws:
        """Bytes as what a loss takes."""
        end = self.count * place_bytes(size)
        return Draws(
            places_from_bytes(codes[..., :end], size),
            as_values(codes[..., end:], torch.float16)[..., 0].float(),
        )
