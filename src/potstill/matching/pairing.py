"""Which layer of the student learns from which layer of the teacher.

``auto`` goes by stage: the last module at each spatial size before the maps shrink, and by depth for
networks of tokens; what is left of a pruned transformer meets what it was. What it chose, and why, is part
of the plan that a run prints.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from potstill.errors import UserError, nearest
from potstill.matching.landmarks import attention, blocks, family, hidden, pooled, projections, stages
from potstill.matching.recording import LayerShape, number_in
from potstill.matching.taps import ATTENTION, INPUT, NO_ATTENTION

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
        ours, theirs = attention(student, "student", where), attention(teacher, "teacher", where)
        return _placed(_pairs_by_depth(ours, theirs, "attention"), at)
    if signal == "vectors":
        return [Pair(pooled(student), pooled(teacher), "last features before the head, pooled")]
    if signal == "tokens" and at == "last" and (found := _projections(student, teacher)):
        return found
    pairs = _placed(_all_pairs(student, teacher, signal, where), at)
    return [*_embeddings(student, teacher, pairs), *pairs] if at == "stages" else pairs


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
    families = [family(layers, among) for layers in (student, teacher)]
    if families[0] not in kinds or families[0] != families[1]:
        found = " and the teacher ".join(f"has {family or 'none of these'}" for family in families)
        raise UserError(
            where,
            f"auto pairs layers of one kind ({', '.join(kinds)}), but the student {found}; list them, or "
            f"match what any two networks have: outputs, or vectors pooled from the last layer",
        )
    if families[0] == "maps":
        return _pairs_by_size(stages(student), stages(teacher))
    if families[0] == "tokens":
        return _pairs_by_depth(blocks(student), blocks(teacher))
    return [Pair(hidden(student), hidden(teacher), "last hidden vector")]


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


def _projections(student: Sequence[LayerShape], teacher: Sequence[LayerShape]) -> list[Pair]:
    """Queries, keys and values of both last layers, where each is a module of its own."""
    both = zip(projections(student), projections(teacher), ("queries", "keys", "values"), strict=False)
    return [Pair(ours, theirs, f"{name} of the last layers") for ours, theirs, name in both]


def _embeddings(
    student: Sequence[LayerShape], teacher: Sequence[LayerShape], pairs: Sequence[Pair]
) -> list[Pair]:
    """What goes into the first blocks, of networks that take token numbers; else nothing."""
    firsts = []
    for layers, paired in ((student, pairs[0].student), (teacher, pairs[0].teacher)):
        found = blocks(layers)
        if len(layers[0].shape) != 2 or all(block.path != paired for block in found):
            return []
        path = f"{found[0].path}{INPUT}"
        entry = next((layer for layer in layers if layer.path == path), None)
        if entry is None or entry.kind != "tokens" or not entry.stable:
            return []
        firsts.append(path)
    return [Pair(firsts[0], firsts[1], "embeddings")]


def _pairs_by_depth(student: list[LayerShape], teacher: list[LayerShape], name: str = "block") -> list[Pair]:
    """What is left of a pruned student meets what it was; else the shorter list is spread over the longer.

    Spread evenly, the last always meets the last.
    """
    before = {layer.origin or (number_in(layer.path), len(teacher)): layer for layer in teacher}
    if all(layer.origin in before for layer in student):
        return [
            Pair(layer.path, before[layer.origin].path, f"{name} {layer.origin[0] + 1} before pruning")
            for layer in student
            if layer.origin is not None
        ]
    count = min(len(student), len(teacher))
    pairs = []
    for step in range(1, count + 1):
        ours, theirs = (-(-step * len(layers) // count) for layers in (student, teacher))
        reason = f"{name} {ours} of {len(student)} with {name} {theirs} of {len(teacher)}"
        pairs.append(Pair(student[ours - 1].path, teacher[theirs - 1].path, reason))
    return pairs


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
