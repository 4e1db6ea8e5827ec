"""Names beside the marks of a chart, placed so that they cover neither a mark nor each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from potstill.report._scales import Frame

__all__ = ["Label", "names"]

CHARACTER, HEIGHT = 7.6, 15.0  # of the bold type, in pixels
MARK = 6.0  # half the side of a mark, with a little air

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Label:
    """A name and the pixel of its mark; ``kind`` decides its colour."""

    kind: str
    name: str
    x: float
    y: float


def names(frame: Frame, labels: Sequence[Label], lines: Sequence[tuple[float, float]] = ()) -> str:
    """All names as SVG, in the order in which they have the first choice of place.

    Args:
        frame: What they must stay within.
        labels: What to write.
        lines: Pixels of lines that are better left free, though they may be covered.
    """
    marks = [(one.x - MARK, one.y - MARK, one.x + MARK, one.y + MARK) for one in labels]
    taken: list[Box] = []
    text = ""
    for label in labels:
        box = min(
            _places(label),
            key=lambda place: _cost(place, frame, [*taken, *marks], lines) + _far(place, label),
        )
        taken.append(box)
        anchor, x = ("end", box[2]) if box[2] < label.x else ("start", box[0])
        text += f'<text class="name {label.kind}" x="{x:.1f}" y="{box[3] - 4:.1f}" text-anchor="{anchor}">'
        text += f"{escape(label.name)}</text>"
    return text


def _places(label: Label) -> list[Box]:
    """Boxes around a mark: beside it, above and below, and further out."""
    width = CHARACTER * len(label.name)
    found = []
    for away in (0.0, 10.0, 22.0, 36.0, 52.0):
        for x in (label.x + MARK + 2, label.x - MARK - 2 - width, label.x - width / 2):
            for y in (label.y - HEIGHT / 2 - away, label.y - HEIGHT / 2 + away):
                found.append((x, y, x + width, y + HEIGHT))
    return found


def _far(box: Box, label: Label) -> float:
    """How far the box's edge is from its mark, in pixels."""
    across = max(box[0] - label.x, label.x - box[2], 0.0)
    down = max(box[1] - label.y, label.y - box[3], 0.0)
    return across + down


def _cost(box: Box, frame: Frame, taken: Sequence[Box], lines: Sequence[tuple[float, float]]) -> float:
    """Much for what it covers or for leaving the frame, a little for lines below it."""
    cost = sum(10 * _shared(box, other) for other in taken)
    outside = max(frame.x.start - box[0], 0) + max(box[2] - frame.width, 0)
    outside += max(box[3] - frame.y.start, 0) + max(-box[1], 0)
    covered = sum(box[0] <= x <= box[2] and box[1] <= y <= box[3] for x, y in lines)
    return cost + 100 * outside + 4 * covered


def _shared(first: Box, second: Box) -> float:
    """Pixels in both boxes."""
    across = min(first[2], second[2]) - max(first[0], second[0])
    down = min(first[3], second[3]) - max(first[1], second[1])
    return max(across, 0.0) * max(down, 0.0)
