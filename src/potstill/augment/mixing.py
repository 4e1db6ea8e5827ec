"""Two images become one, and so do their labels: Mixup and CutMix."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from potstill.augment.draws import Draws, Share, across
from potstill.augment.erasing import in_boxes
from potstill.losses import Range

__all__ = ["CutMix", "Mixing", "Mixup", "mixed_labels"]


class Mixing(ABC):
    """A mixture of two images with a probability; its fields are a recipe's keys."""

    alpha: float
    probability: float
    shorthand: ClassVar[str] = "alpha"

    @abstractmethod
    def mix(self, images: Tensor, others: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """The mixtures ``(N, C, H, W)`` and the share of each that is its own image, ``(N,)`` float64."""

    def share(self, draws: Draws) -> Tensor:
        """One number a sample of Beta(alpha, alpha), ``(N,)`` float64."""
        from scipy.special import betaincinv

        return torch.from_numpy(betaincinv(self.alpha, self.alpha, draws(1).cpu().numpy()))


@dataclass(frozen=True, kw_only=True)
class Mixup(Mixing):
    """A weighted sum of two images.

    Reference:
        Zhang and others, "mixup: Beyond Empirical Risk Minimization", 2017,
        https://arxiv.org/abs/1710.09412
    """

    alpha: Annotated[float, Range(above=0)] = 0.2
    """Weights come from Beta(alpha, alpha): near 0 one image prevails, at 1 any weight is as likely."""
    probability: Share = 1.0
    """Of a mixture."""

    def mix(self, images: Tensor, others: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """Sums of images; integers are rounded."""
        share = self.share(draws)
        kind = images.dtype if images.is_floating_point() else torch.float32
        weight = across(share.to(kind), images)
        mixture = torch.lerp(others.to(kind), images.to(kind), weight)
        return (mixture if images.is_floating_point() else mixture.round_()).to(images.dtype), share


@dataclass(frozen=True, kw_only=True)
class CutMix(Mixing):
    """A box of one image stands in another.

    Reference:
        Yun and others, "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable
        Features", 2019, https://arxiv.org/abs/1905.04899
    """

    alpha: Annotated[float, Range(above=0)] = 1.0
    """The area that stays comes from Beta(alpha, alpha), less what of the box lies beyond the border."""
    probability: Share = 1.0
    """Of a mixture."""

    def mix(self, images: Tensor, others: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """Images with a box of their partners."""
        height, width = images.shape[2:]
        half = 0.5 * (1.0 - self.share(draws)).sqrt()
        y, x = draws.whole(2, height).cpu(), draws.whole(3, width).cpu()
        rows, columns = (half * height).long(), (half * width).long()
        top, bottom = (y - rows).clamp_min(0), (y + rows).clamp_max(height)
        left, right = (x - columns).clamp_min(0), (x + columns).clamp_max(width)
        share = 1.0 - (bottom - top) * (right - left) / (height * width)
        return torch.where(in_boxes(images, top, left, bottom, right), others, images), share.double()


def mixed_labels(labels: Tensor, others: Tensor, share: Tensor, classes: int) -> Tensor:
    """Targets that sum to 1.

    Args:
        labels: Classes of the images, ``(N,)`` int64.
        others: Classes of their partners, ``(N,)`` int64.
        share: Share of each image's own class, ``(N,)``.
        classes: Number of classes.

    Returns:
        ``(N, classes)`` float32.

    Example:
        >>> mixed_labels(torch.tensor([0]), torch.tensor([2]), torch.tensor([0.75]), 3).tolist()
        [[0.75, 0.0, 0.25]]
    """
    own = share.to(labels.device)[:, None]
    return (one_hot(labels, classes) * own + one_hot(others, classes) * (1.0 - own)).float()
