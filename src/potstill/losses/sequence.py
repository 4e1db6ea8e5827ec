"""Divergences of language models with the output projection inside: no tensor of all tokens' logits.

The logits of 1,024 tokens over 49,152 words are 200 MB, and a loss on them holds several such tensors.
:func:`linear_divergence` takes what stands before the projection ("head"), gathers the tokens that count, and
makes logits, values and gradients of a few of them at a time, all in the forward pass.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from potstill.losses._declare import Positive, Unit
from potstill.losses._fused import Answers, Fused, Plan
from potstill.losses.heads import Draws, Head, Projected, TopK

__all__ = ["LinearDivergence", "linear_divergence"]

Divergence = Literal["kl", "reverse_kl", "skew_kl", "skew_reverse_kl", "generalized_js", "total_variation"]
Teacher = Projected | Tensor | TopK | Draws


class LinearDivergence(NamedTuple):
    """What :func:`linear_divergence` found.

    Attributes:
        loss: Weighted sum over the tokens that count, 0-d, with a gradient. Divide it by their
            number in the whole step: over all its batches and processes.
        values: The divergence of each token, of the leading shape, 0 where it does not count.
        cross_entropy: The same of the cross-entropy; ``None`` without ``target``.
        total: Sum of the values, 0-d. It has a gradient too, which costs nothing where it is asked for
            together with that of ``total_cross_entropy``, at the given weights, and a second pass elsewhere.
        total_cross_entropy: The same of the cross-entropy.
    """

    loss: Tensor
    values: Tensor
    cross_entropy: Tensor | None
    total: Tensor
    total_cross_entropy: Tensor | None


def linear_divergence(
    student_hidden: Tensor,
    student_head: Head | Tensor,
    teacher: Teacher | None,
    *,
    divergence: Divergence = "kl",
    temperature: Positive = 1.0,
    skew: Unit = 0.1,
    beta: Unit = 0.5,
    normalized: bool = False,
    temperature_squared: bool | None = None,
    weight: float = 1.0,
    target: Tensor | None = None,
    target_weight: float = 1.0,
    where: Tensor | None = None,
) -> LinearDivergence:
    """A divergence of next-token distributions, from hidden states, a few tokens at a time.

    It equals the divergence of that name on the logits. Where vocabularies differ by padding, both are cut to
    the shorter, a prefix of the other. Against a :class:`~potstill.losses.heads.TopK` teacher all other words
    are one bucket for both: at most the true forward KL, and the same where nothing else has any mass.
    Against :class:`~potstill.losses.heads.Draws` forward KL and gradient are right in the mean over draws.

    Formula:
        sum over tokens of weight * D(p_t, p_s) - target_weight * log softmax(z_s)[target],
        z = cap(h W^T + b), p = softmax(z / T)

    Args:
        student_hidden: What goes into the head, ``(..., H)``; position i is compared with position i.
        student_head: The head, or its weight ``(V, H)``; what needs no gradient gets none.
        teacher: Hidden states and head, logits ``(..., V)``, or known words; it gets no gradient.
            ``None`` for the cross-entropy alone.
        divergence: Which one, by its function's name in ``potstill.losses``.
        temperature: T of the divergence, above 0; the cross-entropy has none.
        skew: Of ``skew_kl`` and ``skew_reverse_kl``.
        beta: Of ``generalized_js``, as ``normalized``.
        normalized: See there.
        temperature_squared: Multiply by T^2; by default for all but ``generalized_js``.
        weight: Factor of the divergence in ``loss``.
        target: Next tokens ``(...)``, for a cross-entropy in the same pass; anything where not counted.
        target_weight: Factor of the cross-entropy in ``loss``.
        where: Boolean ``(...)``: which tokens count.

    Returns:
        The loss, and the values of each token.

    Raises:
        ValueError: If shapes do not fit, a target is no word that both know, or there is no such divergence.

    Reference:
        Hsu and others, "Liger Kernel: Efficient Triton Kernels for LLM Training", 2024,
        https://arxiv.org/abs/2410.10989 (gradients in the forward pass); Anshumann and others, "Sparse Logit
        Sampling: Accelerating Knowledge Distillation in LLMs", 2025, https://arxiv.org/abs/2503.16870
        (drawn words); divergences: at their functions.

    Example:
        >>> hidden, head, logits = torch.zeros(1, 2, 4), torch.zeros(8, 4), torch.zeros(1, 2, 8)
        >>> linear_divergence(hidden, head, logits, target=torch.tensor([[3, 5]]))[1:3]
        (tensor([[0., 0.]]), tensor([[2.0794, 2.0794]]))
    """
    if divergence not in get_args(Divergence):
        raise ValueError(f"divergence: expected one of {', '.join(get_args(Divergence))}, got {divergence!r}")
    if isinstance(teacher, Draws) and divergence != "kl":
        raise ValueError(f"divergence: expected kl for words that were drawn, got {divergence}")
    head = student_head if isinstance(student_head, Head) else Head(student_head)
    leading = student_hidden.shape[:-1]
    _check_shapes(leading, teacher, target, where)
    name, share, factor = _resolved(divergence, skew, beta, normalized)
    squared = divergence != "generalized_js" if temperature_squared is None else temperature_squared
    plan = Plan(
        divergence=name,
        share=share,
        factor=factor * (temperature**2 if squared else 1.0),
        weight=0.0 if teacher is None else weight,
        target_weight=target_weight,
        temperature=1.0 if teacher is None else temperature,
        words=_words(head, teacher),
    )
    index = torch.arange(leading.numel(), device=student_hidden.device)
    index = index if where is None else index[where.flatten()]
    labels = None if target is None else target.flatten()[index]
    _check_words(plan.words, labels)
    tracked = torch.is_grad_enabled()
    hidden = student_hidden.flatten(end_dim=-2)[index]
    inputs = (hidden, head.weight, head.bias)
    answers = Answers(teacher, index, plan, _product_type(student_hidden))
    total, total_entropy, values, entropy = Fused.apply(
        *(each if tracked or each is None else each.detach() for each in inputs),
        head.soft_cap,
        answers,
        labels,
    )
    loss = plan.weight * total + (0.0 if total_entropy is None else target_weight * total_entropy)
    return LinearDivergence(
        loss,
        _spread(values, index, leading),
        None if entropy is None else _spread(entropy, index, leading),
        total,
        total_entropy,
    )


def _resolved(divergence: str, skew: float, beta: float, normalized: bool) -> tuple[str, float, float]:
    """Name, share and factor; the ends of ``generalized_js`` are the two KL divergences."""
    if divergence != "generalized_js":
        return divergence, skew, 1.0
    if beta in (0, 1):
        return ("reverse_kl" if beta else "kl"), skew, 1.0
    return divergence, beta, 1 / (beta * (1 - beta)) if normalized else 1.0


def _product_type(hidden: Tensor) -> torch.dtype:
    """In which type the projection is computed: the one that the model itself would use."""
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def _words(head: Head, teacher: Teacher | None) -> int:
    """Length of the shared vocabulary."""
    if teacher is None or isinstance(teacher, TopK | Draws):
        return head.size
    return min(head.size, teacher.head.size if isinstance(teacher, Projected) else teacher.shape[-1])


def _check_shapes(
    leading: torch.Size, teacher: Teacher | None, target: Tensor | None, where: Tensor | None
) -> None:
    parts: dict[str, torch.Size] = {}
    if teacher is None and target is None:
        raise ValueError("teacher: expected one, or a target, got neither")
    if isinstance(teacher, Projected):
        parts["teacher.hidden"] = teacher.hidden.shape[:-1]
    elif isinstance(teacher, TopK):
        parts["teacher.ids"] = teacher.ids.shape[:-1]
        parts["teacher.log_tail"] = teacher.log_tail.shape
        if teacher.log_probabilities.shape != teacher.ids.shape:
            raise ValueError(
                f"teacher.log_probabilities: expected the shape of ids {tuple(teacher.ids.shape)}, "
                f"got {tuple(teacher.log_probabilities.shape)}"
            )
    elif isinstance(teacher, Draws):
        parts["teacher.ids"] = teacher.ids.shape[:-1]
        parts["teacher.information"] = teacher.information.shape
    elif teacher is not None:
        parts["teacher"] = teacher.shape[:-1]
    parts |= {} if target is None else {"target": target.shape}
    parts |= {} if where is None else {"where": where.shape}
    for name, shape in parts.items():
        if shape != leading:
            raise ValueError(f"{name}: expected the leading shape {tuple(leading)}, got {tuple(shape)}")


def _check_words(words: int, labels: Tensor | None) -> None:
    if labels is not None and len(labels) and not (int(labels.min()) >= 0 and int(labels.max()) < words):
        raise ValueError(
            f"target: expected words 0 to {words - 1}, which both vocabularies have, got "
            f"{int(labels.min())} to {int(labels.max())}; mark others with where"
        )


def _spread(values: Tensor, index: Tensor, leading: torch.Size) -> Tensor:
    """Values of the tokens that count, at their places."""
    return values.new_zeros(leading.numel()).index_copy(0, index, values).view(leading)
