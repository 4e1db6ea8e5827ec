"""The same three steps for every network: what may go, taking it out, and what may go from what is left.

A model of a known family of transformers stays one of them: its layers are numbered anew and its
configuration says what is left. From any other network parts are taken as tracing found them.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from potstill.batch import Inputs
from potstill.errors import UserError
from potstill.models.architecture import take_hooks
from potstill.prune.families import is_known
from potstill.prune.family_parts import family_structure
from potstill.prune.groups import Axis, Plan, Structure
from potstill.prune.pretrained import removed_pretrained
from potstill.prune.removal import removed, structure_after
from potstill.prune.structure import find_structure

__all__ = ["check_renewable", "cut", "structure_left", "structure_of", "untrained", "usual_axes"]


def usual_axes(model: nn.Module) -> tuple[Axis, ...]:
    """What goes where a recipe does not say: layers, and neurons or channels."""
    return ("layers", "mlp") if is_known(model) else ("layers", "channels")


def structure_of(model: nn.Module, example: Inputs, axes: Sequence[Axis]) -> Structure:
    """What may go from ``model``.

    Args:
        model: The network; left as it is.
        example: A small batch of its inputs; looked at where its family is not known.
        axes: What may go.

    Raises:
        UserError: If nothing can go, or the network has no such axis.
    """
    if is_known(model):
        return family_structure(model, axes)
    found = find_structure(model, example, axes)
    if not hasattr(model, "save_pretrained"):
        return found
    alone = (
        f"the configuration of {type(model).__name__}, of no family that is known here, cannot say what "
        "goes, so only Potstill can load what is left"
    )
    return replace(found, notes=(*found.notes, alone))


def cut(model: nn.Module, plan: Plan, structure: Structure) -> nn.Module:
    """A smaller copy of ``model`` without the blocks and units of ``plan``.

    Raises:
        UserError: If the plan does not fit the network.
    """
    return (removed_pretrained if structure.family else removed)(model, plan, structure)


def structure_left(
    model: nn.Module, plan: Plan, structure: Structure, small: nn.Module, axes: Sequence[Axis]
) -> Structure:
    """What may go from ``small``, which is ``cut(model, plan, structure)``."""
    if structure.family:
        return family_structure(small, axes)
    return structure_after(model, plan, structure)


def untrained(model: nn.Module, seed: int) -> nn.Module:
    """A network of the same shape with fresh weights, on the CPU.

    Raises:
        UserError: If it has weights of its own that no module of it knows how to begin.
    """
    torch.manual_seed(seed)
    config: Any = getattr(model, "config", None)
    if is_known(model):
        kind: Any = type(model)
        fresh = kind(copy.deepcopy(config))
        take_hooks(fresh, copy.deepcopy(model))
        return _resized(fresh, model)
    check_renewable(model)
    made = copy.deepcopy(model).to("cpu")
    for module in made.modules():
        reset: Any = getattr(module, "reset_parameters", None)
        if reset is not None:
            reset()
    return made


def check_renewable(model: nn.Module) -> None:
    """Refuse a network that :func:`untrained` cannot make again.

    Raises:
        UserError: If it has weights of its own that no module of it knows how to begin.
    """
    for path, module in model.named_modules() if not is_known(model) else ():
        own = next(module.parameters(recurse=False), None) is not None
        if own and not hasattr(module, "reset_parameters"):
            name = path or type(module).__name__
            raise UserError("prune.rivals", f"scratch cannot be made: {name} has no reset_parameters()")


def _resized(fresh: nn.Module, model: nn.Module) -> nn.Module:
    """``fresh`` with modules of the sizes that they have in ``model``, where no configuration says so."""
    for path, module in list(fresh.named_modules()):
        wanted: Any = model.get_submodule(path)
        sizes = [[tensor.shape for tensor in each.parameters(recurse=False)] for each in (module, wanted)]
        if sizes[0] != sizes[1]:
            part = copy.deepcopy(wanted).to("cpu")
            part.reset_parameters()
            fresh.set_submodule(path, part)
    return fresh.train(model.training)
