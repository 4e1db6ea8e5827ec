"""A small network with exits whose answers differ from sample to sample."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from potstill.models.exits import WithExits


class Small(nn.Module):
    """Three stages of convolutions; `choice` makes its forward pass depend on the data."""

    def __init__(self, choice: bool = False) -> None:
        super().__init__()
        self.one = self.stage(3, 8, 1)
        self.two = self.stage(8, 12, 2)
        self.three = self.stage(12, 16, 2)
        self.linear = nn.Linear(16, 5)
        self.choice = choice

    @staticmethod
    def stage(channels_in: int, channels_out: int, stride: int) -> nn.Sequential:
        convolution = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(channels_out), nn.ReLU())

    def forward(self, images: Tensor) -> Tensor:
        maps = self.two(self.one(images))
        if self.choice and maps.sum() > 1e9:
            maps = -maps
        logits: Tensor = self.linear(self.three(maps).mean(dim=(2, 3)))
        return logits


def images(count: int, seed: int = 0) -> Tensor:
    """Images in 0..1 of few large patches, so that their means differ."""
    generator = torch.Generator().manual_seed(seed)
    patches = torch.rand(count, 3, 2, 2, generator=generator)
    return patches.repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)


def network(choice: bool = False, seed: int = 0) -> WithExits:
    """Random weights, statistics of the images, heads loud enough to be sure now and then."""
    torch.manual_seed(seed)
    made = WithExits(Small(choice), "auto", images(2))
    for parameter in made.parameters():
        if parameter.dim() == 2:
            nn.init.normal_(parameter, std=2.0)
    made.train()
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the plain mean over all batches
    with torch.no_grad():
        for number in range(3):
            made(images(64, seed=number))
    return made.eval()
