"""Optimisers and the course of the learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from potstill.train.settings import TrainConfig

__all__ = ["clip_gradients", "learning_rate", "make_optimizer", "set_learning_rate"]


def make_optimizer(module: nn.Module, config: TrainConfig) -> Optimizer:
    """The optimiser of one trainable part, fused into one kernel where torch can."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in parameters)
    if config.optimizer == "adamw":
        betas = config.betas
        return AdamW(
            parameters, lr=config.learning_rate, betas=betas, weight_decay=config.weight_decay, fused=fused
        )
    return SGD(
        parameters,
        lr=config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=config.nesterov and config.momentum > 0,
        fused=fused,
    )


def learning_rate(config: TrainConfig, step: int, total: int) -> float:
    """The learning rate of a step, a pure function: nothing to save or restore.

    Args:
        config: Peak, schedule, warm-up and milestones.
        step: Number of the step, from 0.
        total: Number of steps.

    Example:
        >>> config = TrainConfig(learning_rate=1.0, warmup=0.1)
        >>> [round(learning_rate(config, step, 100), 3) for step in (0, 9, 10, 55, 99)]
        [0.1, 1.0, 1.0, 0.5, 0.0]
    """
    rising = round(config.warmup * total)
    if step < rising:
        return config.learning_rate * (step + 1) / rising
    if config.schedule == "constant":
        return config.learning_rate
    if config.schedule == "step":
        passed = sum(step >= milestone * total for milestone in config.milestones)
        return config.learning_rate * config.decay**passed
    progress = (step - rising) / max(1, total - rising)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rate(optimizer: Optimizer, value: float) -> None:
    """Give all parameters of an optimiser one learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = value


def clip_gradients(modules: Iterable[nn.Module], largest: float | None) -> None:
    """Scale all gradients together down to the norm ``largest``; ``None`` leaves them."""
    if largest is not None:
        parameters = [parameter for module in modules for parameter in module.parameters()]
        torch.nn.utils.clip_grad_norm_(parameters, largest)
