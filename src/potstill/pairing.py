"""Which layer of the student learns from which layer of the teacher.

``auto`` goes by stage: the last module at each spatial size before the maps shrink, and by depth for
networks of tokens. What it chose, and why, is part of the plan that a run prints.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from potstill.adapters import kind_of
from potstill.errors import UserError, nearest
from potstill.taps import INPUT, first_tensor, version_of

__all__ = ["LayerShape", "Layers", "Pair", "auto_pairs", "explicit_pairs", "record"]

Layers = str | Sequence[str | Sequence[str]] | Mapping[str, str]


@dataclass(frozen=True)
class LayerShape:
    """What one module gave for an example.

    Attributes:
        path: Its path in the network; ``path:input`` for what went into it.
        kind: ``maps``, ``tokens``, ``vector`` or ``other``.
        shape: Shape of the tensor, batch first.
        stable: It ran once and nothing overwrote its tensor, so it can be tapped.
        began: When its module began, counted in tensors seen before.
        ended: When its module ended, on the same clock.
    """

    path: str
    kind: str
    shape: tuple[int, ...]
    stable: bool = True
    began: int = 0
    ended: int = 0


@dataclass(frozen=True)
class Pair:
    """A layer of the student and the layer of the teacher that it is compared with.

    Attributes:
        student: Path in the student.
        teacher: Path in the teacher.
        reason: Why these two.
    """

    student: str
    teacher: str
    reason: str


@dataclass(frozen=True)
class _Seen:
    """One tensor on its way through a network."""

    path: str
    tensor: Tensor
    version: int
    began: int
    ended: int


def _begin(seen: list[_Seen], began: dict[str, int], path: str, _module: nn.Module, _args: Any) -> None:
    began[path] = len(seen)


def _end(
    seen: list[_Seen],
    began: dict[str, int],
    path: str,
    _module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    output: Any,
) -> None:
    ended = len(seen)
    for name, value in ((path + INPUT, args or kwargs), (path, output)):
        tensor = first_tensor(value)
        if tensor is not None:
            seen.append(_Seen(name, tensor, version_of(tensor), began[path], ended))


def record(model: nn.Module, example: Tensor) -> list[LayerShape]:
    """Run ``model`` once and list what its modules gave, in the order in which they finished.

    The pass is without gradients and in eval mode; training mode and hooks are afterwards as before.

    Args:
        model: Any network with one tensor as input.
        example: A small batch of inputs, ``(N, ...)``.

    >>> [layer.path for layer in record(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), torch.ones(1, 2, 2))]
    ['0:input', '0', '1:input', '1']
    """
    seen: list[_Seen] = []
    began: dict[str, int] = {}
    modes = {module: module.training for module in model.modules()}
    handles = []
    for path, module in model.named_modules():
        if path:
            handles.append(module.register_forward_pre_hook(partial(_begin, seen, began, path)))
            handles.append(module.register_forward_hook(partial(_end, seen, began, path), with_kwargs=True))
    try:
        model.eval()
        with torch.no_grad():
            model(example)
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes.items():
            module.training = training
    return _layer_shapes(seen)


def _layer_shapes(seen: list[_Seen]) -> list[LayerShape]:
    """One entry a path, at the place where it was seen last."""
    calls = Counter(item.path for item in seen)
    last = {item.path: item for item in seen}
    return [
        LayerShape(
            item.path,
            kind_of(item.tensor.shape),
            tuple(item.tensor.shape),
            calls[item.path] == 1 and version_of(item.tensor) == item.version,
            item.began,
            item.ended,
        )
        for item in seen
        if last[item.path] is item
    ]


def auto_pairs(
    student: Sequence[LayerShape], teacher: Sequence[LayerShape], *, signal: str = "features", where: str = ""
) -> list[Pair]:
    """Pair the layers of two networks by stage and spatial size, or by depth for token networks.

    Args:
        student: What :func:`record` gave for the student.
        teacher: What :func:`record` gave for the teacher.
        signal: ``maps`` where only maps will do, else ``features``.
        where: Dotted key for messages.

    Raises:
        UserError: If the two have nothing of the same kind to pair.
    """
    kinds = ("maps",) if signal == "maps" else ("maps", "tokens", "vector")
    families = [_family(layers, kinds) for layers in (student, teacher)]
    if None in families or families[0] != families[1]:
        found = " and the teacher ".join(f"has {family or 'none of these'}" for family in families)
        raise UserError(
            where,
            f"layers: auto needs {' or '.join(kinds)} on both sides, but the student {found}; list them",
        )
    if families[0] == "maps":
        return _pairs_by_size(_stages(student), _stages(teacher))
    if families[0] == "tokens":
        return _pairs_by_depth(_blocks(student), _blocks(teacher))
    return [Pair(_hidden(student), _hidden(teacher), "last hidden vector")]


def _outputs(layers: Sequence[LayerShape], kind: str) -> list[LayerShape]:
    """What can be tapped: outputs with one row a sample (windows and heads are folded into the batch)."""
    return [
        layer
        for layer in layers
        if layer.kind == kind
        and layer.stable
        and layer.shape[0] == layers[0].shape[0]
        and not layer.path.endswith(INPUT)
    ]


def _family(layers: Sequence[LayerShape], kinds: Sequence[str]) -> str | None:
    """The kind that decides the pairing: of maps and tokens the one computed last, else vectors."""
    usable = {kind for kind in kinds if (_stages(layers) if kind == "maps" else _outputs(layers, kind))}
    spatial = [layer.kind for layer in layers if layer.kind in usable - {"vector"} and layer.stable]
    if spatial:
        return spatial[-1]
    return "vector" if "vector" in usable and len(_outputs(layers, "vector")) > 1 else None


def _stages(layers: Sequence[LayerShape]) -> list[LayerShape]:
    """The last map of each size on the way down; a module ends after its children, so whole stages win."""
    maps, stages = _outputs(layers, "maps"), list[LayerShape]()
    for layer in maps:
        height, width = layer.shape[2:]
        if height * width == 1:  # pooled away, or a gate such as squeeze-and-excite
            continue
        if stages and stages[-1].shape[2:] == (height, width):
            stages[-1] = layer
        elif not stages or (height <= stages[-1].shape[2] and width <= stages[-1].shape[3]):
            stages.append(layer)
    followers = [*stages[1:], None]
    return [
        _before_shrinking(stage, after, layers, maps) for stage, after in zip(stages, followers, strict=True)
    ]


def _before_shrinking(
    stage: LayerShape, after: LayerShape | None, layers: Sequence[LayerShape], maps: Sequence[LayerShape]
) -> LayerShape:
    """The last map of the stage's size before the outermost module that takes it to the next size.

    The stage itself may be the inside of that module: a bottleneck block shrinks in its second layer.
    """
    if after is None:
        return stage
    outputs = {layer.path: layer.shape[2:] for layer in layers if layer.kind == "maps"}
    shrinking = [
        layer
        for layer in layers
        if layer.path.endswith(INPUT)
        and layer.shape[2:] == stage.shape[2:]
        and outputs.get(layer.path.removesuffix(INPUT)) == after.shape[2:]
    ]
    for module in sorted(shrinking, key=lambda layer: layer.path.count(".")):
        before = [m for m in maps if m.shape[2:] == stage.shape[2:] and m.ended < module.began]
        if before:
            return before[-1]
    return stage


def _pairs_by_size(student: list[LayerShape], teacher: list[LayerShape]) -> list[Pair]:
    sizes = {layer.shape[2:]: layer for layer in teacher}
    pairs = []
    for layer in student:
        size = layer.shape[2:]
        if size in sizes:
            pairs.append(Pair(layer.path, sizes[size].path, f"same size {size[0]}x{size[1]}"))
    if pairs:
        return pairs
    return _pairs_by_depth(student, teacher, "stage")


def _blocks(layers: Sequence[LayerShape]) -> list[LayerShape]:
    """The repeated blocks of a token network: the longest numbered list of modules with equal shapes."""
    groups: dict[tuple[str, tuple[int, ...]], list[LayerShape]] = {}
    tokens = _outputs(layers, "tokens")
    for layer in tokens:
        numbered = re.fullmatch(r"(.*?)\d+", layer.path)
        if numbered:
            groups.setdefault((numbered[1], layer.shape), []).append(layer)
    if not groups:
        return tokens
    return max(groups.values(), key=lambda group: (len(group), -group[0].path.count(".")))


def _pairs_by_depth(student: list[LayerShape], teacher: list[LayerShape], name: str = "block") -> list[Pair]:
    """Spread the shorter list evenly over the longer; the last always meets the last."""
    count = min(len(student), len(teacher))
    pairs = []
    for step in range(1, count + 1):
        ours, theirs = (-(-step * len(layers) // count) for layers in (student, teacher))
        reason = f"{name} {ours} of {len(student)} with {name} {theirs} of {len(teacher)}"
        pairs.append(Pair(student[ours - 1].path, teacher[theirs - 1].path, reason))
    return pairs


def _hidden(layers: Sequence[LayerShape]) -> str:
    """The last vector that is not the network's output (outputs of wrappers around it share its shape)."""
    vectors = _outputs(layers, "vector")
    hidden = [layer for layer in vectors[:-1] if layer.shape != vectors[-1].shape]
    return (hidden or vectors[:-1])[-1].path


