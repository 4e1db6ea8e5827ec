"""A shallower network from a deep one: some of its layers, with their weights."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from torch import nn

from potstill.errors import UserError
from potstill.losses import Range

__all__ = ["InitConfig", "chosen_layers", "with_layers"]


@dataclass(frozen=True, kw_only=True)
class InitConfig:
    """Which of the teacher's layers a student starts from; everything around them is kept."""

    layers: tuple[Annotated[int, Range(least=0)], ...] | None = None
    """Numbers of the layers, from 0, in ascending order."""
    every: Annotated[int, Range(least=2)] | None = None
    """One of so many: 2 takes layers 0, 2, 4, ..."""

    def __post_init__(self) -> None:
        if (self.layers is None) == (self.every is None):
            raise ValueError("expected either layers or every")


def chosen_layers(config: InitConfig, count: int, where: str) -> list[int]:
    """Numbers of the layers that a choice names, of ``count``.

    Raises:
        UserError: If a number is too high, or they do not ascend.

    >>> chosen_layers(InitConfig(every=2), 5, "student.init"), chosen_layers(InitConfig(layers=(0, 4)), 5, "")
    ([0, 2, 4], [0, 4])
    """
    if config.every is not None:
        return list(range(0, count, config.every))
    layers = list(config.layers or ())
    if not layers or layers != sorted(set(layers)) or layers[-1] >= count:
        raise UserError(f"{where}.layers", f"expected ascending numbers below {count}, got {layers}")
    return layers


def layer_list(model: nn.Module, where: str) -> tuple[nn.Module, str]:
    """The module that holds the layers of a transformer, and its attribute: the longest list of one class.

    Raises:
        UserError: If there is none.
    """
    best, length = None, 1
    for owner in model.modules():
        for name, child in owner.named_children():
            alike = isinstance(child, nn.ModuleList) and len({type(each) for each in child}) == 1
            if alike and len(child) > length:  # type: ignore[arg-type]
                best, length = (owner, name), len(child)  # type: ignore[arg-type]
    if best is None:
        raise UserError(where, f"{type(model).__name__} has no list of layers to choose from")
    return best


def with_layers(model: nn.Module, config: InitConfig, where: str) -> nn.Module:
    """A copy of a network with only some of its layers.

    Numbers that transformers keeps of a layer's place, and the depth in its configuration, are set anew.

    Args:
        model: A transformer; it stays as it is.
        config: Which layers.
        where: Dotted key for messages.

    Raises:
        UserError: If it has no list of layers, or not those.

    >>> deep = nn.Sequential(nn.Embedding(5, 2), nn.Sequential())
    >>> deep[1].layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(4))
    >>> shallow = with_layers(deep, InitConfig(layers=(0, 3)), "student.init")
    >>> len(shallow[1].layers), bool((shallow[1].layers[1].weight == deep[1].layers[3].weight).all())
    (2, True)
    """
    made = copy.deepcopy(model)
    owner, name = layer_list(made, where)
    layers: Any = getattr(owner, name)
    kept = chosen_layers(config, len(layers), where)
    setattr(owner, name, nn.ModuleList(layers[place] for place in kept))
    for place, layer in enumerate(getattr(owner, name)):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = place
    _shorten(getattr(made, "config", None), kept)
    return made


def _shorten(config: Any, kept: Sequence[int]) -> None:
    if config is None:
        return
    count = config.num_hidden_layers
    for key, value in list(vars(config).items()):
        if isinstance(value, list | tuple) and len(value) == count and key.startswith("layer"):
            setattr(config, key, [value[place] for place in kept])  # what kind of attention each has
    config.num_hidden_layers = len(kept)
    if getattr(config, "kept_layers", None) is not None:
        config.kept_layers = None  # what pruning left of an original before
