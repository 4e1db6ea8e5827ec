"""Weights that are zero and stay zero: any of them, or N of every M beside each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from potstill.errors import UserError
from potstill.prune.importance import Losses
from potstill.prune.settings import pattern_of

__all__ = ["hold", "nonzero", "weight_masks"]

Kind = Literal["magnitude", "input"]


def weight_masks(
    model: nn.Module, pattern: float | str, losses: Losses | None = None, kind: Kind = "magnitude"
) -> dict[str, Tensor]:
    """Which weights of linear layers and convolutions are kept.

    Grouped convolutions stay whole, and so does a language model's output layer, whose weights are often its
    embeddings.

    ``magnitude`` scores a weight by ``|w|``; ``input`` by ``|w| |x|``, where ``|x|`` is the L2 norm of what
    the weight is multiplied with over all calibration samples and positions. A share is taken from each
    tensor as a whole for ``magnitude``, and from each row of outputs for ``input``, as its scores compare
    within a row only.

    Args:
        model: The network; left as it is.
        pattern: The share that becomes zero, above 0 and below 1; or ``"2:4"``: two of every four weights
            along the inputs are kept.
        losses: The calibration (see :data:`~potstill.prune.importance.Losses`), needed by ``input``.
        kind: How weights are scored.

    Returns:
        By name of the parameter, bool of its shape: true where the weight is kept.

    Raises:
        UserError: If the pattern cannot be read, a tensor's inputs are no multiple of M, or nothing would go.

    Reference:
        Sun, Liu, Bair, Kolter, "A Simple and Effective Pruning Approach for Large Language Models", 2023,
        https://arxiv.org/abs/2306.11695; Mishra and others, "Accelerating Sparse Deep Neural Networks",
        2021, https://arxiv.org/abs/2104.08378

    Example:
        >>> layer = nn.Linear(4, 1, bias=False)
        >>> _ = layer.weight.data.copy_(torch.tensor([[3.0, -4.0, 1.0, 2.0]]))
        >>> weight_masks(nn.Sequential(layer), "2:4")["0.weight"].tolist()
        [[True, True, False, False]]
    """
    share = pattern_of(pattern)
    norms = _input_norms(model, losses) if kind == "input" else {}
    found = {}
    for path, module in _layers(model):
        if kind == "input" and path not in norms:  # its owner reads its weights without calling it
            continue
        scores = module.weight.detach().float().abs()
        if kind == "input":
            along = norms[path].reshape(1, -1, *[1] * (scores.dim() - 2))
            scores = scores * along.to(scores.device)
        name = f"{path}.weight"
        found[name] = _kept(scores, share, name, by_row=kind == "input")
    widths = [mask[0].numel() if kind == "input" else mask.numel() for mask in found.values()]
    if not isinstance(share, tuple) and not any(round(share * width) for width in widths):
        raise UserError("prune.weights", f"{share:g} of a layer's weights is less than one: nothing would go")
    return found


def nonzero(model: nn.Module) -> dict[str, Tensor]:
    """Masks of the zeros that a network has: what :func:`hold` keeps as it is.

    Args:
        model: A network whose weights :func:`hold` once set to zero.
    """
    return {f"{path}.weight": module.weight.detach() != 0 for path, module in _layers(model)}


def _layers(model: nn.Module) -> Iterator[tuple[str, nn.Linear | nn.Conv1d | nn.Conv2d]]:
    find: Any = getattr(model, "get_output_embeddings", None)
    head = None if find is None else find()
    for path, module in model.named_modules():
        dense = isinstance(module, nn.Conv1d | nn.Conv2d) and module.groups == 1
        if (dense or isinstance(module, nn.Linear)) and module is not head:
            yield path, module


def _input_norms(model: nn.Module, losses: Losses | None) -> dict[str, Tensor]:
    """L2 norm of every input of every layer, ``(in,)``."""
    if losses is None:
        raise ValueError("expected calibration losses for kind input, got none")
    squares: dict[str, Tensor] = {}

    def note(path: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        values = inputs[0].detach().float()
        values = values.movedim(-1 if isinstance(module, nn.Linear) else 1, 0).flatten(1)
        squares[path] = squares.get(path, torch.zeros(len(values))) + values.pow(2).sum(dim=1).cpu()

    handles = [module.register_forward_pre_hook(partial(note, path)) for path, module in _layers(model)]
    training = model.training
    model.eval()
    with torch.no_grad():
        for _ in losses(model):
            pass
    model.train(training)
    for handle in handles:
        handle.remove()
    return {path: values.sqrt() for path, values in squares.items()}


def _kept(scores: Tensor, pattern: tuple[int, int] | float, name: str, *, by_row: bool) -> Tensor:
    if isinstance(pattern, tuple):
        return _of_every(scores, *pattern, name)
    rows = scores.flatten(1) if by_row else scores.reshape(1, -1)
    gone = rows.argsort(dim=1)[:, : round(pattern * rows.shape[1])]
    return torch.ones_like(rows, dtype=torch.bool).scatter_(1, gone, False).reshape(scores.shape)


def _of_every(scores: Tensor, kept: int, every: int, name: str) -> Tensor:
    """N of every M weights along the inputs, which for convolutions are the channels of one place."""
    last = scores.movedim(1, -1)  # (out, ..., in)
    if last.shape[-1] % every:
        if scores.dim() > 2 and last.shape[-1] < every:  # the few channels of an image
            return torch.ones_like(scores, dtype=torch.bool)
        raise UserError("prune.weights", f"{name} has {last.shape[-1]} inputs, no multiple of {every}")
    parts = last.reshape(*last.shape[:-1], -1, every)
    best = parts.argsort(dim=-1, descending=True)[..., :kept]
    mask = torch.zeros_like(parts, dtype=torch.bool).scatter_(-1, best, True)
    return mask.flatten(-2).movedim(-1, 1)


def hold(model: nn.Module, masks: Mapping[str, Tensor]) -> list[RemovableHandle]:
    """Set masked weights to zero and keep them there through training.

    Their gradient is zero from now on, so momentum, decay and Adam's averages leave them where they are.
    After a resume, call it again before the optimiser is restored.

    Args:
        model: The network; its weights are changed in place.
        masks: What :func:`weight_masks` gave.

    Returns:
        Handles; ``remove()`` lets the weights go.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    handles = []
    for name, mask in masks.items():
        parameter, own = named[name], mask.to(named[name].device)
        with torch.no_grad():
            parameter.mul_(own)
        handle: RemovableHandle = parameter.register_hook(partial(torch.mul, own))  # type: ignore[no-untyped-call]
        handles.append(handle)
    return handles
