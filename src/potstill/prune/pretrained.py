"""A smaller transformers model that ``from_pretrained`` loads anywhere: cut weights, their configuration."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import nn

from potstill.errors import UserError
from potstill.models.architecture import take_hooks
from potstill.prune.families import Family, family_of, layers_path
from potstill.prune.groups import Plan, Structure
from potstill.prune.removal import removed

__all__ = ["removed_pretrained"]

T = TypeVar("T")


def removed_pretrained(model: nn.Module, plan: Plan, structure: Structure) -> nn.Module:
    """A new model of the same class without the layers and units of ``plan``.

    Layers are numbered anew, tied embeddings stay tied, and the configuration says what is left, so the
    model is saved by ``save_pretrained`` and loaded without Potstill; only where heads or hidden width went
    from an encoder, whose configuration cannot say so, Potstill alone builds it again. Where the hidden width
    shrinks, the norms over it are scaled by the root of the ratio: width that held zeros may go unnoticed (of
    layer norms, where what is left has mean 0).

    Args:
        model: The model; it is not changed.
        plan: What goes; from every layer that stays equally many units of each kind.
        structure: From :func:`~potstill.prune.family_parts.family_structure` of the model.

    Raises:
        UserError: If widths would differ between layers, no layer would be left, or the configuration
            refuses the sizes.
    """
    family = family_of(model)
    counts = _counts(plan, structure)
    cut = removed(model, plan, structure)
    path = layers_path(model, family)
    kept = [
        number
        for number in range(len(model.get_submodule(path)))  # type: ignore[arg-type]
        if f"{path}.{number}" not in plan.blocks
    ]
    if not kept:
        raise UserError("prune", "all layers would be removed")
    small = _built(model, family, counts, kept)
    if not family.sized and {"kv_groups", "hidden"} & counts.keys():
        _narrowed(small, cut, path, kept)
    take_hooks(small, cut)
    small.load_state_dict(_renumbered(cut.state_dict(), path, kept))
    if "hidden" in counts:
        hidden = structure.group("hidden")
        gone = tuple(f"{block}." for block in plan.blocks)
        writers = {piece.path: piece for piece in hidden.writers if not piece.module.startswith(gone)}
        ratio = hidden.units / (hidden.units - counts["hidden"])
        _rescale(small, _renumbered(writers, path, kept), ratio)
    done: nn.Module = small.train(model.training)
    return done


def _counts(plan: Plan, structure: Structure) -> dict[str, int]:
    """Units that go, by what they are; the same from every layer that stays."""
    found: dict[str, set[int]] = {}
    for group in structure.groups:
        if not group.within(plan.blocks):
            found.setdefault(group.together, set()).add(len(plan.units.get(group.name, ())))
    for together, counts in found.items():
        if len(counts) > 1:
            raise UserError(
                "prune",
                f"expected equally many of {together} from every layer, as the configuration has one number, "
                f"got {min(counts)} to {max(counts)}",
            )
    return {together: counts.pop() for together, counts in found.items() if max(counts)}


def _built(model: Any, family: Family, counts: Mapping[str, int], kept: list[int]) -> Any:
    """A model of the smaller configuration, with weights of its own that do not matter."""
    config = copy.deepcopy(model.config)
    if len(kept) < (depth := getattr(config, family.depth)):
        before = getattr(config, "kept_layers", None) or {"layers": list(range(depth)), "of": depth}
        config.kept_layers = {**before, "layers": [before["layers"][number] for number in kept]}
    setattr(config, family.depth, len(kept))
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        config.layer_types = [kinds[number] for number in kept]
    try:
        if family.sized:
            config.head_dim = family.head_size(model)
            pairs = config.num_key_value_heads - counts.get("kv_groups", 0)
            each = config.num_attention_heads // config.num_key_value_heads - counts.get("heads", 0)
            hidden = config.hidden_size - counts.get("hidden", 0)
            config.num_key_value_heads, config.num_attention_heads = pairs, pairs * each
            config.hidden_size = hidden
        setattr(config, family.neurons, getattr(config, family.neurons) - counts.get("mlp", 0))
        if hasattr(config, "validate"):
            config.validate()
        with torch.device(model.device):
            small = type(model)(config)
    except Exception as error:  # its own checks raise errors of several libraries
        reason = " ".join(str(error).split())
        raise UserError("prune", f"{type(config).__name__} refuses these sizes: {reason}") from error
    if getattr(model, "generation_config", None) is not None:
        small.generation_config = copy.deepcopy(model.generation_config)
    return small.to(device=model.device, dtype=model.dtype)


def _narrowed(small: nn.Module, cut: nn.Module, path: str, kept: list[int]) -> None:
    """Modules of fewer heads or channels as they were cut, where the configuration cannot say so."""
    parts = {name: part for name, part in cut.named_modules() if [*part.parameters(recurse=False)]}
    for name, part in _renumbered(parts, path, kept).items():
        sizes = [
            [tensor.shape for tensor in each.parameters(recurse=False)]
            for each in (part, small.get_submodule(name))
        ]
        if sizes[0] != sizes[1]:
            small.set_submodule(name, copy.deepcopy(part))


def _renumbered(named: Mapping[str, T], path: str, kept: list[int]) -> dict[str, T]:
    """What has names, such as weights, under the numbers that the layers now have."""
    numbers = {str(old): str(new) for new, old in enumerate(kept)}
    found = {}
    for name, each in named.items():
        if name.startswith(f"{path}."):
            number, _, rest = name.removeprefix(f"{path}.").partition(".")
            name = f"{path}.{numbers[number]}.{rest}"
        found[name] = each
    return found


def _rescale(model: Any, writers: Iterable[str], ratio: float) -> None:
    """Make up for a hidden width that is smaller by ``ratio``, where computing looks at the width.

    Norms see fewer numbers: their outputs are brought back, but for the bias of layer norms. Gemma's norms
    scale by one more than their weight; its embeddings are multiplied by the root of the width, and are often
    the output layer too, whose input the last norm scales.
    """
    factor = math.sqrt(ratio)
    gemma = model.config.model_type == "gemma"
    head = model.get_output_embeddings()
    tied = head is not None and head.weight is model.get_input_embeddings().weight
    for name in writers:
        parameter, module = model.get_parameter(name), name.rpartition(".")[0].rpartition(".")[2]
        if not name.endswith(".weight") or parameter.dim() > 1:
            continue
        if not gemma:
            parameter.data.mul_(factor)
        elif module != "norm" or not tied:
            parameter.data.add_(1.0).mul_(factor).sub_(1.0)
    if gemma:
        model.get_input_embeddings().weight.data.mul_(factor)
