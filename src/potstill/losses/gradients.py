"""Where a network is sensitive: the gradient of its loss, or of the true class's logit, at the input.

The student is differentiated twice: once here, and once more when the loss is. What a loss gets of each net
is a pair: its logits ``(N, C)`` and a tensor ``(N, ...)`` of the graph that led to them.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, one_hot, softplus

from potstill.losses._declare import matches
from potstill.losses.reduce import blanked, masked

__all__ = ["gradient_attention"]

Pair = tuple[Tensor, Tensor]


@matches("gradients", weight=1.0, target=True)
def gradient_attention(
    student: Pair,
    teacher: Pair,
    target: Tensor,
    *,
    of: Literal["loss", "logit"] = "loss",
    variant: Literal["normalized", "paper", "map"] = "normalized",
    where: Tensor | None = None,
) -> Tensor:
    """Distance of the gradients that both nets have at their input, each for its own loss.

    The gradient of a good teacher's loss all but vanishes, so that by default only its direction counts: a
    sample whose gradient is 0 has none and stays 0. A direction does not depend on how sure a net is, so
    where only it counts, the factor 1 - p(target) is left out, which rounds to 0 for a sure teacher. The
    weight of 1 puts unrelated nets, whose directions are at right angles, at 1.4: as much as a supervised
    loss. The teacher is differentiated once and gets no gradient. A compiled student cannot be
    differentiated twice.

    Formula:
        g = dL/dx, L the cross-entropy with the target (of loss) or its logit (of logit), n the L2 norm over
        the flattened sample; variant normalized: ||n(g_s) - n(g_t)||_2; variant paper: ||g_s - g_t||_2;
        variant map: a = mean_c |g|, ||n(a_s) - n(a_t)||_2

    Args:
        student: Logits ``(N, C)`` and the tensor to differentiate by, ``(N, ...)``: the input, or a layer.
        teacher: The same of the teacher; the tensor has the student's shape. With ``variant="map"`` channels
            may differ, and the bigger map is average-pooled to the smaller.
        target: True classes ``(N,)``, int64.
        of: What is differentiated: each net's own ``loss``, or the true class's ``logit``.
        variant: ``normalized`` compares directions, ``map`` only where they are large, ``paper`` the
            gradients as they are.
        where: Boolean ``(N,)``: which samples count.

    Returns:
        One value per sample, ``(N,)``, never below 0.

    Raises:
        ValueError: If a tensor cannot be differentiated by, or the gradients cannot be compared.

    Reference:
        Zagoruyko, Komodakis, "Paying More Attention to Attention", 2016, section 3.2,
        https://arxiv.org/abs/1612.03928

    Example:
        >>> pixels = torch.zeros(1, 2, requires_grad=True)
        >>> student, teacher = pixels @ torch.eye(2), pixels @ torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        >>> loss = gradient_attention((student, pixels), (teacher, pixels), torch.tensor([0]))
        >>> round(loss.item(), 3)
        2.0
    """
    if student[1].shape[:1] != teacher[1].shape[:1]:
        raise ValueError(
            f"expected tensors of one batch, got student {tuple(student[1].shape)} and teacher "
            f"{tuple(teacher[1].shape)}"
        )
    scaled = variant == "paper"
    ours = _gradient("student", student, target, where, of, scaled=scaled, again=True)
    theirs = _gradient("teacher", teacher, target, where, of, scaled=scaled, again=False)
    if variant == "map":
        ours, theirs = _of_one_size(_energy(ours), _energy(theirs))
    if ours.shape != theirs.shape:
        raise ValueError(
            f"expected gradients of one shape (variant: map compares maps of any size), got student "
            f"{tuple(ours.shape)} and teacher {tuple(theirs.shape)}"
        )
    ours, theirs = ours.flatten(1), theirs.flatten(1)
    if variant != "paper":
        ours, theirs = _normalized(ours), _normalized(theirs)
    return masked(_safe_norm(ours - theirs), where)


def _gradient(
    role: str,
    pair: Pair,
    target: Tensor,
    where: Tensor | None,
    of: Literal["loss", "logit"],
    *,
    scaled: bool,
    again: bool,
) -> Tensor:
    """Gradient of the sum over valid samples at the tensor, ``(N, ...)``; ``again``: to be differentiated."""
    logits, tensor = pair
    _check(role, logits, tensor, target)
    if again:
        _refuse_compiled(role, logits)
    _check_graph(role, logits, tensor)
    logits = blanked(logits, where)
    counted = target if where is None else torch.where(where, target, torch.zeros_like(target))
    truth = one_hot(counted, logits.shape[1]).bool()
    values = logits.masked_fill(~truth, 0.0).sum(dim=1)  # the true class's logit, (N,)
    if of == "loss":
        # The cross-entropy is softplus of this margin, whose own derivative 1 - p changes no direction.
        margin = logits.masked_fill(truth, -torch.inf).logsumexp(dim=1) - values
        values = softplus(margin) if scaled else margin
    (found,) = torch.autograd.grad(
        masked(values, where).sum(), tensor, create_graph=again, retain_graph=True, allow_unused=True
    )
    if found is None:
        raise ValueError(f"the {role}'s logits do not depend on the tensor to differentiate by; {ADVICE}")
    if again:
        _refuse_compiled(role, found)
    return blanked(found, where)


COMPILED = "CompiledFunction"
ADVICE = "tap ':input', the input of the whole network, or a layer on the way to its output"


def _check(role: str, logits: Tensor, tensor: Tensor, target: Tensor) -> None:
    if logits.dim() != 2 or logits.shape[1] < 2 or tensor.shape[:1] != logits.shape[:1]:
        raise ValueError(
            f"expected logits (N, C) of at least two classes and a tensor of the same batch, got "
            f"{tuple(logits.shape)} and {tuple(tensor.shape)} of the {role}"
        )
    if target.shape != logits.shape[:1]:
        raise ValueError(f"target: expected shape {tuple(logits.shape[:1])}, got {tuple(target.shape)}")
    if not tensor.is_floating_point():
        raise ValueError(
            f"the {role}'s tensor holds integers ({tensor.dtype}), which have no gradient; tap the output of "
            f"its embedding layer"
        )


def _check_graph(role: str, logits: Tensor, tensor: Tensor) -> None:
    if not (tensor.requires_grad and logits.requires_grad):
        raise ValueError(f"the {role} cannot be differentiated: its tensor requires no gradient; {ADVICE}")


def _refuse_compiled(role: str, computed: Tensor) -> None:
    if COMPILED in type(computed.grad_fn).__name__:
        raise ValueError(
            f"a compiled {role} cannot be differentiated twice; do not compile it (train.compile: false)"
        )


def _energy(gradient: Tensor) -> Tensor:
    """Mean over channels of the absolute gradient: maps to ``(N, H, W)``, tokens to ``(N, L)``."""
    if gradient.dim() not in (3, 4):
        raise ValueError(
            f"variant map: expected gradients of maps (N, C, H, W) or tokens (N, L, C), got "
            f"{tuple(gradient.shape)}"
        )
    return gradient.abs().mean(dim=1 if gradient.dim() == 4 else 2)


def _of_one_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Maps ``(N, H, W)``, the bigger one pooled; tokens as they are."""
    if student.dim() != 3 or teacher.dim() != 3 or student.shape == teacher.shape:
        return student, teacher
    size = (min(student.shape[1], teacher.shape[1]), min(student.shape[2], teacher.shape[2]))
    pooled = [adaptive_avg_pool2d(each.unsqueeze(1), size).squeeze(1) for each in (student, teacher)]
    return pooled[0], pooled[1]


def _normalized(rows: Tensor) -> Tensor:
    """Rows of length 1; rows of zeros stay. The largest entry is first made 1, which keeps squares finite."""
    largest = rows.abs().amax(dim=1, keepdim=True).detach()
    rows = rows / torch.where(largest == 0, torch.ones_like(largest), largest)
    squares = rows.square().sum(dim=1, keepdim=True)
    return rows / torch.where(squares == 0, torch.ones_like(squares), squares).sqrt()


def _safe_norm(rows: Tensor) -> Tensor:
    """Length of each row, ``(N,)``, with a gradient of 0 (not NaN) at 0."""
    squares = rows.square().sum(dim=1)
    zero = squares == 0
    return torch.where(
        zero, torch.zeros_like(squares), torch.where(zero, torch.ones_like(squares), squares).sqrt()
    )
