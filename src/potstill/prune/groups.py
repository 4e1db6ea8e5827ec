"""What can go from a network: units that many tensors share, and whole blocks.

A unit (a channel, a neuron, a head) is written by some weights and read by others. A
:class:`Group` lists where each of its units lies in each tensor: scores, masks and removal all read this
one table. Masking a unit (its readers' weights at 0) and removing it are then the same function.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Axis", "Group", "Plan", "Slice", "Structure"]

Axis = Literal["layers", "channels", "mlp", "heads", "kv_groups", "hidden"]


@dataclass(frozen=True)
class Slice:
    """Where the units of a group lie in one tensor.

    Attributes:
        module: Path of the module that owns the tensor.
        tensor: ``weight``, ``bias``, ``running_mean``, ...
        dim: Dimension along which the units lie.
        index: ``(units, k)`` positions of each unit along it; -1 where a unit has fewer than k.
    """

    module: str
    tensor: str
    dim: int
    index: Tensor

    @property
    def path(self) -> str:
        """Name of the tensor in a state dict."""
        return f"{self.module}.{self.tensor}"

    def positions(self, units: Sequence[int]) -> Tensor:
        """All positions of some units along the dimension, ``(n,)``."""
        index = self.index[list(units)].flatten()
        return index[index >= 0]

    def summed(self, values: Tensor) -> Tensor:
        """Sums over the positions of each unit: ``(..., size)`` to ``(..., units)``."""
        nothing = values.new_zeros(*values.shape[:-1], 1)
        return torch.cat([values, nothing], dim=-1)[..., self.index].sum(dim=-1)  # -1 reads the zero


@dataclass(frozen=True)
class Group:
    """Units that are removed one by one, each from all tensors at once.

    Attributes:
        name: Path of the module that the units come from.
        axis: What they are.
        units: How many there are.
        writers: Slices of what makes them.
        readers: Slices of what reads them; with zeros there a unit is as good as gone.
        together: Groups of one such name lose equally many units.
        left: How many units may be left, ascending; any number where it is empty.
    """

    name: str
    axis: Axis
    units: int
    writers: tuple[Slice, ...]
    readers: tuple[Slice, ...]
    together: str = ""
    left: tuple[int, ...] = ()

    @property
    def slices(self) -> tuple[Slice, ...]:
        """All of them."""
        return (*self.writers, *self.readers)

    def within(self, blocks: Sequence[str]) -> bool:
        """Whether the units come from inside one of ``blocks``."""
        return any(self.name == block or self.name.startswith(f"{block}.") for block in blocks)


@dataclass(frozen=True)
class Structure:
    """All that may be removed from one network.

    Attributes:
        groups: Units.
        blocks: Paths of blocks that can be left out, as what enters fits what leaves.
        notes: What stays whole, and why.
        family: The network is one of transformers' and stays one: what is left is numbered and sized anew.
    """

    groups: tuple[Group, ...] = ()
    blocks: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    family: bool = False

    def group(self, name: str) -> Group:
        """The group of that name."""
        return next(group for group in self.groups if group.name == name)


@dataclass(frozen=True)
class Plan:
    """What is to go, as plain data.

    Attributes:
        blocks: Paths of blocks.
        units: Numbers of units by group.
    """

    blocks: tuple[str, ...] = ()
    units: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.blocks) or any(self.units.values())
