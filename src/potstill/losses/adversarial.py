"""The two sides of a game: what a discriminator minimises, and what a generator does.

Judgements are ``(N, ...)``, one or many (patches) a sample, higher for what looks real. Each function gives
the mean over a sample's patches, ``(N,)``.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import relu, softplus

__all__ = ["Game", "against", "deceiving", "gradient_penalty"]

Game = Literal["hinge", "least_squares", "vanilla"]


def _per_sample(values: Tensor) -> Tensor:
    return values.flatten(1).mean(dim=1)


def deceiving(fake: Tensor, game: Game = "hinge") -> Tensor:
    """What the generator minimises: ``-D(fake)``, ``(D(fake) - 1)^2`` or ``softplus(-D(fake))``.

    Args:
        fake: Judgements of generated samples, ``(N, ...)``.
        game: ``hinge``, ``least_squares`` or ``vanilla``, the last in its non-saturating form.

    Returns:
        ``(N,)``.

    Reference:
        Goodfellow and others, 2014, https://arxiv.org/abs/1406.2661; Mao and others, "Least Squares GAN",
        2016, https://arxiv.org/abs/1611.04076; Lim, Ye, "Geometric GAN", 2017,
        https://arxiv.org/abs/1705.02894

    Example:
        >>> deceiving(torch.tensor([[2.0], [-1.0]]), "hinge").tolist()
        [-2.0, 1.0]
    """
    if game == "hinge":
        return _per_sample(-fake)
    if game == "least_squares":
        return _per_sample((fake - 1.0).square())
    return _per_sample(softplus(-fake))


def against(real: Tensor, fake: Tensor, game: Game = "hinge") -> Tensor:
    """What the discriminator minimises.

    Formula:
        hinge: relu(1 - D(real)) + relu(1 + D(fake)); least squares: (D(real) - 1)^2 + D(fake)^2;
        vanilla: softplus(-D(real)) + softplus(D(fake)); each halved, so that all three start near 1/2 to 1

    Args:
        real: Judgements of real samples, ``(N, ...)``.
        fake: Of as many generated ones, ``(N, ...)``.
        game: Which of the three.

    Returns:
        ``(N,)``, never below 0.

    Example:
        >>> against(torch.tensor([[2.0]]), torch.tensor([[-0.5]]), "hinge").tolist()
        [0.25]
    """
    if game == "hinge":
        return 0.5 * _per_sample(relu(1.0 - real) + relu(1.0 + fake))
    if game == "least_squares":
        return 0.5 * _per_sample((real - 1.0).square() + fake.square())
    return 0.5 * _per_sample(softplus(-real) + softplus(fake))


def gradient_penalty(judged: Tensor, images: Tensor) -> Tensor:
    """R1: half the squared norm of the judgement's gradient by each image.

    Args:
        judged: Judgements, ``(N, ...)``.
        images: What they were made from, ``(N, ...)``, with ``requires_grad``.

    Returns:
        ``(N,)``, differentiable by the discriminator's weights.

    Reference:
        Mescheder, Geiger, Nowozin, "Which Training Methods for GANs do actually Converge?", 2018,
        https://arxiv.org/abs/1801.04406

    Example:
        >>> images = torch.tensor([[3.0, 1.0]], requires_grad=True)
        >>> gradient_penalty((2 * images).sum(dim=1, keepdim=True), images).tolist()
        [4.0]
    """
    total = judged.flatten(1).mean(dim=1).sum()
    (gradient,) = torch.autograd.grad(total, images, create_graph=True)
    return 0.5 * gradient.flatten(1).square().sum(dim=1)
