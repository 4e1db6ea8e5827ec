"""Which neurons fire: the pattern of activations above 0, and on which side of 0 a neuron stands.

Shapes: maps ``(N, C, H, W)``, tokens ``(N, L, C)`` or vectors ``(N, C)`` from before the activation
function, equal for student and teacher (an adapter makes them so); a loss gives one value per sample,
``(N,)``. The teacher enters as a step, 1 where its neuron is above 0, and so gets no gradient.

After a ReLU nothing is below 0: tap what goes into it, as ``layer1.0.bn1`` or ``layer1.0.relu:input``.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from potstill.losses._declare import Positive, matches
from potstill.losses.reduce import blanked, masked

__all__ = ["activation_boundary", "activation_pattern", "pattern_agreement"]


def _comparable(student: Tensor, teacher: Tensor, where: Tensor | None) -> tuple[Tensor, Tensor]:
    """Both, of one shape, in at least float32, 0 where they do not count."""
    if student.shape != teacher.shape:
        raise ValueError(
            f"expected student and teacher activations of one shape (an adapter makes them so), got "
            f"{tuple(student.shape)} and {tuple(teacher.shape)}"
        )
    return blanked(student, where), blanked(teacher, where)


# Weight: the authors' 3/1000 is for a phase without labels. Beside them its gradient is 33 times theirs
# (ResNet-56 to ResNet-8 on CIFAR-10), and 200 steps ended 6 points below the control; see docs/results.md.
@matches(
    "features",
    weight=3e-5,
    adapter=True,
    normalised=True,
    before_activation=True,
    until=0.2,
    combine="sum",
    zero_at_equality=False,
    reason="a margin: a student equal to its teacher is on the right side, but not far enough from 0",
)
def activation_boundary(
    student: Tensor, teacher: Tensor, *, margin: Positive = 1.0, where: Tensor | None = None
) -> Tensor:
    """Squared distance of each neuron from the side of 0 on which the teacher's stands, with a margin.

    Tap before the activation function. The authors use it first and alone (``until: 0.2``, here the
    default), then train with :func:`kl` at T = 3. Their weight is 0.003, and over several layers they take
    1, 1/2, 1/4 of it from the last to the first: a term each. It is a sum over all neurons, and at that
    weight drowns the labels beside it; the default is a hundredth.

    Formula:
        sum over neurons of (s + m)^2 1[s > -m and t <= 0] + (s - m)^2 1[s <= m and t > 0]

    Args:
        student: Adapted activations ``(N, C, H, W)``, ``(N, L, C)`` or ``(N, C)``, before the ReLU.
        teacher: Activations of the same shape, before the ReLU.
        margin: m, above 0: how far beyond 0 a neuron must stand.
        where: Boolean ``(N,)``: which samples count.

    Returns:
        One value per sample, ``(N,)``, never below 0; above 0 at equality wherever an activation lies
        within the margin.

    Raises:
        ValueError: If the shapes differ.

    Reference:
        Heo and others, "Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden
        Neurons", 2019, https://arxiv.org/abs/1811.03233

    Example:
        >>> activation_boundary(torch.tensor([[0.5, 0.5]]), torch.tensor([[2.0, -2.0]]))
        tensor([2.5000])
    """
    student, teacher = _comparable(student, teacher, where)
    short = torch.where(teacher > 0, margin - student, margin + student).clamp(min=0)
    return masked(short.square().flatten(1).sum(dim=1), where)


# Weight: without a published one, chosen on CIFAR-10, ResNet-56 to ResNet-8, after 40 steps: its gradient is
# 0.3 times the supervised loss's there (attention_transfer's 9 times, neuron_selectivity's 5 times).
@matches(
    "features",
    weight=5.0,
    adapter=True,
    before_activation=True,
    zero_at_equality=False,
    reason="a cross-entropy with hard answers: 0 only where the student's activations are infinite",
)
def activation_pattern(
    student: Tensor, teacher: Tensor, *, sharpness: Positive = 1.0, where: Tensor | None = None
) -> Tensor:
    """Cross-entropy of the student's softened on/off pattern under the teacher's.

    Tap before the activation function. Unlike :func:`activation_boundary` it is a mean, bounded in its
    gradient, and bears standing beside the labels. ``pattern_agreement`` measures what it trains.

    Formula:
        mean over neurons of BCE(sigmoid(sharpness * s), 1[t > 0])

    Args:
        student: Adapted activations ``(N, C, H, W)``, ``(N, L, C)`` or ``(N, C)``, before the ReLU.
        teacher: Activations of the same shape, before the ReLU.
        sharpness: Above 0: how steeply the sigmoid stands in for the student's step.
        where: Boolean ``(N,)``: which samples count.

    Returns:
        One value per sample, ``(N,)``, above 0.

    Raises:
        ValueError: If the shapes differ.

    Reference:
        Without a paper of its own: the on/off pattern of Heo and others, "Knowledge Transfer via
        Distillation of Activation Boundaries Formed by Hidden Neurons", 2019, as a classification,
        https://arxiv.org/abs/1811.03233

    Example:
        >>> activation_pattern(torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, -2.0]]))
        tensor([0.6931])
    """
    student, teacher = _comparable(student, teacher, where)
    fires = (teacher > 0).to(student.dtype)
    values = binary_cross_entropy_with_logits(sharpness * student, fires, reduction="none")
    return masked(values.flatten(1).mean(dim=1), where)


def pattern_agreement(student: Tensor, teacher: Tensor) -> Tensor:
    """Share of neurons that are on (above 0) in both nets or off in both; a metric, without gradient.

    Args:
        student: Activations ``(N, ...)``.
        teacher: Activations of the same shape.

    Returns:
        One share per sample, ``(N,)``, 0 to 1.

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> pattern_agreement(torch.tensor([[1.0, -1.0, 3.0, 0.0]]), torch.tensor([[2.0, 2.0, 2.0, -2.0]]))
        tensor([0.7500])
    """
    student, teacher = _comparable(student, teacher, None)
    return ((student > 0) == (teacher > 0)).to(student.dtype).flatten(1).mean(dim=1)