def explicit_pairs(
    layers: Layers, student: Sequence[LayerShape], teacher: Sequence[LayerShape], *, where: str
) -> list[Pair]:
    """The pairs that a recipe lists.

    Args:
        layers: ``[path, ...]`` (the same path in both), ``[[student, teacher], ...]`` or
            ``{student: teacher}``.
        student: What :func:`record` gave for the student.
        teacher: What :func:`record` gave for the teacher.
        where: Dotted key for messages.

    Raises:
        UserError: If a path is in none of the networks, with near names, or cannot be tapped.
    """
    items = list(layers.items()) if isinstance(layers, Mapping) else list(layers)
    pairs = []
    for item in items:
        ours, theirs = (item, item) if isinstance(item, str) else item
        for role, path, known in (("student", ours, student), ("teacher", theirs, teacher)):
            stable = {layer.path: layer.stable for layer in known}
            if path not in stable:
                raise UserError(where, f"the {role} has no layer '{path}'{nearest(path, _outside(stable))}")
            if not stable[path]:
                raise UserError(
                    where,
                    f"the {role}'s layer '{path}' cannot be tapped: it runs more than once, or what follows it "
                    f"overwrites its tensor in place; choose a layer after it",
                )
        pairs.append(Pair(ours, theirs, "as listed"))
    return pairs


def _outside(paths: Iterable[str]) -> list[str]:
    return [path for path in paths if not path.endswith(INPUT)]
