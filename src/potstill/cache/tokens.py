"""A row of next-token distributions as one record, and how close what is stored comes to them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from potstill.cache._bytes import place_bytes
from potstill.cache.drawn import Drawn
from potstill.cache.likeliest import Likeliest
from potstill.errors import UserError
from potstill.losses.heads import Draws, Projected, TopK

__all__ = ["TokenFidelity", "Tokens", "WordCode", "describe", "word_code", "word_code_from"]

WordCode = Likeliest | Drawn
AT_ONCE = 64
"""Tokens whose logits are in memory together."""
MEASURED, OF_A_BATCH = 1024, 128
"""Tokens of which the fidelity is measured, in all and of one batch."""


def word_code(words: Literal["drawn", "likeliest"], width: int, size: int, temperature: float) -> WordCode:
    """The code that keeps most within ``width`` bytes a token over ``size`` words.

    Raises:
        UserError: If not even one word has room.

    >>> word_code("likeliest", 128, 49152, 1.0).name, word_code("drawn", 128, 151936, 2.0).name
    ('likeliest41', 'drawn42 at 2')
    """
    place = place_bytes(size)
    count = (width - 2) // place if words == "drawn" else (width - 5) // (place + 1)
    if count < 1:
        raise UserError("teacher.cache.bytes", f"leave no room for a word of {size:,}, got {width}")
    make: type[WordCode] = Drawn if words == "drawn" else Likeliest
    return make(min(count, size), temperature)


def word_code_from(name: str) -> WordCode | None:
    """The code of words that a header names; ``None`` where it names one of numbers.

    >>> word_code_from("drawn63 at 2"), word_code_from("affine8")
    (Drawn(count=63, temperature=2.0), None)
    """
    head, _, temperature = name.partition(" at ")
    for start, make in (("drawn", Drawn), ("likeliest", Likeliest)):
        if head.startswith(start) and head.removeprefix(start).isdigit():
            return make(int(head.removeprefix(start)), float(temperature or 1))
    return None


@dataclass(frozen=True)
class Tokens:
    """The output of a language model for one row, as a cache's record holds it.

    Attributes:
        length: Tokens in a row.
        words: Size of the vocabulary.
        code: How a token's distribution is written.
    """

    length: int
    words: int
    code: WordCode

    path = ""
    dtype = torch.float32

    @property
    def shape(self) -> tuple[int, int]:
        """Of what it stands for."""
        return self.length, self.words

    @property
    def width(self) -> int:
        """Bytes of a row."""
        return self.length * self.code.width(self.words)

    def encode(self, answer: Projected, index: NDArray[np.int64]) -> Tensor:
        """Hidden states ``(N, L, H)`` and head as bytes ``(N, width)``, a few tokens at a time.

        Args:
            answer: What the teacher answered.
            index: Numbers of the rows ``(N,)``: what is drawn follows from them.

        Raises:
            UserError: If it is not finite.
        """
        hidden, head = answer
        offsets = torch.from_numpy(
            np.stack([np.random.default_rng(row).random(self.length) for row in index])
        )
        flat, offsets = hidden.flatten(end_dim=-2), offsets.flatten().to(hidden.device)
        parts = []
        for begin in range(0, len(flat), AT_ONCE):
            logits = head.logits(flat[begin : begin + AT_ONCE])[:, : self.words]
            if not bool(logits.isfinite().all()):
                raise UserError("teacher", "answers with NaN or infinity, which no cache keeps")
            code = self.code
            if isinstance(code, Drawn):
                parts.append(code.encode(logits, offsets[begin : begin + AT_ONCE]))
            else:
                parts.append(code.encode(logits))
        return torch.cat(parts).reshape(len(hidden), self.width)

    def decode(self, content: Tensor) -> TopK | Draws:
        """Bytes ``(N, width)`` as known words ``(N, L, ...)``."""
        codes = content.reshape(len(content), self.length, self.code.width(self.words))
        return self.code.known(codes, self.words)


class TokenFidelity:
    """How close stored words come to the distributions, over the tokens that it was shown.

    Args:
        field: What is stored.
    """

    def __init__(self, field: Tokens) -> None:
        self.field = field
        self.rows = 0
        self._sums = dict.fromkeys(("off", "kept", "kl", "wrong", "pull"), 0.0)
        self._most = 0.0

    @property
    def enough(self) -> bool:
        """Whether more tokens would say nothing new."""
        return self.rows >= MEASURED

    def add(self, answer: Projected, records: Tensor) -> None:
        """Compare some tokens of an answer, evenly spaced, with their records ``(N, width)``."""
        flat = answer.hidden.flatten(end_dim=-2)
        chosen = torch.arange(0, len(flat), -(-len(flat) // OF_A_BATCH))
        width = self.field.code.width(self.field.words)
        codes = records.reshape(-1, width)[chosen]
        for begin in range(0, len(chosen), AT_ONCE):
            some, its = chosen[begin : begin + AT_ONCE], codes[begin : begin + AT_ONCE]
            logits = answer.head.logits(flat[some.to(flat.device)])[:, : self.field.words]
            self._compare(logits.cpu() / self.field.code.temperature, its)
        self.rows += len(chosen)

    def _compare(self, logits: Tensor, codes: Tensor) -> None:
        known = self.field.code.known(codes, self.field.words)
        exact = logits.double().log_softmax(dim=-1)
        chances = exact.exp()
        if isinstance(known, Draws):
            share = torch.full(known.ids.shape, 1 / known.ids.shape[1], dtype=torch.float64)
            stored = torch.zeros_like(chances).scatter_add(1, known.ids, share)
            kept = stored > 0
            off = (stored.log() - exact).abs()[kept]
            self._sums["kl"] += float((stored * (stored.log() - exact))[kept].sum())
        else:
            rest = known.log_tail.double().clamp_min(-1e4) - math.log(
                max(self.field.words - known.ids.shape[1], 1)
            )
            logs = rest.unsqueeze(1).expand_as(exact).scatter(1, known.ids, known.log_probabilities.double())
            stored = logs.exp()
            off = (known.log_probabilities - exact.gather(1, known.ids)).abs()
            self._sums["kl"] += float((chances * (exact - logs)).sum())
        self._sums["off"] += float(off.sum())
        self._sums["kept"] += off.numel()
        self._most = max(self._most, float(off.max()))
        self._sums["wrong"] += float((stored - chances).square().sum())
        self._sums["pull"] += float((1 / self.field.words - chances).square().sum())

    def figures(self) -> dict[str, Any]:
        """Plain values for a header.

        ``log_p`` and ``log_p_most`` are errors of the logarithms of what is kept; ``kl`` is that of what is
        stored from the dense distribution (of the draws from it, where words were drawn, as nothing else is
        finite); ``gradient`` the error of the gradient of forward KL by the logits, over that gradient, for a
        student that knows nothing.
        """
        rows, kept = max(self.rows, 1), max(self._sums["kept"], 1)
        return {
            "log_p": self._sums["off"] / kept,
            "log_p_most": self._most,
            "kl": max(self._sums["kl"], 0.0) / rows,
            "gradient": math.sqrt(self._sums["wrong"] / max(self._sums["pull"], 1e-300)),
            "unbiased": isinstance(self.field.code, Drawn),
            "measured": self.rows,
        }


def describe(figures: dict[str, Any]) -> str:
    """Figures of tokens in words."""
    right = "right in the mean" if figures["unbiased"] else "biased: what is not kept is spread evenly"
    return (
        f"log p of kept words off by {figures['log_p']:.4f} on the mean and {figures['log_p_most']:.3f} at "
        f"most, KL {figures['kl']:.2e}, gradient off by {figures['gradient']:.1%} a token ({right}), on "
        f"{figures['measured']} tokens"
    )
