"""Which layer of the student learns from which layer of the teacher.

``auto`` goes by stage: the last module at each spatial size before the maps shrink, and by depth for
networks of tokens. What it chose, and why, is part of the plan that a run prints.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from potstill.errors import UserError, nearest
from potstill.recording import LayerShape
from potstill.taps import ATTENTION, INPUT, NO_ATTENTION

__all__ = ["Layers", "Pair", "auto_pairs", "before_activations", "explicit_pairs"]

Layers = str | Sequence[str | Sequence[str]] | Mapping[str, str]


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


def auto_pairs(
    student: Sequence[LayerShape],
    teacher: Sequence[LayerShape],
    *,
    signal: str = "features",
    at: str = "stages",
    where: str = "",
) -> list[Pair]:
    """Pair the layers of two networks by stage and spatial size, or by depth for token networks.

    Args:
        student: What :func:`record` gave for the student.
        teacher: What :func:`record` gave for the teacher.
        signal: What the loss compares: ``maps`` where only maps will do, ``vectors`` for the last hidden
            vector of each, ...
        at: Which of the pairs: all ``stages``, the ``middle`` or the ``last``.
        where: Dotted key for messages.

    Raises:
        UserError: If the two have nothing of the same kind to pair.
    """
    if signal == "gradients":
        return [Pair(INPUT, INPUT, "the input of both networks")]
    if signal == "attention":
        ours, theirs = _attention(student, "student", where), _attention(teacher, "teacher", where)
        return _placed(_pairs_by_depth(ours, theirs, "attention"), at)
    if signal == "vectors":
        return [Pair(_pooled(student), _pooled(teacher), "last features before the head, pooled")]
    return _placed(_all_pairs(student, teacher, signal, where), at)


def before_activations(
    pairs: Sequence[Pair], student: Sequence[LayerShape], teacher: Sequence[LayerShape]
) -> list[Pair]:
    """The same pairs, each layer that ends in an activation module replaced by that module's input."""

    def before(path: str, layers: Sequence[LayerShape]) -> str:
        known = {layer.path: layer for layer in layers}
        end = known[path]
        inputs = [
            f"{layer.path}{INPUT}"
            for layer in layers
            if layer.shape == end.shape and layer.ended <= end.ended and not layer.signed
        ]
        found = [entry for entry in inputs if entry in known and known[entry].signed and known[entry].stable]
        return found[-1] if found and not end.signed else path

    return [
        Pair(
            before(pair.student, student), before(pair.teacher, teacher), f"{pair.reason}, before activation"
        )
        for pair in pairs
    ]


