"""Projection, divergence and gradients of a few tokens at a time: the inside of ``linear_divergence``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from potstill.losses._slopes import SLOPES, Found, bucketed, drawn
from potstill.losses.heads import Draws, Head, Projected, TopK

__all__ = ["Fused", "Plan"]

LOGITS_AT_ONCE = 2**23
TOKENS_AT_ONCE = 96
SAME = 1e-6
"""A chunk has so many logits (blocks above 32 MB go back to the system when freed), but no fewer tokens than
multiply well. ``SAME``: how far the weights of a backward pass may be from the planned, of the larger."""


@dataclass(frozen=True)
class Plan:
    """What is computed.

    Attributes:
        divergence: A name in ``SLOPES``, with its ``share``.
        factor: Of the divergence's values.
        weight: Of the divergence in the loss; ``target_weight`` that of the cross-entropy.
        temperature: Of the divergence.
        words: How many words both networks know.
    """

    divergence: str
    share: float
    factor: float
    weight: float
    target_weight: float
    temperature: float
    words: int

    def chunks(self, count: int) -> Iterator[slice]:
        """Slices of ``count`` tokens."""
        rows = max(TOKENS_AT_ONCE, -(-LOGITS_AT_ONCE // self.words))
        yield from (slice(start, start + rows) for start in range(0, count, rows))

    def log_softmax(self, logits: Tensor) -> Tensor:
        """Logarithms of the softmax at the temperature; a new tensor."""
        scaled = logits if self.temperature == 1 else logits / self.temperature
        return torch.log_softmax(scaled, dim=-1)


@dataclass(frozen=True)
class Answers:
    """A teacher's answers for the tokens that count: rows ``index`` of its flattened tensors."""

    teacher: Projected | Tensor | TopK | Draws | None
    index: Tensor
    plan: Plan
    dtype: torch.dtype

    def against(self, log_student: Tensor, part: slice) -> Found:
        """Values, derivatives and the student's probabilities of a chunk."""
        slope, share = SLOPES[self.plan.divergence], self.plan.share
        rows = self.index[part]
        if self.teacher is None:
            student = log_student.exp_()
            return student.new_zeros(len(student)), torch.zeros_like(student), student
        if isinstance(self.teacher, Draws):
            ids, information = self.teacher
            return drawn(log_student, ids.flatten(end_dim=-2)[rows].long(), information.flatten()[rows])
        if isinstance(self.teacher, TopK):
            ids, known, tail = self.teacher
            ids, known = ids.flatten(end_dim=-2)[rows].long(), known.flatten(end_dim=-2)[rows]
            known, tail = known.to(log_student.dtype), tail.flatten()[rows].to(log_student.dtype)
            return bucketed(slope, log_student, ids, known, tail, share)
        return slope(log_student, self.plan.log_softmax(self._logits(rows).to(log_student.dtype)), share)

    def _logits(self, rows: Tensor) -> Tensor:
        if isinstance(self.teacher, Projected):
            head = self.teacher.head.cut(self.plan.words, self.dtype)
            return head.logits(self.teacher.hidden.detach().flatten(end_dim=-2)[rows])
        assert isinstance(self.teacher, Tensor)
        dense = self.teacher.detach().flatten(end_dim=-2)[rows, : self.plan.words]
        return dense if dense.dtype == torch.float64 else dense.float()


