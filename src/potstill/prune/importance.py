"""How much each unit and each block matters, from a few calibration batches.

All sums are taken in float64 from tensors in float32, so that no square overflows, whatever the network is
stored in.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from potstill.errors import UserError
from potstill.models.heads import open_heads
from potstill.prune.groups import Group, Plan, Slice, Structure
from potstill.prune.removal import masked
from potstill.prune.settling import settled

__all__ = ["BLOCK_KINDS", "UNIT_KINDS", "Losses", "block_scores", "mean_loss", "unit_scores"]

Losses = Callable[[nn.Module], Iterator[Tensor]]
"""Runs a network over the calibration batches and gives the loss of each sample, ``(N,)``, batch by batch."""
UnitKind = Literal["taylor", "activation", "activation_weight", "magnitude"]
BlockKind = Literal["loss", "influence", "greedy"]
UNIT_KINDS: tuple[UnitKind, ...] = ("taylor", "activation", "activation_weight", "magnitude")
BLOCK_KINDS: tuple[BlockKind, ...] = ("loss", "influence", "greedy")


def mean_loss(model: nn.Module, losses: Losses) -> float:
    """The mean loss over all calibration samples."""
    with torch.no_grad():
        found = torch.cat([values.double().flatten() for values in losses(model)])
    return float(found.mean())


def unit_scores(
    model: nn.Module, groups: Sequence[Group], losses: Losses, kind: UnitKind = "taylor"
) -> dict[str, Tensor]:
    """A score for every unit of every group; the least may go first.

    With x the values of a unit where it is read, and w the weights that read it:

    - ``magnitude``: the L2 norm of all matrices' entries that write or read the unit;
    - ``activation``: the L2 mean over samples of the mean over positions of ``|x|``; of a head, ``|x|`` is
      the L2 norm of its output;
    - ``activation_weight``: the same times the norm of w;
    - ``taylor``: the mean over samples of ``(sum over positions of x dL/dx)^2``, the squared change of the
      loss, to first order, when the unit is set to 0.

    All but ``taylor`` are divided by their mean over the group, as layers differ in scale.

    Args:
        model: The network; a copy is scored, in float32 and eval mode.
        groups: What is scored.
        losses: The calibration; see :data:`Losses`.
        kind: Which score.

    Returns:
        ``(units,)`` float64 by name of the group.

    Raises:
        UserError: If a score is not finite.

    Reference:
        Molchanov, Mallya, Tyree, Frosio, Kautz, "Importance Estimation for Neural Network Pruning", 2019,
        https://arxiv.org/abs/1906.10771; Muralidharan and others, "Compact Language Models via Pruning and
        Knowledge Distillation", 2024, https://arxiv.org/abs/2407.14679
    """
    if not groups:
        return {}
    model = _ready(model)
    if kind == "magnitude":
        found = {group.name: _norm(model, group.slices, group.units) for group in groups}
    elif kind == "taylor":
        found = _taylor(model, groups, losses)
    else:
        found = _activation(model, groups, losses)
        if kind == "activation_weight":
            found = {
                group.name: found[group.name] * _norm(model, group.readers, group.units) for group in groups
            }
    for name, scores in found.items():
        if not bool(torch.isfinite(scores).all()):
            raise UserError(
                "prune.importance",
                f"the {kind} scores of {name} are not finite: the network overflows on the calibration data",
            )
    if kind == "taylor":
        return found
    return {name: scores / scores.mean().clamp(min=1e-30) for name, scores in found.items()}


def _ready(model: nn.Module) -> nn.Module:
    ready = copy.deepcopy(model).float().eval().requires_grad_(True)
    open_heads(ready)
    return ready


def _norm(model: nn.Module, slices: Sequence[Slice], units: int) -> Tensor:
    """L2 norm of each unit's entries in all matrices among ``slices``, ``(units,)``."""
    squares = torch.zeros(units, dtype=torch.float64)
    for piece in slices:
        weight = getattr(model.get_submodule(piece.module), piece.tensor).detach()
        if weight.dim() > 1:
            along = weight.double().movedim(piece.dim, 0).flatten(1).pow(2).sum(dim=1)
            squares += piece.summed(along.cpu())
    return squares.sqrt()


@contextmanager
def _reading(model: nn.Module, groups: Sequence[Group]) -> Iterator[dict[str, list[tuple[Slice, Tensor]]]]:
    """What the readers of each group are given in a forward pass, while the context lasts."""
    read: dict[str, list[tuple[Slice, Tensor]]] = {group.name: [] for group in groups}

    def keep(name: str, piece: Slice, inputs: tuple[Any, ...]) -> None:
        if all(other is not inputs[0] for _, other in read[name]):  # two that read one tensor: once
            read[name].append((piece, inputs[0]))

    handles = [
        model.get_submodule(piece.module).register_forward_pre_hook(
            lambda _, inputs, name=group.name, piece=piece: keep(name, piece, inputs)
        )
        for group in groups
        for piece in group.readers
    ]
    try:
        yield read
    finally:
        for handle in handles:
            handle.remove()