def _placed(pairs: list[Pair], at: str) -> list[Pair]:
    if at == "last":
        return pairs[-1:]
    return pairs[(len(pairs) - 1) // 2 :][:1] if at == "middle" else pairs


def _all_pairs(
    student: Sequence[LayerShape], teacher: Sequence[LayerShape], signal: str, where: str
) -> list[Pair]:
    kinds = (signal,) if signal in ("maps", "tokens") else ("maps", "tokens", "vector")
    # Patches of a network of tokens are maps too, but say little: it is none to compare maps with.
    among = ("maps", "tokens") if signal == "maps" else kinds
    families = [_family(layers, among) for layers in (student, teacher)]
    if families[0] not in kinds or families[0] != families[1]:
        found = " and the teacher ".join(f"has {family or 'none of these'}" for family in families)
        raise UserError(
            where,
            f"auto pairs layers of one kind ({', '.join(kinds)}), but the student {found}; list them, or "
            f"match what any two networks have: outputs, or vectors pooled from the last layer",
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
        and not (kind == "maps" and _channels_last(layer.shape, layers[0].shape))
    ]


def _channels_last(shape: tuple[int, ...], example: tuple[int, ...]) -> bool:
    """Whether maps are ``(N, H, W, C)``, as Swin has them inside: square, as the images are."""
    return len(example) == 4 and example[2] == example[3] and shape[1] == shape[2] != shape[3]


def _attention(layers: Sequence[LayerShape], role: str, where: str) -> list[LayerShape]:
    """Attention by depth: in what modules give, else their own output (a dropout of it)."""
    found = [layer for layer in layers if layer.kind == "attention" and layer.stable]
    lengths = {layer.shape[1] for layer in layers if layer.kind == "tokens"}
    found = found or [
        layer
        for layer in _outputs(layers, "maps")
        if layer.shape[2] == layer.shape[3] and layer.shape[2] in lengths
    ]
    if not found:
        raise UserError(where, f"auto finds no attention (N, heads, L, L) in the {role}; {NO_ATTENTION}")
    return found


def _family(layers: Sequence[LayerShape], kinds: Sequence[str]) -> str | None:
    """The kind that decides the pairing: of maps and tokens the one computed last, else vectors."""
    usable = {kind for kind in kinds if (_stages(layers) if kind == "maps" else _outputs(layers, kind))}
    spatial = [layer.kind for layer in layers if layer.kind in usable - {"vector"} and layer.stable]
    if spatial:
        return spatial[-1]
    return "vector" if "vector" in usable and len(_outputs(layers, "vector")) > 1 else None


def _stages(layers: Sequence[LayerShape]) -> list[LayerShape]:
    """The last map of each size on the way down; a module ends after its children, so whole stages win."""
    maps = _outputs(layers, "maps")
    stages: list[LayerShape] = []
    for layer in maps:
        height, width = layer.shape[2:]
        if height * width == 1:  # pooled away, or a gate such as squeeze-and-excite
            continue
        if stages and stages[-1].shape[2:] == (height, width):
            stages[-1] = layer
        elif not stages or (height <= stages[-1].shape[2] and width <= stages[-1].shape[3]):
            stages.append(layer)
    ends = [_before_shrinking(*sizes, layers, maps) for sizes in itertools.pairwise(stages)]
    return [*ends, *stages[-1:]]


def _before_shrinking(
    stage: LayerShape, after: LayerShape, layers: Sequence[LayerShape], maps: Sequence[LayerShape]
) -> LayerShape:
    """The last map of the stage's size before the outermost module that takes it to the next size.

    The stage itself may be the inside of that module: a bottleneck block shrinks in its second layer.
    """
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
    """The repeated blocks of a token network: the numbered modules of equal shape that hold most others."""
    groups: dict[tuple[str, tuple[int, ...]], list[LayerShape]] = {}
    tokens = _outputs(layers, "tokens")
    for layer in tokens:
        numbered = re.fullmatch(r"(.*?)\d+", layer.path)
        if numbered:
            groups.setdefault((numbered[1], layer.shape), []).append(layer)
    if not groups:
        return tokens

    def held(group: Sequence[LayerShape]) -> tuple[int, int]:
        inside = tuple(f"{layer.path}." for layer in group)
        return sum(f"{layer.path}.".startswith(inside) for layer in tokens), -group[0].path.count(".")

    return max(groups.values(), key=held)


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


def _pooled(layers: Sequence[LayerShape]) -> str:
    """What the head takes in: the input of the last layer that gives the output, where it is a vector.

    Of modules around that layer whose input has its shape the outermost is meant: before any dropout.
    """
    output = layers[-1].shape
    heads = [
        layer
        for layer in layers
        if layer.path.endswith(INPUT)
        and layer.stable
        and layer.kind == "vector"
        and layer.shape[0] == output[0]
        and layer.shape != output
        and any(other.path == layer.path.removesuffix(INPUT) and other.shape == output for other in layers)
    ]
    if heads:
        last = max(heads, key=lambda layer: layer.began)
        return min((head for head in heads if head.shape == last.shape), key=lambda head: head.began).path
    for kind in ("maps", "tokens"):
        if found := (_stages(layers) if kind == "maps" else _outputs(layers, kind)):
            return found[-1].path
    return _hidden(layers)


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
            if path.endswith(ATTENTION) and path not in stable and path.removesuffix(ATTENTION) in stable:
                raise UserError(where, f"the {role}'s '{path}' gives no attention; {NO_ATTENTION}")
            if path not in stable:
                raise UserError(where, f"the {role} has no layer '{path}'{nearest(path, _outside(stable))}")
            if not stable[path]:
                raise UserError(
                    where,
                    f"the {role}'s layer '{path}' cannot be tapped: it runs more than once, or what follows "
                    f"overwrites its tensor in place; choose a layer after it",
                )
        pairs.append(Pair(ours, theirs, "as listed"))
    return pairs


def _outside(paths: Iterable[str]) -> list[str]:
    return [path for path in paths if ":" not in path]
