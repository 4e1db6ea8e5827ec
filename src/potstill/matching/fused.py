"""Labels and terms on the logits of a language model, made from hidden states in one pass over the tokens.

A task that asks its networks for hidden states (:mod:`potstill.models.projection`) has the cross-entropy with
the next token as its supervised loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import get_args

from torch import Tensor

from potstill.batch import Batch, Share, Signals
from potstill.errors import UserError
from potstill.losses.heads import Head
from potstill.losses.sequence import Divergence, LinearDivergence, linear_divergence
from potstill.matching.terms import Term

__all__ = ["covers", "fused_shares"]


def covers(term: Term) -> bool:
    """Whether a term can be had from hidden states, as it looks at probabilities of the next token alone.

    >>> from potstill.matching.terms import TermConfig
    >>> covers(Term("kl", TermConfig(loss="kl"))), covers(Term("mse", TermConfig(loss="logit_mse")))
    (True, False)
    """
    return term.config.loss in get_args(Divergence) and not term.options.get("standardize", False)


def fused_shares(
    terms: Sequence[Term],
    student: Signals,
    teacher: Signals | None,
    batch: Batch,
    weights: Mapping[str, float],
    counts: Mapping[str, float],
) -> dict[str, Share]:
    """The parts of the loss that look at logits, where the student answered with hidden states.

    The cross-entropy comes in the same pass as the first term.

    Args:
        terms: Those on logits.
        student: Hidden states ``(N, L, H)`` and their head.
        teacher: Hidden states and head, logits, or known words; ``None`` where no term is active.
        batch: What both answered to.
        weights: What is active; ``labels`` is the cross-entropy.
        counts: What each part is divided by.

    Raises:
        UserError: If a term cannot be had from hidden states.
    """
    parts: dict[str, Share] = {}

    def add(name: str, total: Tensor | None) -> None:
        assert total is not None, "what is active was computed"
        parts[name] = Share(total, counts[name], weights[name])

    active = [term for term in terms if term.name in weights]
    for place, term in enumerate(active):
        assert teacher is not None, "an active term needs the teacher's answer"
        both = place == 0 and "labels" in weights
        found = _of(student, teacher, batch, term, weights[term.name], weights["labels"] if both else None)
        if both:
            add("labels", found.total_cross_entropy)
        add(term.name, found.total)
    if not active and "labels" in weights:
        assert student.head is not None, "hidden states have a head"
        alone = linear_divergence(student.output, student.head, None, target=batch.target, where=batch.where)
        add("labels", alone.total_cross_entropy)
    return parts


def _of(
    student: Signals, teacher: Signals, batch: Batch, term: Term, weight: float, labels: float | None
) -> LinearDivergence:
    if not covers(term):
        raise UserError(term.where, f"{term.config.loss} needs logits, and hidden states were asked for")
    head, answer = student.head, teacher.answer
    assert isinstance(head, Head), "hidden states have a head"
    options = {name: value for name, value in term.options.items() if name != "standardize"}
    try:
        return linear_divergence(
            student.output,
            head,
            answer,
            divergence=term.config.loss,  # type: ignore[arg-type]
            weight=weight,
            target=None if labels is None else batch.target,
            target_weight=1.0 if labels is None else labels,
            where=batch.where,
            **options,
        )
    except ValueError as error:
        raise UserError(term.where, str(error)) from error
