"""The layer plan of an objective: which tensors each term compares, and through which adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from potstill import adapters
from potstill.errors import UserError
from potstill.pairing import Pair, auto_pairs, explicit_pairs
from potstill.recording import LayerShape
from potstill.terms import Term

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
    """

    term: str
    student: str
    teacher: str
    student_shape: tuple[int, ...]
    teacher_shape: tuple[int, ...]
    adapter: str
    reason: str
    key: str

    def describe(self) -> str:
        """The pair in one line: layers and shapes without the batch, adapter, reason."""
        ours, theirs = self.student_shape[1:], self.teacher_shape[1:]
        adapter = self.adapter or "no adapter"
        return f"  {self.student} {ours} <- {self.teacher} {theirs}; {adapter}; {self.reason}"


def plan_layers(
    terms: Sequence[Term], student: Sequence[LayerShape], teacher: Sequence[LayerShape]
) -> tuple[list[PlannedPair], nn.ModuleDict]:
    """Decide what is compared with what, and make the adapters.

    Args:
        terms: The terms of the objective; those that compare logits need no layers.
        student: What :func:`~potstill.pairing.record` gave for the student.
        teacher: What it gave for the teacher.

    Returns:
        The plan, in the order of the terms, and the adapters by key (``term:0``).

    Raises:
        UserError: If layers cannot be found, tapped or compared.
    """
    plan, made = [], nn.ModuleDict()
    ours = {layer.path: layer for layer in student}
    theirs = {layer.path: layer for layer in teacher}
    for term in terms:
        if term.signal == "logits":
            continue
        where = f"{term.where}.layers"
        for place, pair in enumerate(_pairs(term, student, teacher)):
            shapes = ours[pair.student].shape, theirs[pair.teacher].shape
            _check_signal(term, pair, shapes)
            adapter = adapters.build(*shapes, where=where) if term.spec.adapter else None
            key = pair.student if adapter is None else f"{term.name.replace('.', '_')}:{place}"
            if adapter is not None:
                made[key] = adapter
            text = "" if adapter is None else adapter.describe()
            plan.append(PlannedPair(term.name, pair.student, pair.teacher, *shapes, text, pair.reason, key))
    return plan, made


def _check_signal(term: Term, pair: Pair, shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    if term.signal != "maps":
        return
    for role, path, shape in (("student", pair.student, shapes[0]), ("teacher", pair.teacher, shapes[1])):
        if adapters.kind_of(shape) != "maps":
            raise UserError(
                f"{term.where}.layers",
                f"{term.config.loss} compares maps (N, C, H, W), but the {role}'s '{path}' gives {shape}",
            )


def _pairs(term: Term, student: Sequence[LayerShape], teacher: Sequence[LayerShape]) -> list[Pair]:
    where, layers = f"{term.where}.layers", term.config.layers
    if layers == "auto":
        return auto_pairs(student, teacher, signal=term.signal, where=where)
    return explicit_pairs(layers, student, teacher, where=where)
