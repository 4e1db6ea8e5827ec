"""The likeliest words of a next-token distribution in few bytes: places, gaps in eight bits, the exact tail.

Logarithms of probabilities of the likeliest words lie close together, and the more so the further down the
list. So what is kept are the gaps between neighbours, in steps that grow with the gap, and each gap is taken
from what was decoded of the word before: errors do not add up. Eight bits between the ends of the row, as
for other outputs, would be off by a twentieth of a nat where the first word is nearly certain.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from potstill.cache._bytes import as_bytes, as_values, place_bytes, places_as_bytes, places_from_bytes
from potstill.losses.heads import TopK

__all__ = ["Likeliest"]

WIDEST = 30.0
"""Largest gap, in nats; what lies further below does not count."""
FINEST = 0.01
"""Gaps above it are kept to a fixed share of their size, those below to a fixed size."""
STEP = math.log1p(WIDEST / FINEST) / 255


def _gaps() -> Tensor:
    """The 256 gaps that there are, ``(256,)`` float64 from 0 to ``WIDEST``."""
    return FINEST * torch.expm1(STEP * torch.arange(256, dtype=torch.float64))


@dataclass(frozen=True)
class Likeliest:
    """The likeliest words of each token, in order, and the mass of all others as a float32.

    Args:
        count: How many words are kept.
        temperature: Of the distribution that is kept; it serves no loss at another.

    >>> Likeliest(41).width(49152)
    128
    >>> code, logits = Likeliest(2), torch.tensor([[4.0, 1.0, 0.5, 0.0]])
    >>> [round(each, 2) for each in code.decode(code.encode(logits), 4).softmax(-1)[0].tolist()]
    [0.91, 0.04, 0.02, 0.02]
    """

    count: int
    temperature: float = 1.0

    @property
    def name(self) -> str:
        """Such as ``likeliest41`` or ``likeliest41 at 2``."""
        return f"likeliest{self.count}" + ("" if self.temperature == 1 else f" at {self.temperature:g}")

    def width(self, size: int) -> int:
        """Bytes of a token over ``size`` words: places, tail (4), first logarithm (2), gaps."""
        return self.count * place_bytes(size) + 4 + 2 + self.count - 1

    def encode(self, rows: Tensor) -> Tensor:
        """Logits ``(..., size)`` as bytes ``(..., width(size))``."""
        logs = (rows.double() / self.temperature).log_softmax(dim=-1)
        largest, places = logs.topk(self.count, dim=-1)
        tail = logs.exp().scatter(-1, places, 0.0).sum(dim=-1, keepdim=True).log().float()
        first = largest[..., :1].half()
        before, levels = first[..., 0].double(), []
        for value in largest[..., 1:].unbind(-1):
            gap = (before - value).clamp(0, WIDEST)
            level = (torch.log1p(gap / FINEST) / STEP).round().clamp(0, 255).long()
            before = before - _gaps().to(rows.device)[level]
            levels.append(level.to(torch.uint8))
        kept = torch.stack(levels, dim=-1) if levels else first.new_zeros((*first.shape[:-1], 0)).byte()
        return torch.cat(
            [places_as_bytes(places, rows.shape[-1]), as_bytes(tail), as_bytes(first), kept], dim=-1
        )

    def known(self, codes: Tensor, size: int) -> TopK:
        """Bytes as what a loss takes: words and their logarithms in order, and the tail's."""
        end = self.count * place_bytes(size)
        tail = as_values(codes[..., end : end + 4], torch.float32)[..., 0]
        first = as_values(codes[..., end + 4 : end + 6], torch.float16).double()
        below = _gaps().to(codes.device)[codes[..., end + 6 :].long()].cumsum(dim=-1)
        logs = torch.cat([first, first - below], dim=-1).float()
        return TopK(places_from_bytes(codes[..., :end], size), logs, tail)

    def decode(self, codes: Tensor, size: int) -> Tensor:
        """Bytes as logits ``(..., size)`` float32 at a temperature of 1, the tail spread evenly."""
        known = self.known(codes, size)
        even = known.log_tail.clamp(min=-1e4).unsqueeze(-1) - math.log(max(size - self.count, 1))
        logs = even.expand(*codes.shape[:-1], size).scatter(-1, known.ids, known.log_probabilities)
        return logs * self.temperature