def _entropy(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each row, and the probabilities that its derivative is made of."""
    logarithms = torch.log_softmax(logits, dim=-1)
    return -logarithms.gather(1, labels.unsqueeze(1)).squeeze(1), logarithms.exp_()


def chunk(
    rows: Tensor, head: Head, answers: Answers, part: slice, labels: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Values and cross-entropies of a chunk, and the derivative of its loss by ``rows @ weight.T + bias``."""
    plan, entropy, likely = answers.plan, None, None
    logits = head.logits(rows)
    if labels is not None and plan.temperature != 1:
        entropy, likely = _entropy(logits, labels)
    logarithms = plan.log_softmax(logits)
    bent = None if head.soft_cap is None else logits.div_(head.soft_cap).square_()  # tanh squared
    del logits
    if labels is not None and entropy is None:
        entropy = -logarithms.gather(1, labels.unsqueeze(1)).squeeze(1)
    values, slopes, student = answers.against(logarithms, part)
    scale = plan.weight * plan.factor / plan.temperature
    if scale != 1:
        slopes.mul_(scale)
    if labels is not None:
        slopes.add_(student if likely is None else likely, alpha=plan.target_weight)
        slopes[torch.arange(len(labels), device=labels.device), labels] -= plan.target_weight
    if bent is not None:
        slopes.addcmul_(slopes, bent, value=-1)
    return values.mul_(plan.factor), entropy, slopes


class Fused(torch.autograd.Function):
    """Sums 0-d of the divergences and cross-entropies of N tokens that count, and both by token ``(N,)``.

    Gradients are made in the forward pass for the weights of the plan. A backward pass that asks for other
    multiples of the two sums, one part's gradient alone, computes them anew.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        soft_cap: float | None,
        answers: Answers,
        labels: Tensor | None,
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        ctx.save_for_backward(hidden, weight, bias)
        ctx.given = soft_cap, answers, labels
        needs = ctx.needs_input_grad
        ctx.gradients, values, entropies = _passed(
            hidden, weight, bias, soft_cap, answers, labels, needs=needs
        )
        found = [None if each is None else each.sum() for each in (values, entropies)]
        ctx.mark_non_differentiable(*(each for each in (values, entropies) if each is not None))
        assert found[0] is not None, "there is a value for each token"
        return found[0], found[1], values, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor, outer_entropy: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        soft_cap, answers, labels = ctx.given
        asked = float(outer), 0.0 if outer_entropy is None else float(outer_entropy)
        plan = answers.plan
        factor = _multiple(asked, (plan.weight, 0.0 if labels is None else plan.target_weight))
        gradients = ctx.gradients
        if factor is None:
            hidden, weight, bias = ctx.saved_tensors
            again = replace(answers, plan=replace(plan, weight=asked[0], target_weight=asked[1]))
            gradients = _passed(hidden, weight, bias, soft_cap, again, labels, needs=ctx.needs_input_grad)[0]
        made = (None if each is None else each * (1.0 if factor is None else factor) for each in gradients)
        return (*made, None, None, None)


def _multiple(asked: tuple[float, float], made: tuple[float, float]) -> float | None:
    """What the weights of the forward pass times it are those asked for; ``None`` where there is none."""
    large = int(abs(made[0]) < abs(made[1]))
    if made[large] == 0:
        return None
    factor = asked[large] / made[large]
    off = abs(asked[1 - large] - factor * made[1 - large])
    return factor if off <= SAME * abs(asked[large]) or asked == (0.0, 0.0) else None


def _passed(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    soft_cap: float | None,
    answers: Answers,
    labels: Tensor | None,
    *,
    needs: tuple[bool, ...],
) -> tuple[tuple[Tensor | None, ...], Tensor, Tensor | None]:
    """Gradients of hidden states, weight and bias, values and cross-entropies, a chunk at a time."""
    with torch.autocast(hidden.device.type, enabled=False):
        head = Head(weight, bias, soft_cap).cut(answers.plan.words, answers.dtype)
        sums = _Gradients(hidden, weight, bias, needs, answers)
        values, entropies = [hidden.new_zeros(0)], [hidden.new_zeros(0)]
        for part in answers.plan.chunks(len(hidden)):
            found, entropy = sums.chunk(part, head, answers, None if labels is None else labels[part])
            values.append(found)
            entropies += [] if entropy is None else [entropy]
    return sums.made(), _joined(values), None if labels is None else _joined(entropies)


def _joined(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts[1:]) if len(parts) > 1 else parts[0]


class _Gradients:
    """Sums of the gradients of hidden states, weight and bias, of those that are wanted.

    The head's are summed in at least float32, whatever the type of the products.
    """

    def __init__(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        needs: tuple[bool, ...],
        answers: Answers,
    ) -> None:
        self.like = (hidden, weight, bias)
        wide = torch.promote_types(answers.dtype, torch.float32)
        self.hidden = torch.empty_like(hidden) if needs[0] else None
        self.weight = torch.zeros_like(weight, dtype=wide) if needs[1] else None
        self.bias = torch.zeros_like(bias, dtype=wide) if needs[2] and bias is not None else None

    def chunk(
        self, part: slice, head: Head, answers: Answers, labels: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Add a chunk's gradients; its values and cross-entropies."""
        rows = self.like[0].detach()[part].to(answers.dtype)
        values, entropy, slopes = chunk(rows, head, answers, part, labels)
        if self.bias is not None:
            self.bias[: len(head.weight)] += slopes.sum(dim=0)
        narrow = slopes.to(rows.dtype)
        if self.hidden is not None:
            self.hidden[part] = narrow @ head.weight
        if self.weight is not None:
            total = self.weight[: len(head.weight)]
            if total.dtype == rows.dtype:
                total.addmm_(narrow.t(), rows)
            else:
                total += narrow.t() @ rows
        return values, entropy

    def made(self) -> tuple[Tensor | None, ...]:
        """In the type of what they belong to."""
        return tuple(
            None if total is None or like is None else total.to(like.dtype)
            for total, like in zip((self.hidden, self.weight, self.bias), self.like, strict=True)
        )