def _by_sample(model: nn.Module, piece: Slice, values: Tensor) -> Tensor:
    """``(N, ..., C)`` or ``(N, C, ...)`` to ``(N, C, positions)``."""
    linear = isinstance(model.get_submodule(piece.module), nn.Linear)
    return values.movedim(-1 if linear else 1, 1).flatten(2) if values.dim() > 2 else values.unsqueeze(-1)


def _activation(model: nn.Module, groups: Sequence[Group], losses: Losses) -> dict[str, Tensor]:
    squares = {group.name: torch.zeros(group.units, dtype=torch.float64) for group in groups}
    samples = 0
    with torch.no_grad(), _reading(model, groups) as read:
        for values in losses(model):
            samples += len(values)
            for group in groups:
                for piece, tensor in read[group.name]:
                    sizes = _sizes(group, piece, _by_sample(model, piece, tensor).double().cpu())
                    squares[group.name] += sizes.pow(2).sum(dim=0)
                read[group.name].clear()
    return {name: (square / max(1, samples)).sqrt() for name, square in squares.items()}


def _sizes(group: Group, piece: Slice, values: Tensor) -> Tensor:
    """How large each unit is in each sample: ``(N, C, positions)`` to ``(N, units)``."""
    if group.axis in ("heads", "kv_groups"):
        norms = piece.summed(values.pow(2).transpose(1, 2)).sqrt()  # (N, positions, units)
        return norms.mean(dim=1)
    return piece.summed(values.abs().mean(dim=2))


def _taylor(model: nn.Module, groups: Sequence[Group], losses: Losses) -> dict[str, Tensor]:
    squares = {group.name: torch.zeros(group.units, dtype=torch.float64) for group in groups}
    samples = 0
    with torch.enable_grad(), _reading(model, groups) as read:
        for values in losses(model):
            tensors = [tensor for pairs in read.values() for _, tensor in pairs]
            gradients = torch.autograd.grad(values.sum(), tensors, allow_unused=True)
            given = dict(zip(map(id, tensors), gradients, strict=True))
            samples += len(values)
            for group in groups:
                change = torch.zeros(len(values), group.units, dtype=torch.float64)
                for piece, tensor in read[group.name]:
                    gradient = given[id(tensor)]
                    if gradient is not None:
                        both = _by_sample(model, piece, tensor.detach() * gradient).sum(dim=2).double().cpu()
                        change += piece.summed(both)
                squares[group.name] += change.pow(2).sum(dim=0)
                read[group.name].clear()
    return {name: square / max(1, samples) for name, square in squares.items()}


def block_scores(
    model: nn.Module, structure: Structure, losses: Losses, kind: BlockKind = "loss"
) -> dict[str, float]:
    """A score for every block; the least may go first.

    ``loss`` is the mean loss without the block; ``influence`` is 1 - the cosine of what enters and what
    leaves it, over channels, averaged over positions and samples; ``greedy`` is a rank: the block that costs
    the least loss goes first, then the others are tried again without it, and so on.

    Raises:
        UserError: If a score is not finite.

    Reference:
        Men and others, "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect",
        2024, https://arxiv.org/abs/2403.03853
    """
    model = _ready(model)
    if kind == "influence":
        found = _influence(model, structure.blocks, losses)
    elif kind == "greedy":
        found = _greedy(model, structure, losses)
    else:
        found = {block: _loss_without(model, (block,), structure, losses) for block in structure.blocks}
    for block, score in found.items():
        if not math.isfinite(score):
            raise UserError(
                "prune.layer_importance",
                f"the {kind} score of {block} is not finite: the network overflows on the calibration data",
            )
    return found


def _loss_without(model: nn.Module, blocks: Sequence[str], structure: Structure, losses: Losses) -> float:
    return mean_loss(settled(masked(model, Plan(tuple(blocks)), structure), losses), losses)


def _greedy(model: nn.Module, structure: Structure, losses: Losses) -> dict[str, float]:
    gone: list[str] = []
    while len(gone) < len(structure.blocks):
        left = [block for block in structure.blocks if block not in gone]
        without = {block: _loss_without(model, (*gone, block), structure, losses) for block in left}
        if not all(map(math.isfinite, without.values())):
            return without  # ranks would hide it
        gone.append(min(left, key=without.__getitem__))
    return {block: float(rank) for rank, block in enumerate(gone)}


def _influence(model: nn.Module, blocks: Sequence[str], losses: Losses) -> dict[str, float]:
    sums: dict[str, list[float]] = {block: [] for block in blocks}

    def note(block: str, inputs: tuple[Any, ...], output: Any) -> None:
        before, after = inputs[0], output[0] if isinstance(output, tuple) else output
        dim = 1 if before.dim() == 4 else -1
        cosine = cosine_similarity(before.float(), after.float(), dim=dim)
        sums[block].extend((1 - cosine).reshape(len(cosine), -1).mean(dim=1).tolist())

    handles = [
        model.get_submodule(block).register_forward_hook(
            lambda _, inputs, output, block=block: note(block, inputs, output)
        )
        for block in blocks
    ]
    with torch.no_grad():
        for _ in losses(model):
            pass
    for handle in handles:
        handle.remove()
    return {block: sum(values) / max(1, len(values)) for block, values in sums.items()}
