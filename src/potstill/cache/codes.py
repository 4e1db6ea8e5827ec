"""How a row of numbers becomes few bytes: half floats, 8 bits between its ends, or its largest entries.

Pure tensor functions over the last dimension; all dimensions before it are kept. What is decoded is the same
to the bit wherever and in whatever batch it is decoded: every step rounds once and each element on its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from potstill.cache._bytes import as_bytes, as_values, place_bytes, places_as_bytes, places_from_bytes

__all__ = ["Affine", "Code", "Float", "Top", "code_from"]

HALF_MAX = 65504.0
ABOVE_ROUNDING = 1 + 2.0**-10
"""Twice the largest relative error of rounding to float16."""
SMALLEST = 2.0**-24
"""Least positive float16."""
LEAST_LOG = -30.0
"""Logarithm of a probability that counts as none: what lies below would only make the steps coarser."""


class Code(Protocol):
    """A way to write rows of numbers as bytes."""

    @property
    def name(self) -> str:
        """What headers and plans call it."""

    def width(self, size: int) -> int:
        """Bytes of a row of ``size`` numbers."""

    def encode(self, rows: Tensor) -> Tensor:
        """Rows ``(..., size)`` of finite numbers as bytes ``(..., width(size))`` uint8."""

    def decode(self, codes: Tensor, size: int) -> Tensor:
        """Bytes ``(..., width(size))`` as rows ``(..., size)`` float32."""


@dataclass(frozen=True)
class Float:
    """Floats of 16 or 32 bits.

    >>> Float(16).decode(Float(16).encode(torch.tensor([[1.0, 1e-3, 70000.0]])), 3)[0, 2].item()
    65504.0
    """

    bits: int

    @property
    def name(self) -> str:
        """``float16`` or ``float32``."""
        return f"float{self.bits}"

    def width(self, size: int) -> int:
        """Bytes of a row of ``size`` numbers."""
        return size * self.bits // 8

    def encode(self, rows: Tensor) -> Tensor:
        """Rows ``(..., size)`` as bytes; beyond the range of float16 its ends are taken."""
        if self.bits == 32:
            return as_bytes(rows.float())
        return as_bytes(rows.float().clamp(-HALF_MAX, HALF_MAX).half())

    def decode(self, codes: Tensor, size: int) -> Tensor:
        """Bytes as rows ``(..., size)`` float32."""
        del size
        return as_values(codes, torch.float16 if self.bits == 16 else torch.float32).float()


@dataclass(frozen=True)
class Affine:
    """Eight bits between the ends of each row, with a float16 offset and step in front.

    The offset is rounded down and the step up, so that no entry lies outside: each is off by at most half a
    step, ``(max - min) / 510`` and a little.

    >>> Affine().width(10)
    14
    >>> again = Affine().decode(Affine().encode(torch.tensor([[1.0, 3.0, 26.0]])), 3)
    >>> [round(each, 1) for each in again[0].tolist()]
    [1.0, 3.0, 26.0]
    """

    @property
    def name(self) -> str:
        """``affine8``."""
        return "affine8"

    def width(self, size: int) -> int:
        """Bytes of a row of ``size`` numbers."""
        return size + 4

    def encode(self, rows: Tensor) -> Tensor:
        """Rows ``(..., size)`` as bytes; numbers beyond the range of float16 are taken as its ends."""
        rows = rows.float().clamp(-HALF_MAX, HALF_MAX)
        low = rows.amin(dim=-1, keepdim=True)
        offset = (low - low.abs() * (ABOVE_ROUNDING - 1) - SMALLEST).clamp_min(-HALF_MAX).half()
        span = rows.amax(dim=-1, keepdim=True) - offset.float()
        step = (span / 255 * ABOVE_ROUNDING + SMALLEST).half()
        levels = ((rows - offset.float()) / step.float()).round().clamp(0, 255).to(torch.uint8)
        return torch.cat([as_bytes(offset), as_bytes(step), levels], dim=-1)

    def decode(self, codes: Tensor, size: int) -> Tensor:
        """Bytes as rows ``(..., size)`` float32."""
        del size
        ends = as_values(codes[..., :4], torch.float16).float()
        return codes[..., 4:].float().mul_(ends[..., 1:]).add_(ends[..., :1])


@dataclass(frozen=True)
class Top:
    """The largest entries of a row of logits, and one bucket for the probability of all others.

    What is decoded are logits whose softmax at ``temperature`` gives the largest entries their
    probability and spreads the rest's evenly. At other temperatures, and for losses that look at logits
    themselves, it is coarser than it seems.

    Args:
        count: How many entries are kept.
        temperature: At which the rest keeps its probability.

    >>> again = Top(2).decode(Top(2).encode(torch.tensor([[4.0, 1.0, 0.5, 0.0]])), 4)
    >>> [f"{probability:.2f}" for probability in again.softmax(-1)[0].tolist()]
    ['0.91', '0.05', '0.02', '0.02']
    """

    count: int
    temperature: float = 1.0

    @property
    def name(self) -> str:
        """Such as ``top39`` or ``top39 at 4``."""
        return f"top{self.count}" + ("" if self.temperature == 1 else f" at {self.temperature:g}")

    def width(self, size: int) -> int:
        """Bytes of a row of ``size`` numbers: places, the tail, and the entries in eight bits."""
        return self.count * place_bytes(size) + 2 + Affine().width(self.count)

    def encode(self, rows: Tensor) -> Tensor:
        """Rows ``(..., size)`` of logits as bytes."""
        size = rows.shape[-1]
        logs = (rows.double() / self.temperature).log_softmax(dim=-1)
        largest = logs.topk(self.count, dim=-1)
        others = logs.scatter(-1, largest.indices, float("-inf"))
        tail = others.logsumexp(dim=-1, keepdim=True).clamp_min(LEAST_LOG).half()
        places = places_as_bytes(largest.indices, size)
        kept = Affine().encode(largest.values.clamp_min(LEAST_LOG))
        return torch.cat([places, as_bytes(tail), kept], dim=-1)

    def decode(self, codes: Tensor, size: int) -> Tensor:
        """Bytes as rows ``(..., size)`` float32: logits at a temperature of 1."""
        end = self.count * place_bytes(size)
        places = places_from_bytes(codes[..., :end], size)
        tail = as_values(codes[..., end : end + 2], torch.float16).float()
        logs = (tail - math.log(max(size - self.count, 1))).expand(*codes.shape[:-1], size)
        kept = Affine().decode(codes[..., end + 2 :], self.count)
        return logs.scatter(-1, places, kept) * self.temperature


def code_from(name: str) -> Code:
    """The code that a header names.

    Raises:
        ValueError: If there is none of that name.

    >>> code_from("top39 at 4")
    Top(count=39, temperature=4.0)
    """
    known: dict[str, Any] = {"float16": Float(16), "float32": Float(32), "affine8": Affine()}
    if name in known:
        made: Code = known[name]
        return made
    head, _, temperature = name.partition(" at ")
    if head.startswith("top") and head[3:].isdigit():
        return Top(int(head[3:]), float(temperature or 1))
    raise ValueError(f"expected a code, one of {', '.join(known)}, topN, got {name!r}")
