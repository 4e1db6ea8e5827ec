"""How a term compares detectors: head by head, on the same regions, with what the labels say of each."""

from __future__ import annotations

import torch
from torch import Tensor

from potstill.batch import Batch, Signals
from potstill.errors import UserError
from potstill.losses.reduce import mean_over_rows
from potstill.terms import Term

__all__ = ["HEADED", "of_heads", "shown_boxes"]

HEADED = ("classes", "scores", "boxes")
HEADS = ("rpn", "box")
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
    heads = [head for head in HEADS if f"{head}.{term.signal}" in student.taps]
    if not heads:
        forms = sorted({name.partition(".")[2] for name in student.taps if "." in name} & set(HEADED))
        raise UserError(
            term.where,
            f"{term.config.loss} compares {term.signal} of detectors, and the student answers with "
            f"{' and '.join(forms) or 'none'}",
        )
    return torch.stack([_of_head(term, head, student, teacher) for head in heads]).sum(dim=0)


def _of_head(term: Term, head: str, student: Signals, teacher: Signals) -> Tensor:
    name = f"{head}.{term.signal}"
    if name not in teacher.taps:
        raise UserError(
            term.where, f"the teacher has no {name}: its head is of another kind than the student's"
        )
    labels = student.taps[f"{head}.labels"]
    ours, theirs = student.taps[name], teacher.taps[name]
    _check_regions(term, head, student, teacher)
    where, target = labels >= 0, labels
    if term.signal == "boxes":
        where, target = labels > 0, student.taps[f"{head}.deltas"]
        ours, theirs = _of_class(ours, labels), _of_class(theirs, labels)
    try:
        values = term.function(ours, theirs, target, where=where, **term.options)
    except ValueError as error:
        raise UserError(term.where, str(error)) from error
    if term.signal == "scores":
        return values.sum(dim=1) / (labels > 0).sum(dim=1).clamp(min=1)
    return mean_over_rows(values, where)


def _of_class(boxes: Tensor, labels: Tensor) -> Tensor:
    """The boxes of each row's class, ``(N, R, 4)``."""
    if boxes.dim() == 3:
        return boxes
    chosen = labels.clamp(min=0) if boxes.shape[2] > 1 else torch.zeros_like(labels)
    return boxes.gather(2, chosen[:, :, None, None].expand(-1, -1, 1, 4))[:, :, 0]


def _check_regions(term: Term, head: str, student: Signals, teacher: Signals) -> None:
    """Both were scored on the same regions: as many, and, where they are anchors, at the same places."""
    ours, theirs = student.taps[f"{head}.anchors"], teacher.taps[f"{head}.anchors"]
    why = "terms on classes, scores and boxes need the same anchors (strides, sizes, ratios) in both networks"
    if ours.shape != theirs.shape:
        raise UserError(
            term.where,
            f"the student has {ours.shape[1]} {head} regions, the teacher {theirs.shape[1]}; {why}",
        )
    shares = ours[0] / student.taps["size"].repeat(2), theirs[0] / teacher.taps["size"].repeat(2)
    if shares[0].numel() and float((shares[0] - shares[1]).abs().max()) > 0.02:
        raise UserError(term.where, f"{head} regions of student and teacher lie at other places; {why}")


def shown_boxes(term: Term, teacher: Signals, batch: Batch) -> Tensor | None:
    """The boxes that a term's ``regions`` are about, ``(N, n, 5)``: corners as shares of the image, class.

    Raises:
        UserError: If there are none.
    """
    regions = term.options.get("regions")
    if regions in ("boxes", "split"):
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
