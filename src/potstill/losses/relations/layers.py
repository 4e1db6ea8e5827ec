"""Which layers of a net say the same: their similarity, compared between nets.

Shapes: features of each of L layers, maps ``(N, C, H, W)`` and tokens ``(N, L, C)`` averaged over their
positions, or vectors ``(N, C)``; the widths of all layers may differ.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from potstill.losses._declare import matches
from potstill.losses.reduce import blanked

__all__ = ["layer_correlation"]

ROUNDINGS = 16
"""A layer that varies by fewer roundings than this is constant: its direction is noise."""


# Weight: without a published one, chosen on CIFAR-10, ResNet-56 to ResNet-8, after 40 steps: its gradient is
# 0.3 times the supervised loss's there (attention_transfer's 9 times, neuron_selectivity's 5 times).
@matches("features", weight=1.0, spans="all", over_set=True)
def layer_correlation(
    student: tuple[Tensor, ...], teacher: tuple[Tensor, ...], *, where: Tensor | None = None
) -> Tensor:
    """Mean squared difference of the similarities of every two layers inside each net.

    The similarity is linear centred kernel alignment (CKA), which no rotation or scale of a layer changes,
    so that student and teacher need neither the same widths nor an adapter. It is the plain estimate, which
    is above 0 also for unrelated layers of a small batch, in both nets alike. A layer that is the same for
    all samples is like none, itself included: 0, without gradient. One sample gives 0.

    Formula:
        K_ij = ||X_i^T X_j||_F^2 / (||X_i^T X_i||_F ||X_j^T X_j||_F), X_i (N, C_i) layer i, centred over the
        batch; mean over L x L of (K_s - K_t)^2

    Args:
        student: Features of L layers, at least two.
        teacher: Features of as many layers.
        where: Boolean ``(N,)``: which samples count.

    Returns:
        One value for the batch, 0-d, 0 to 1; 0 where no sample counts.

    Raises:
        ValueError: If the numbers of layers differ or are below 2, or the batches differ in size.

    Reference:
        Without a paper of its own; the similarity is that of Kornblith and others, "Similarity of Neural
        Network Representations Revisited", 2019, https://arxiv.org/abs/1905.00414

    Example:
        >>> first, second = torch.tensor([[1.0], [0.0], [-1.0]]), torch.tensor([[1.0], [-2.0], [1.0]])
        >>> layer_correlation((first, second), (first, 3 * first))
        tensor(0.5000)
    """
    if len(student) != len(teacher) or len(student) < 2:
        raise ValueError(
            f"expected the same number of layers of both nets, two or more, got {len(student)} of the "
            f"student and {len(teacher)} of the teacher"
        )
    samples = [each.shape[0] for each in (*student, *teacher)]
    if min(samples) != max(samples):
        shapes = [", ".join(str(tuple(each.shape)) for each in layers) for layers in (student, teacher)]
        raise ValueError(f"expected layers of one batch, got student {shapes[0]} and teacher {shapes[1]}")
    ours = _alignments([_directions(each, where) for each in student])
    theirs = _alignments([_directions(each, where) for each in teacher])
    return (ours - theirs).square().mean()


def _alignments(layers: Sequence[Tensor]) -> Tensor:
    """``(L, L)``: the CKA of every two layers ``(N, C)`` that are centred over the batch."""
    samples = layers[0].shape[0]
    if samples <= max(each.shape[1] for each in layers):
        grams = torch.stack([(each @ each.T).flatten() for each in layers])  # (L, NN)
        products = grams @ grams.T
    else:
        columns = [torch.stack([(a.T @ b).square().sum() for b in layers]) for a in layers]
        products = torch.stack(columns)
    squares = products.diagonal()
    zero = squares == 0
    norms = torch.where(zero, torch.ones_like(squares), squares).sqrt()
    return products / (norms.unsqueeze(0) * norms.unsqueeze(1))


def _directions(features: Tensor, where: Tensor | None) -> Tensor:
    """A layer as ``(N, C)``: averaged over positions and centred over the samples that count.

    Its largest entry is 1, so that fourth powers stay finite; zeros where it is the same for all.
    """
    values = blanked(features, where)
    if values.dim() == 4:
        values = values.mean(dim=(2, 3))
    elif values.dim() == 3:
        values = values.mean(dim=1)
    every = torch.ones(values.shape[0], dtype=torch.bool, device=values.device)
    counts = (every if where is None else where).unsqueeze(1)
    centred = torch.where(
        counts, values - values.sum(dim=0) / counts.sum().clamp(min=1), torch.zeros_like(values)
    )
    largest = centred.abs().amax().detach()
    constant = largest <= ROUNDINGS * torch.finfo(values.dtype).eps * values.abs().amax()
    scaled = centred / torch.where(constant, torch.ones_like(largest), largest)
    return torch.where(constant, torch.zeros_like(scaled), scaled)
