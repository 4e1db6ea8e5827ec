"""How a term compares a student's regions with boxes: those of a teacher's regions, or its final answer."""

from __future__ import annotations

import torch
from torch import Tensor

from potstill.batch import Signals
from potstill.errors import UserError
from potstill.losses.answered import apart
from potstill.matching.same_regions import overlaps, sides_of
from potstill.matching.terms import Term

__all__ = ["of_answers", "of_class", "of_corners"]

OVERLAP = 0.5
"""From which overlap on a region stands for one of the teacher's boxes."""


def of_class(boxes: Tensor, labels: Tensor) -> Tensor:
    """The boxes of each row's class, ``(N, R, 4)``, where there is one for each class."""
    if boxes.dim() == 3:
        return boxes
    chosen = labels.clamp(min=0) if boxes.shape[2] > 1 else torch.zeros_like(labels)
    return boxes.gather(2, chosen[:, :, None, None].expand(-1, -1, 1, 4))[:, :, 0]


def of_corners(
    term: Term, head: str, student: Signals, teacher: Signals, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Distance of the student's box from the teacher's in each region, of the class that the teacher sees.

    Args:
        term: Who asks.
        head: ``rpn`` or ``box``.
        student: A detector's raw answers.
        teacher: The teacher's, of the same regions.
        labels: What the labels say of them, ``(N, R)``; those below 0 do not count.

    Returns:
        Values ``(N, R)`` and where the teacher is confident.
    """
    if f"{head}.classes" in teacher.taps:
        sure, chosen = teacher.taps[f"{head}.classes"].softmax(dim=-1)[..., 1:].max(dim=-1)
    else:
        sure, chosen = teacher.taps[f"{head}.scores"].sigmoid()[..., 1:].max(dim=-1)
    pair = [
        of_class(each.taps[f"{head}.corners"], chosen + 1) / sides_of(each) for each in (student, teacher)
    ]
    where = (labels >= 0) & (sure >= term.options["confident"])
    return term.function(*pair, sureness=sure, where=where, **term.options), where


def of_answers(term: Term, head: str, student: Signals, teacher: Signals) -> tuple[Tensor, Tensor]:
    """What the teacher's final boxes say of each region of the student.

    Returns:
        Values ``(N, R)`` and which regions count: those that learn, and those that a box overlaps.

    Raises:
        UserError: If the teacher has no final boxes.
    """
    answers = teacher.taps.get("answers")
    if answers is None:
        raise UserError(term.where, "needs a detector as teacher, and no cache")
    exclusive = f"{head}.classes" in student.taps
    logits = student.taps[f"{head}.{'classes' if exclusive else 'scores'}"]
    boxes, scores, labels = answers[..., :4] / sides_of(teacher), answers[..., 4], answers[..., 5].long()
    regions = student.taps[f"{head}.anchors"] / sides_of(student)
    if "points" in student.taps:
        hit, at = _places(student, boxes * sides_of(student), labels > 0)
    else:
        overlap, at = (overlaps(regions, boxes) * (labels > 0)[:, None]).max(dim=2)
        hit = overlap >= OVERLAP
    label = labels.gather(1, at).clamp(max=logits.shape[-1] - 1)  # of regions proposed: object or not
    score = scores.gather(1, at) * hit
    given = torch.zeros_like(logits).scatter(2, (label * hit)[..., None], score[..., None].to(logits))
    given = torch.cat([1.0 - score[..., None].to(logits), given[..., 1:]], dim=-1)
    theirs = boxes.gather(1, at[..., None].expand(-1, -1, 4))
    ours = of_class(student.taps[f"{head}.corners"], label) / sides_of(student)
    distance = torch.where(hit, apart(ours, theirs.to(ours), "giou"), 0.0)
    options = {**term.options, "exclusive": exclusive}
    where = (student.taps[f"{head}.labels"] != -1) | (hit & (regions[..., 2] > regions[..., 0]))
    values = term.function(logits, given, distance=distance, where=where, **options)
    if not exclusive:  # of a sigmoid for each class the sum over regions is divided by those with an object
        values = values * (where.sum(dim=1) / hit.sum(dim=1).clamp(min=1))[:, None]
    return values, where


def _places(student: Signals, boxes: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    """Which places of FCOS stand for a box, as it chooses them itself, and for which, both ``(N, R)``.

    A place near a box's middle and inside it, on the level of the box's size; of several boxes the smallest.

    Args:
        student: Its raw answers.
        boxes: ``(N, n, 4)`` in its pixels.
        there: Which of them there are, ``(N, n)``.
    """
    anchors, radius = student.taps["box.anchors"], student.taps["points"]
    stride = (anchors[..., 2] - anchors[..., 0])[:, :, None]  # (N, R, 1)
    middle = ((anchors[..., :2] + anchors[..., 2:]) / 2)[:, :, None]  # (N, R, 1, 2)
    first, last = boxes[:, None, :, :2], boxes[:, None, :, 2:]
    near = (middle - (first + last) / 2).abs().amax(dim=-1) < radius * stride
    sides = torch.cat([middle - first, last - middle], dim=-1)  # (N, R, n, 4)
    reach = sides.amax(dim=-1)
    low = torch.where(stride == stride.amin(), 0.0, 4 * stride)
    high = torch.where(stride == stride.amax(), torch.inf, 8 * stride)
    stands = near & (sides.amin(dim=-1) > 0) & (reach > low) & (reach < high) & there[:, None]
    area = (boxes[..., 2:] - boxes[..., :2]).prod(dim=-1)[:, None].expand(stands.shape)
    at = area.masked_fill(~stands, torch.inf).argmin(dim=2)
    return stands.any(dim=2), at
