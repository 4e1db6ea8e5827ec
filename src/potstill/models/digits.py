"""The demo's networks for 8x8 grey images: one that has room, one that has hardly any."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from potstill.models.preprocessing import Preprocessing

__all__ = ["DigitNet", "student", "teacher"]


class DigitNet(nn.Module):
    """Convolutions with batch norm at two sizes, the second half the first, and a linear layer on the mean.

    Args:
        width: Channels of the first convolution; the second has twice as many.
        blocks: Convolutions at each of the two sizes.
        num_classes: Number of classes.

    Example:
        >>> sizes = [sum(weight.numel() for weight in net.parameters()) for net in (teacher(), student())]
        >>> sizes, sizes[0] // sizes[1]
        ([65834, 5178], 12)
    """

    preprocessing = Preprocessing((0.3,), (0.35,))

    def __init__(self, width: int, blocks: int = 1, num_classes: int = 10) -> None:
        super().__init__()
        self.stage1 = self._stage(1, width, blocks, stride=1)
        self.stage2 = self._stage(width, 2 * width, blocks, stride=2)
        self.linear = nn.Linear(2 * width, num_classes)

    @staticmethod
    def _stage(channels_in: int, channels_out: int, blocks: int, stride: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for number in range(blocks):
            first = number == 0
            convolution = nn.Conv2d(
                channels_in if first else channels_out,
                channels_out,
                3,
                stride if first else 1,
                padding=1,
                bias=False,
            )
            layers += [convolution, nn.BatchNorm2d(channels_out), nn.ReLU()]
        return nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(N, num_classes)`` of images ``(N, 1, 8, 8)``."""
        features = self.stage2(self.stage1(images))
        logits: Tensor = self.linear(torch.mean(features, dim=(2, 3)))
        return logits


def teacher(num_classes: int = 10) -> DigitNet:
    """The demo's teacher: four convolutions, 66 thousand parameters."""
    return DigitNet(32, blocks=2, num_classes=num_classes)


def student(num_classes: int = 10) -> DigitNet:
    """The demo's student: two convolutions, 5 thousand parameters."""
    return DigitNet(16, blocks=1, num_classes=num_classes)
