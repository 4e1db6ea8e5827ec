"""How a term compares detectors: head by head, on the same regions, with what the labels say of each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from potstill.batch import Batch, Signals
from potstill.errors import UserError
from potstill.losses.reduce import mean_over_rows
from potstill.losses.regions import inside_boxes, region_weights
from potstill.matching.answered import of_answers, of_class, of_corners
from potstill.matching.layers import PlannedPair
from potstill.matching.same_regions import same_regions
from potstill.matching.terms import Term

__all__ = ["HEADED", "by_region", "of_heads", "shown_boxes"]

HEADED = ("classes", "scores", "boxes", "corners", "response")
HEADS = ("rpn", "box")
IGNORED = -1
"""Label of a region that counts in no loss."""
CONFIDENT = 0.5
"""Score from which a teacher's box shows a region."""


def of_heads(term: Term, student: Signals, teacher: Signals) -> Tensor:
    """What a term measures in each image: the sum over heads of the mean over the regions that count.

    Args:
        term: A term on ``classes``, ``scores`` or ``boxes``.
        student: A detector's raw answers, with what the labels say of them.
        teacher: The teacher's answers to the same regions.

    Returns:
        ``(N,)``. Classes are averaged over the regions that learn, scores over the objects among them (as the
        losses of detectors with a sigmoid for each class are), boxes over the regions with a true one.

    Raises:
        UserError: If the detectors have no such answers, or not of the same regions.
    """
    heads = _heads(term, student)
    if not heads:
        forms = sorted(
            {name.partition(".")[2] for name in student.taps if "." in name} & {"classes", "scores", "boxes"}
        )
        raise UserError(
            term.where,
            f"{term.config.loss} compares {term.signal} of detectors, and the student answers with "
            f"{' and '.join(forms) or 'none'}",
        )
    return torch.stack([_of_head(term, head, student, teacher) for head in heads]).sum(dim=0)


def _of_head(term: Term, head: str, student: Signals, teacher: Signals) -> Tensor:
    values, where = _of_regions(term, head, student, teacher)
    if term.signal == "scores":
        return values.sum(dim=1) / _objects(head, student)
    return mean_over_rows(values, where)


def _heads(term: Term, student: Signals) -> list[str]:
    """Heads of the student that a term compares."""
    signals = ("classes", "scores") if term.signal == "response" else (term.signal,)
    return [head for head in HEADS if any(f"{head}.{signal}" in student.taps for signal in signals)]


def _objects(head: str, student: Signals) -> Tensor:
    """Regions of each image that have an object, ``(N,)``, at least 1."""
    return (student.taps[f"{head}.labels"] > 0).sum(dim=1).clamp(min=1)


def _of_regions(term: Term, head: str, student: Signals, teacher: Signals) -> tuple[Tensor, Tensor]:
    """What a term measures in each region of a head, and which regions count, ``(N, R)``."""
    if term.signal == "response":
        return of_answers(term, head, student, teacher)
    name = f"{head}.{term.signal}"
    if name not in teacher.taps:
        raise UserError(
            term.where,
            f"the teacher has no {name}: its head is of another kind than the student's; response takes a "
            "teacher of any kind",
        )
    labels = student.taps[f"{head}.labels"]
    teacher, there = same_regions(term, head, student, teacher)
    if there is not None:  # of the others the teacher says nothing
        labels = torch.where(there, labels, IGNORED)
    if term.signal == "corners":
        return of_corners(term, head, student, teacher, labels)
    ours, theirs = student.taps[name], teacher.taps[name]
    where, target = labels >= 0, labels
    if term.signal == "boxes":
        where, target = labels > 0, student.taps[f"{head}.deltas"]
        ours, theirs = of_class(ours, labels), of_class(theirs, labels)
    try:
        return term.function(ours, theirs, target, where=where, **term.options), where
    except ValueError as error:
        raise UserError(term.where, str(error)) from error


@torch.no_grad()
def by_region(
    term: Term, pairs: Sequence[PlannedPair], student: Signals, teacher: Signals, batch: Batch
) -> dict[str, Tensor]:
    """What a term's sum over a batch is the sum of: by head, and by objects and background; for the report.

    Args:
        term: A term; of others than those of detectors nothing is told.
        pairs: Its planned pairs of layers.
        student: What the student answered.
        teacher: What the teacher answered.
        batch: What both answered to.
    """
    if term.signal in HEADED:
        found = {}
        for head in _heads(term, student):
            values, where = _of_regions(term, head, student, teacher)
            count = _objects(head, student) if term.signal == "scores" else where.sum(dim=1).clamp(min=1)
            shares = values.masked_fill(~where, 0.0) / count[:, None]
            front = student.taps[f"{head}.labels"] > 0
            found[f"{head}, objects"] = shares.masked_fill(~front, 0.0).sum()
            found[f"{head}, background"] = shares.masked_fill(front, 0.0).sum()
        return {name: total for name, total in found.items() if term.signal != "boxes" or "objects" in name}
    if "regions" not in term.options or batch.target is None or batch.target.dim() != 3:
        return {}
    boxes, inside, whole = shown_boxes(term, teacher, batch), [], []
    for pair in pairs:
        ours, theirs = student.taps[pair.key], teacher.taps[pair.teacher]
        weights = region_weights(boxes, theirs, term.options["regions"], term.options["background"])
        values = (ours.to(weights) - theirs.to(weights)).square().mean(dim=1) * weights
        inside.append(values.masked_fill(~inside_boxes(batch.target, *values.shape[1:]), 0.0).sum())
        whole.append(values.sum())
    over = 1 if term.spec.combine == "sum" else len(pairs)
    near, total = torch.stack(inside).sum() / over, torch.stack(whole).sum() / over
    return {"objects": near, "background": total - near}


def shown_boxes(term: Term, teacher: Signals, batch: Batch) -> Tensor | None:
    """The boxes that a term's ``regions`` are about, ``(N, n, 5)``: corners as shares of the image, class.

    Raises:
        UserError: If there are none.
    """
    regions = term.options.get("regions")
    if regions in ("boxes", "near", "split"):
        if batch.target is None or batch.target.dim() != 3:
            raise UserError(
                f"{term.where}.regions", f"{regions} needs boxes as labels, as task: detection has"
            )
        return batch.target
    if regions != "confident":
        return None
    answers = teacher.taps.get("answers")
    if answers is None:
        raise UserError(f"{term.where}.regions", "confident needs a detector as teacher, and no cache")
    sure = (answers[..., 4:5] >= CONFIDENT) * answers[..., 5:6]
    return torch.cat([answers[..., :4] / teacher.taps["size"].repeat(2), sure], dim=-1)
