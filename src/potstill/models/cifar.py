"""ResNets for 32x32 images (He and others, 2015, section 4.2), with the parameter-free shortcut.

Where a block halves the size, its shortcut takes every second pixel and pads the new channels with zeros
("option A"), so the published parameter counts hold. Layer names are those of the usual public weights:
``conv1, bn1, layer1..3, linear``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, pad, relu

from potstill.models.preprocessing import IMAGENET

__all__ = ["Block", "ResNet", "resnet", "resnet8", "resnet20", "resnet32", "resnet44", "resnet56"]


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut without weights.

    Args:
        channels_in: Channels of the input.
        channels_out: Channels of the output.
        stride: 1, or 2 to halve the size.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.activation = nn.ReLU()  # a module, so that what goes into it can be tapped
        self.stride = stride
        self.added = channels_out - channels_in

    def forward(self, inputs: Tensor) -> Tensor:
        """``(N, C, H, W)`` to ``(N, C', H / stride, W / stride)``."""
        residual = self.bn2(self.conv2(relu(self.bn1(self.conv1(inputs)))))
        shortcut = inputs
        if self.stride > 1:  # every second pixel; a slice's gradient would lose the layout of the channels
            shortcut = avg_pool2d(inputs, 1, self.stride)
        if self.added:
            before = self.added // 2
            shortcut = pad(shortcut, (0, 0, 0, 0, before, self.added - before))
        activated: Tensor = self.activation(residual + shortcut)
        return activated


class ResNet(nn.Module):
    """A ResNet of ``6n + 2`` layers for small images; make one with :func:`resnet`.

    Args:
        blocks: Blocks in each of the three stages.
        num_classes: Number of classes.
        width: Channels of the first stage; the next have twice and four times as many.
    """

    preprocessing = IMAGENET

    def __init__(self, blocks: int, num_classes: int = 10, width: int = 16) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = self._stage(blocks, width, width, stride=1)
        self.layer2 = self._stage(blocks, width, 2 * width, stride=2)
        self.layer3 = self._stage(blocks, 2 * width, 4 * width, stride=2)
        self.linear = nn.Linear(4 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    @staticmethod
    def _stage(blocks: int, channels_in: int, channels_out: int, stride: int) -> nn.Sequential:
        first = Block(channels_in, channels_out, stride)
        return nn.Sequential(first, *(Block(channels_out, channels_out, 1) for _ in range(blocks - 1)))

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(N, num_classes)`` of images ``(N, 3, H, W)``."""
        features = relu(self.bn1(self.conv1(images)))
        features = self.layer3(self.layer2(self.layer1(features)))
        logits: Tensor = self.linear(torch.mean(features, dim=(2, 3)))
        return logits


def resnet(depth: int, num_classes: int = 10, width: int = 16) -> ResNet:
    """A ResNet of any depth ``6n + 2``.

    Args:
        depth: 8, 14, 20, 26, ...
        num_classes: Number of classes.
        width: Channels of the first stage.

    Raises:
        ValueError: If the depth is not of that form.

    Reference:
        He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", 2015,
        https://arxiv.org/abs/1512.03385

    Example:
        >>> sum(parameter.numel() for parameter in resnet(20).parameters())
        269722
    """
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        raise ValueError(f"expected a depth of 6n + 2 (8, 14, 20, ...), got {depth}")
    return ResNet(blocks, num_classes, width)


def resnet8(num_classes: int = 10, **options: Any) -> ResNet:
    """ResNet-8, 78 thousand parameters."""
    return resnet(8, num_classes, **options)


def resnet20(num_classes: int = 10, **options: Any) -> ResNet:
    """ResNet-20, 0.27 million parameters."""
    return resnet(20, num_classes, **options)


def resnet32(num_classes: int = 10, **options: Any) -> ResNet:
    """ResNet-32, 0.46 million parameters."""
    return resnet(32, num_classes, **options)


def resnet44(num_classes: int = 10, **options: Any) -> ResNet:
    """ResNet-44, 0.66 million parameters."""
    return resnet(44, num_classes, **options)


def resnet56(num_classes: int = 10, **options: Any) -> ResNet:
    """ResNet-56, 0.85 million parameters."""
    return resnet(56, num_classes, **options)
