"""Take a traced network apart at its outputs: one graph a segment, and the tensors that each hands on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

__all__ = ["CannotCutError", "Segments", "split"]

_SIZE = torch.ops.aten.sym_size.int


@dataclass(frozen=True)
class Segments:
    """A network in parts.

    Attributes:
        parts: ``parts[0](inputs)`` gives the tensor at the first cut and then all that the next part needs;
            ``parts[1](*needed)`` goes on from there; the last gives ``(output,)``.
        axes: For each part but the last and each tensor that it hands on, the axis of the samples, ``None``
            where the tensor is the same for all.
        reason: Why the network could not be cut; then there are no parts.
    """

    parts: tuple[nn.Module, ...]
    axes: tuple[tuple[int | None, ...], ...]
    reason: str = ""

    def keep(self, part: int, needed: Sequence[Tensor], rows: Tensor) -> tuple[Tensor, ...]:
        """What ``parts[part]`` handed on, of the samples ``rows`` only."""
        return tuple(
            tensor if axis is None else tensor.index_select(axis, rows)
            for tensor, axis in zip(needed, self.axes[part], strict=True)
        )


class CannotCutError(Exception):
    """Why not, in words."""


def split(traced: fx.GraphModule) -> Segments:
    """Take a traced network apart at its outputs, which must be in the order in which they are computed.

    Args:
        traced: What ``torch.export`` made of a network with one input and any number of outputs.

    Raises:
        CannotCutError: If what one part needs cannot be handed on by those before it.
    """
    nodes = [node for node in traced.graph.nodes if node.op != "get_attr"]
    position = {node: number for number, node in enumerate(nodes)}
    ends: Sequence[fx.Node] = nodes[-1].args[0]
    places = [position[end] for end in ends]
    if places != sorted(set(places)):
        raise CannotCutError("its layers are not computed in the order of the cuts, or two are at one place")
    home: dict[fx.Node, int] = {}
    for node in nodes[:-1]:
        number = next((k for k, place in enumerate(places) if position[node] <= place), len(ends) - 1)
        # a part of a list goes where the list is: what is handed on are tensors
        home[node] = home[node.args[0]] if "getitem" in str(node.target) else number
    inputs = next(node for node in nodes if node.op == "placeholder")
    parts, axes, given = [], [], [inputs]
    for number, end in enumerate(ends):
        needed = _needed(home, number, ends) if number < len(ends) - 1 else []
        builder = _Builder(traced, inputs.meta["val"].shape[0], home, number, given)
        parts.append(builder.build([end, *needed]))
        given = needed
        if number < len(ends) - 1:
            axes.append(tuple(_axis(node, inputs.meta["val"].shape[0]) for node in needed))
    return Segments(tuple(parts), tuple(axes))


def _needed(home: Mapping[fx.Node, int], number: int, ends: Sequence[fx.Node]) -> list[fx.Node]:
    """Tensors computed up to segment ``number`` that later ones use, sizes looked up afresh."""
    found: dict[fx.Node, None] = {}
    for node, place in home.items():
        if place > number:
            for used in _tensors_behind(node, home):
                if home[used] <= number:
                    found[used] = None
    for end in ends[number + 1 :]:
        if home[end] <= number:
            found[end] = None
    if any(not isinstance(node.meta.get("val"), Tensor) for node in found):
        raise CannotCutError("something other than tensors goes across a cut")
    return list(found)


def _tensors_behind(node: fx.Node, home: Mapping[fx.Node, int]) -> Iterator[fx.Node]:
    """What a node takes in, looking through numbers (sizes), which each segment computes for itself."""
    for used in node.all_input_nodes:
        if used in home and _is_number(used):
            if not _is_batch_size(used):
                yield from _tensors_behind(used, home)
        elif used in home:
            yield used


def _is_number(node: fx.Node) -> bool:
    return isinstance(
        node.meta.get("val"), torch.SymInt | int | float | bool | torch.SymFloat | torch.SymBool
    )


def _is_batch_size(node: fx.Node) -> bool:
    return node.target is _SIZE and bool(node.args[1] == _axis_of_size(node))


def _axis_of_size(node: fx.Node) -> int | None:
    tensor, size = node.args[0], node.meta["val"]
    assert isinstance(tensor, fx.Node)
    plain = isinstance(size, torch.SymInt) and size.node.expr.is_Symbol
    return _axis(tensor, size) if plain else None


def _axis(node: fx.Node, batch: Any) -> int | None:
    """Axis of the samples; ``None`` where the tensor does not depend on their number."""
    symbol = batch.node.expr
    shape = node.meta["val"].shape
    dynamic = [axis for axis, size in enumerate(shape) if isinstance(size, torch.SymInt)]
    if not dynamic:
        return None
    if len(dynamic) > 1 or shape[dynamic[0]].node.expr != symbol:
        raise CannotCutError(
            f"a tensor {tuple(map(str, shape))} goes across a cut, its samples not along one axis"
        )
    return dynamic[0]


class _Builder:
    """Makes the module of one segment out of the traced network's graph."""

    def __init__(
        self,
        traced: fx.GraphModule,
        batch: Any,
        home: Mapping[fx.Node, int],
        number: int,
        given: list[fx.Node],
    ) -> None:
        self.traced = traced
        self.batch = batch
        self.home = home
        self.number = number
        self.graph = fx.Graph()
        self.root = nn.Module()
        self.names: dict[str, str] = {}
        self.made = {node: self.graph.placeholder(f"given_{place}") for place, node in enumerate(given)}
        self.given = list(given)

    def build(self, results: Sequence[fx.Node]) -> nn.Module:
        for node, place in self.home.items():
            if place == self.number and node.op not in ("placeholder", "output") and node.users:
                self._value(node)
        self.graph.output(tuple(self._value(node) for node in results))
        self.graph.eliminate_dead_code()
        return fx.GraphModule(self.root, self.graph)

    def _value(self, node: fx.Node) -> fx.Node:
        if node not in self.made:
            if node.op == "get_attr":
                self.made[node] = self.graph.get_attr(self._weight(str(node.target)))
            elif node.op == "placeholder" or (self.home[node] < self.number and not _is_number(node)):
                raise CannotCutError(f"'{node.name}' would be needed after a cut")
            elif _is_batch_size(node):
                self.made[node] = self._batch_size()
            else:
                self.made[node] = self.graph.node_copy(node, self._value)
        return self.made[node]

    def _batch_size(self) -> fx.Node:
        for node in self.given:
            axis = _axis(node, self.batch)
            if axis is not None:
                return self.graph.call_function(_SIZE, (self.made[node], axis))
        raise CannotCutError("nothing that tells the number of samples goes across a cut")

    def _weight(self, target: str) -> str:
        """A flat name for a weight: its look-up costs time in every pass."""
        if target not in self.names:
            value: Any = self.traced
            for name in target.split("."):
                value = getattr(value, name)
            self.names[target] = f"value_{len(self.names)}"
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                self.root.register_buffer(self.names[target], value)
            else:
                setattr(self.root, self.names[target], value)
        return self.names[target]
