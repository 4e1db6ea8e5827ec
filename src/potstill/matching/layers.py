"""The layer plan of an objective: which tensors each term compares, and through which adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from potstill.errors import UserError
from potstill.matching import adapters
from potstill.matching.pairing import Pair, auto_pairs, before_activations, explicit_pairs
from potstill.matching.recording import LayerShape
from potstill.matching.taps import INPUT
from potstill.matching.terms import Term

__all__ = ["PlannedPair", "plan_layers"]


@dataclass(frozen=True)
class PlannedPair:
    """One comparison of two layers.

    Attributes:
        term: Name of the term.
        student: Path in the student.
        teacher: Path in the teacher.
        student_shape: Shape of the student's tensor for the example, batch first.
        teacher_shape: Shape of the teacher's.
        adapter: What the adapter does, in words; empty without one.
        reason: Why these two layers.
        key: Where the student's tensor stands among its taps: its path, or its adapter's key.
        matcher: Key of the module of a loss that learns; empty for the others.
    """

    term: str
    student: str
    teacher: str
    student_shape: tuple[int, ...]
    teacher_shape: tuple[int, ...]
    adapter: str
    reason: str
    key: str
    matcher: str = ""

    def describe(self) -> str:
        """The pair in one line: layers and shapes without the batch, adapter, reason."""
        ours, theirs = self.student_shape[1:], self.teacher_shape[1:]
        adapter = self.adapter or "no adapter"
        return f"  {self.student} {ours} <- {self.teacher} {theirs}; {adapter}; {self.reason}"


def plan_layers(
    terms: Sequence[Term],
    student: Sequence[LayerShape],
    teacher: Sequence[LayerShape],
    samples: int | None = None,
) -> tuple[list[PlannedPair], nn.ModuleDict]:
    """Decide what is compared with what, and make the adapters.

    Args:
        terms: The terms of the objective; those that compare logits need no layers.
        student: What :func:`~potstill.matching.pairing.record` gave for the student.
        teacher: What it gave for the teacher.
        samples: Size of the training set, for losses that remember every sample.

    Returns:
        The plan, in the order of the terms, and by key the adapters (``term:0``) and the modules of
        losses that learn (``term:0:matcher``).

    Raises:
        UserError: If layers cannot be found, tapped or compared.
    """
    plan, made = [], nn.ModuleDict()
    ours = {layer.path: layer for layer in student}
    theirs = {layer.path: layer for layer in teacher}
    for term in terms:
        if term.on_output:
            continue
        where = f"{term.where}.layers"
        pairs = _pairs(term, student, teacher)
        _check_spans(term, pairs)
        for place, pair in enumerate(pairs):
            shapes = ours[pair.student].shape, theirs[pair.teacher].shape
            _check_signal(term, pair, shapes)
            if term.spec.before_activation:
                _check_signed(term, "student", pair.student, student)
                _check_signed(term, "teacher", pair.teacher, teacher)
            adapter = None
            if term.spec.adapter:
                adapter = adapters.build(*shapes, normalised=term.spec.normalised, where=where)
            name = f"{term.name.replace('.', '_')}:{place}"
            if adapter is not None:
                made[name] = adapter
            key = pair.student if adapter is None else name
            text = "" if adapter is None else adapter.describe()
            matcher = f"{name}:matcher" if term.spec.learns is not None else ""
            if term.spec.learns is not None:
                made[matcher] = _matcher(term, *shapes, samples)
            plan.append(
                PlannedPair(term.name, pair.student, pair.teacher, *shapes, text, pair.reason, key, matcher)
            )
    return plan, made


def _matcher(
    term: Term, student: tuple[int, ...], teacher: tuple[int, ...], samples: int | None
) -> nn.Module:
    assert term.spec.learns is not None, "only losses that learn have a module"
    if term.signal == "vectors":
        student, teacher = ((shape[0], shape[1 if len(shape) == 4 else -1]) for shape in (student, teacher))
    try:
        made: nn.Module = term.spec.learns(student, teacher, samples=samples, **term.options)
    except ValueError as error:
        raise UserError(term.where, str(error)) from error
    return made


def _check_spans(term: Term, pairs: Sequence[Pair]) -> None:
    if term.spec.spans != "each" and len(pairs) < 2:
        names = ", ".join(f"'{pair.student}' with '{pair.teacher}'" for pair in pairs)
        raise UserError(
            f"{term.where}.layers",
            f"{term.config.loss} relates layers of one network: expected at least two pairs, got {names}",
        )


NEEDED = {
    "maps": ("maps",),
    "tokens": ("tokens",),
    "attention": ("maps",),
    "gradients": ("maps", "tokens", "vector", "other"),
}
"""Kinds of tensors (:func:`~potstill.matching.adapters.kind_of`) that a signal may have; others take all."""


def _check_signal(term: Term, pair: Pair, shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    needed = NEEDED.get(term.signal, ("maps", "tokens", "vector"))
    form = {
        "maps": "maps (N, C, H, W)",
        "tokens": "tokens (N, L, C)",
        "attention": "attention (N, heads, L, L)",
    }
    expected = form.get(term.signal, "maps, tokens or vectors")
    for role, path, shape in (("student", pair.student, shapes[0]), ("teacher", pair.teacher, shapes[1])):
        if adapters.kind_of(shape) not in needed:
            raise UserError(
                f"{term.where}.layers",
                f"{term.config.loss} compares {expected}, but the {role}'s '{path}' gives {shape}",
            )


def _check_signed(term: Term, role: str, path: str, layers: Sequence[LayerShape]) -> None:
    layer = next(layer for layer in layers if layer.path == path)
    if layer.signed:
        return
    earlier = [
        other.path
        for other in layers
        if other.shape == layer.shape and other.signed and other.stable and other.ended <= layer.ended
    ]
    outputs = [other for other in earlier if not other.endswith(INPUT)] or earlier
    hint = f", such as '{outputs[-1]}'" if outputs else ""
    raise UserError(
        f"{term.where}.layers",
        f"{term.config.loss} compares what goes into an activation, but the {role}'s '{path}' has no value "
        f"below 0, as after a ReLU; list layers before it{hint}",
    )


def _pairs(term: Term, student: Sequence[LayerShape], teacher: Sequence[LayerShape]) -> list[Pair]:
    where, layers = f"{term.where}.layers", term.config.layers
    if layers == "auto":
        pairs = auto_pairs(student, teacher, signal=term.signal, at=term.spec.at, where=where)
        return before_activations(pairs, student, teacher) if term.spec.before_activation else pairs
    return explicit_pairs(layers, student, teacher, where=where)
