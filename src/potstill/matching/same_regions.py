"""A teacher's answers in its student's regions, where its anchors are others: the nearest of like size."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from potstill.batch import Signals
from potstill.errors import UserError
from potstill.matching.terms import Term

__all__ = ["deltas_of", "overlaps", "same_regions", "sides_of"]

NEAR = 0.02
"""Shares of the image by which anchors may lie beside each other and be the same."""
ALIKE = 0.5
"""Overlap from which on an anchor of the teacher stands for one of the student."""
FEW = 0.1
"""Below this share of anchors that have one of the teacher's, two detectors have nothing to compare."""
ROWS = 1024
SIGNALS = ("classes", "scores", "boxes", "corners")


def same_regions(term: Term, head: str, student: Signals, teacher: Signals) -> tuple[Signals, Tensor | None]:
    """The teacher's answers of a head in the student's rows, its deltas as the student's heads say theirs.

    Where its anchors are others, each of the student's has the one that overlaps it most, in shares of the
    image that each saw; where that is less than half, the teacher says nothing of it.

    Args:
        term: Who asks.
        head: ``rpn`` or ``box``.
        student: A detector's raw answers.
        teacher: Another's, scored on the student's regions where it can be.

    Returns:
        The answers, and of which of the student's regions there are any, ``(R,)``; ``None`` for all.

    Raises:
        UserError: If hardly any of the student's anchors has one of the teacher's.
    """
    ours, theirs = (each.taps[f"{head}.anchors"] / sides_of(each) for each in (student, teacher))
    same = ours.shape == theirs.shape and not bool((ours[:1] - theirs[:1]).abs().gt(NEAR).any())
    at = there = None
    if not same:
        at, there = _nearest(term, head, student, ours, theirs)
    taps = dict(teacher.taps)
    for name in (f"{head}.{signal}" for signal in SIGNALS):
        if name in taps and at is not None:
            taps[name] = taps[name].index_select(1, at)
    codings = [each.taps.get(f"{head}.coding") for each in (student, teacher)]
    if f"{head}.boxes" in taps and (not same or not _equal(*codings)):
        corners = taps[f"{head}.corners"] / sides_of(teacher) * sides_of(student)
        taps[f"{head}.boxes"] = deltas_of(corners, student.taps[f"{head}.anchors"], codings[0])
    return Signals(teacher.output, taps), there


def _nearest(term: Term, head: str, student: Signals, ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """For each of the student's anchors the teacher's row, and whether it stands for it; all ``(R,)``."""
    if head == "box" and "rpn.anchors" in student.taps:
        raise UserError(
            term.where,
            "the student's regions are its own proposals, and the teacher was not asked about them: it has "
            "fixed anchors, or regions of its own; see response and region_hint",
        )
    at, overlap = (each.to(ours.device) for each in _found(_bytes(ours[0]), _bytes(theirs[0])))
    there = overlap >= ALIKE
    share = float(there.float().mean()) if len(there) else 0.0
    if share < FEW:
        raise UserError(
            term.where,
            f"of the student's {len(there)} {head} anchors {share:.1%} overlap one of the teacher's "
            f"{theirs.shape[1]} by half, expected {FEW:.0%}: give both anchors of like places and sizes, as "
            "shares of the image that each sees (arguments.strides, arguments.anchors); see response too",
        )
    return at, there


def _bytes(boxes: Tensor) -> bytes:
    return boxes.detach().float().cpu().numpy().tobytes()


@functools.lru_cache(maxsize=8)  # anchors are the same in every step
def _found(ours: bytes, theirs: bytes) -> tuple[Tensor, Tensor]:
    mine, others = (
        torch.frombuffer(bytearray(each), dtype=torch.float32).view(-1, 4) for each in (ours, theirs)
    )
    most = [overlaps(rows[None], others[None])[0].max(dim=1) for rows in torch.split(mine, ROWS)]
    return torch.cat([each.indices for each in most]), torch.cat([each.values for each in most])


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other or (one is not None and other is not None and torch.equal(one, other))


def deltas_of(corners: Tensor, anchors: Tensor, coding: Tensor | None) -> Tensor:
    """Boxes as what a head answers: by how much they differ from anchors.

    Args:
        corners: ``(N, R, 4)`` or, one for each class, ``(N, R, C, 4)``, in pixels.
        anchors: ``(N, R, 4)`` in pixels.
        coding: Weights ``(4,)`` of the shifts of the middle and the logarithms of the sides; without them
            distances of the anchor's middle from the four sides, in sides of the anchor.

    Returns:
        Deltas of the shape of ``corners``.

    >>> deltas_of(torch.tensor([[[0.0, 0.0, 4.0, 2.0]]]), torch.tensor([[[0.0, 0.0, 2.0, 2.0]]]), None)
    tensor([[[0.5000, 0.5000, 1.5000, 0.5000]]])
    """
    anchors = anchors if corners.dim() == 3 else anchors[:, :, None]
    first, last = anchors[..., :2], anchors[..., 2:]
    middle, size = (first + last) / 2, last - first
    if coding is None:
        off = torch.cat([middle - corners[..., :2], corners[..., 2:] - middle], dim=-1)
        return off / torch.cat([size, size], dim=-1)
    shift = ((corners[..., :2] + corners[..., 2:]) / 2 - middle) / size
    sides = (corners[..., 2:] - corners[..., :2]).clamp(min=torch.finfo(corners.dtype).tiny)
    return torch.cat([shift, (sides / size).log()], dim=-1) * coding


def sides_of(signals: Signals) -> Tensor:
    """Width, height, width and height of what the network saw, ``(4,)``."""
    return signals.taps["size"].repeat(2)


def overlaps(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of boxes ``(N, R, 4)`` and ``(N, n, 4)``, ``(N, R, n)``."""
    first = torch.maximum(boxes[:, :, None, :2], others[:, None, :, :2])
    last = torch.minimum(boxes[:, :, None, 2:], others[:, None, :, 2:])
    shared = (last - first).clamp(min=0).prod(dim=-1)
    areas = [(each[..., 2:] - each[..., :2]).prod(dim=-1) for each in (boxes, others)]
    return shared / (areas[0][:, :, None] + areas[1][:, None] - shared).clamp(min=1e-12)
