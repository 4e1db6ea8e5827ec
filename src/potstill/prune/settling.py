"""Batch normalisation measures its statistics anew, where parts of a network are gone.

Running means and variances are those of the whole network. What is left after a removal is judged by them
far worse than it is after the first steps of training, which is when it matters: two candidates are compared
after their statistics have settled on the calibration samples.

Reference:
    Li, Wu, Su, Wang, "EagleEye: Fast Sub-net Evaluation for Efficient Neural Network Pruning", 2020,
    https://arxiv.org/abs/2007.02491
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["settled"]


def settled(model: nn.Module, losses: Callable[[nn.Module], Iterator[Tensor]]) -> nn.Module:
    """``model`` in eval mode, its batch normalisations with the mean statistics of the calibration batches.

    Args:
        model: The network; changed in place. One without batch normalisation is only put in eval mode.
        losses: Runs it over the calibration (see :data:`~potstill.prune.importance.Losses`).

    Returns:
        The same network.

    Example:
        >>> norm = nn.Sequential(nn.BatchNorm1d(1))
        >>> batches = [torch.tensor([[1.0], [3.0]]), torch.tensor([[5.0], [7.0]])]
        >>> _ = settled(norm, lambda model: (model(batch).mean(dim=1) for batch in batches))
        >>> norm[0].running_mean.tolist(), norm[0].running_var.tolist(), norm[0].momentum
        ([4.0], [2.0], 0.1)
    """
    model.eval()
    norms = [one for one in model.modules() if isinstance(one, _BatchNorm) and one.track_running_stats]
    if not norms:
        return model
    momenta = [one.momentum for one in norms]
    for one in norms:
        one.reset_running_stats()
        one.momentum = None  # the mean over batches
        one.train()
    with torch.no_grad():
        for _ in losses(model):
            pass
    for one, momentum in zip(norms, momenta, strict=True):
        one.momentum = momentum
    return model.eval()
