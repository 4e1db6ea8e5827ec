"""A LeNet for small grey images: a classifier, and the eyes by which generated digits are judged."""

from __future__ import annotations

from torch import Tensor, nn

from potstill.models.preprocessing import Preprocessing

__all__ = ["LeNet"]


class LeNet(nn.Module):
    """LeNet-5's two convolutions and two hidden layers, with rectifiers and maxima in place of its own.

    ``features``, the 84 values before the classes, is the layer that sets of images are compared by.

    Args:
        num_classes: Number of classes.
        width: Channels of the first convolution; the second has twice as many.

    Reference:
        LeCun, Bottou, Bengio, Haffner, "Gradient-Based Learning Applied to Document Recognition", 1998,
        https://doi.org/10.1109/5.726791

    >>> import torch
    >>> LeNet()(torch.rand(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """

    preprocessing = Preprocessing((0.1307,), (0.3081,))

    def __init__(self, num_classes: int = 10, width: int = 16) -> None:
        super().__init__()
        self.maps = nn.Sequential(
            nn.Conv2d(1, width, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
        )
        self.hidden = nn.Sequential(nn.Linear(50 * width, 120), nn.ReLU())
        self.features = nn.Sequential(nn.Linear(120, 84), nn.ReLU())
        self.classes = nn.Linear(84, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(N, num_classes)`` of images ``(N, 1, 28, 28)``, normalised."""
        logits: Tensor = self.classes(self.features(self.hidden(self.maps(images))))
        return logits
