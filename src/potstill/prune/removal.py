"""Units and blocks are taken out of a network, or masked: two ways to the same outputs."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from potstill.errors import UserError
from potstill.models.architecture import Passing
from potstill.models.heads import fit_heads
from potstill.prune.groups import Group, Plan, Slice, Structure

__all__ = ["masked", "removed", "structure_after"]

Dimension = tuple[str, str, int]
"""Path of a module, name of its tensor, number of the dimension."""


def removed(model: nn.Module, plan: Plan, structure: Structure) -> nn.Module:
    """A smaller copy of ``model`` without the blocks and units of ``plan``.

    Blocks leave a :class:`Passing` behind, so that all other paths stay as they are. Weights that several
    modules share stay shared.

    Args:
        model: The network; it is not changed.
        plan: What goes.
        structure: Where the units lie.

    Raises:
        UserError: If nothing would be left of a group, or shared weights would be cut in two ways.
    """
    kept = _kept(model, plan, structure)
    small = copy.deepcopy(model)
    for path in plan.blocks:
        small.set_submodule(path, Passing())
    _cut(small, kept)
    fit_heads(small)
    return small


def structure_after(model: nn.Module, plan: Plan, structure: Structure) -> Structure:
    """What can go from ``removed(model, plan, structure)``: no need to trace it anew."""
    kept = _kept(model, plan, structure)

    def shifted(piece: Slice, units: Tensor) -> Slice:
        mask = kept.get((piece.module, piece.tensor, piece.dim))
        index = piece.index[units]
        moved = index if mask is None else (mask.cumsum(0) - 1)[index]
        return replace(piece, index=torch.where(index < 0, index, moved))

    groups = []
    for group in structure.groups:
        gone = plan.units.get(group.name, ())
        units = torch.tensor([unit for unit in range(group.units) if unit not in set(gone)])
        pieces = [
            tuple(shifted(piece, units) for piece in side if not _inside(piece.module, plan.blocks))
            for side in (group.writers, group.readers)
        ]
        if pieces[0] and pieces[1]:
            groups.append(replace(group, units=len(units), writers=pieces[0], readers=pieces[1]))
    blocks = tuple(block for block in structure.blocks if block not in plan.blocks)
    return Structure(tuple(groups), blocks, structure.notes)


def _kept(model: nn.Module, plan: Plan, structure: Structure) -> dict[Dimension, Tensor]:
    """What is left of each dimension that loses something, ``(size,)`` bool."""
    kept: dict[Dimension, Tensor] = {}
    for group, units in _chosen(plan, structure):
        if len(units) >= group.units:
            raise UserError("prune", f"all {group.units} units of {group.name} would be removed")
        for piece in group.slices:
            if not _inside(piece.module, plan.blocks):
                size = _tensor(model, piece).shape[piece.dim]
                mask = kept.setdefault(
                    (piece.module, piece.tensor, piece.dim), torch.ones(size, dtype=torch.bool)
                )
                mask[piece.positions(units)] = False
    return kept


def _chosen(plan: Plan, structure: Structure) -> Iterator[tuple[Group, tuple[int, ...]]]:
    for name, units in plan.units.items():
        if units:
            yield structure.group(name), units


def _inside(path: str, blocks: Sequence[str]) -> bool:
    return any(path == block or path.startswith(f"{block}.") for block in blocks)


def _tensor(model: nn.Module, piece: Slice) -> Tensor:
    tensor = getattr(model.get_submodule(piece.module), piece.tensor)
    assert isinstance(tensor, Tensor)
    return tensor


def _cut(model: nn.Module, kept: dict[Dimension, Tensor]) -> None:
    """Select along all marked dimensions; a tensor that occurs twice is cut once."""
    by_tensor: dict[tuple[str, str], dict[int, Tensor]] = {}
    for (owner, name, dim), mask in kept.items():
        by_tensor.setdefault((owner, name), {})[dim] = mask
    _check_shared(model, by_tensor)
    shared: dict[int, tuple[dict[int, Tensor], Tensor]] = {}
    old: list[Tensor] = []  # held, so that no identity is given away twice
    for (path, name), masks in by_tensor.items():
        module = model.get_submodule(path)
        tensor = getattr(module, name)
        old.append(tensor)
        if id(tensor) in shared:
            before, smaller = shared[id(tensor)]
            if before.keys() != masks.keys() or any(
                not torch.equal(before[dim], masks[dim]) for dim in masks
            ):
                raise UserError("prune", f"{path}.{name} is shared, and would be cut in two different ways")
        else:
            smaller = _selected(tensor, masks)
            shared[id(tensor)] = (masks, smaller)
        setattr(module, name, smaller)
        _tell(module)


def _check_shared(model: nn.Module, cut: Collection[tuple[str, str]]) -> None:
    """Refuse to cut a tensor in one module and leave it whole in another."""
    found = {id(getattr(model.get_submodule(path), name)): (path, name) for path, name in cut}
    for path, module in model.named_modules():
        for name, tensor in module.named_parameters(recurse=False):
            if id(tensor) in found and (path, name) not in cut:
                one = ".".join(found[id(tensor)])
                raise UserError("prune", f"{one} is shared with {path}.{name}, which would stay whole")


def _selected(tensor: Tensor, masks: dict[int, Tensor]) -> Tensor:
    data = tensor.detach()
    for dim, mask in masks.items():
        data = data.index_select(dim, mask.nonzero().flatten().to(data.device))
    data = data.clone(memory_format=torch.preserve_format)
    return (
        nn.Parameter(data, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else data
    )


def _tell(module: nn.Module) -> None:
    """Bring the sizes that a module states in line with its weights."""
    weight = getattr(module, "weight", None)
    if isinstance(module, _ConvTransposeNd):
        module.in_channels, module.out_channels = module.weight.shape[:2]
    elif isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and weight is not None:
        filters = module.out_channels // module.groups
        module.groups = weight.shape[0] // filters if module.groups > 1 else 1
        module.out_channels = weight.shape[0]
        module.in_channels = weight.shape[1] * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        module.num_features = len(module.weight)
    elif isinstance(module, nn.GroupNorm) and weight is not None:
        module.num_channels = len(weight)
    elif isinstance(module, nn.LayerNorm | nn.RMSNorm) and weight is not None:
        module.normalized_shape = tuple(weight.shape)
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = module.weight.shape


def is_transposed(module: nn.Module) -> bool:
    """Whether a module is a transposed convolution, whose weights are ``(in, out, ...)``."""
    return isinstance(module, _ConvTransposeNd)


def masked(model: nn.Module, plan: Plan, structure: Structure) -> nn.Module:
    """A copy of ``model`` of the same size in which nothing reads the units of ``plan``.

    Blocks of the plan are left out as in :func:`removed`.
    """
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for group, units in _chosen(plan, structure):
            for piece in group.readers:
                if not _inside(piece.module, plan.blocks):
                    _tensor(copied, piece).index_fill_(piece.dim, piece.positions(units), 0.0)
    for path in plan.blocks:
        copied.set_submodule(path, Passing())
    return copied
