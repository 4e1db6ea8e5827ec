"""What the page shows of detectors: images with boxes, curves, what was found, where hints were taken."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "COLOURS",
    "ClassCount",
    "ClassCurve",
    "Detected",
    "Glimpse",
    "Hint",
    "Scene",
    "ShownBox",
    "photograph",
]

COLOURS = ("#ff8a3d", "#3db8ff", "#c3f53c", "#ff5fa2", "#ffd92e", "#9d8cff", "#39e6b0", "#e8b18a")
"""Of classes in turn, on photographs: told apart by lightness too."""
LARGEST_SIDE = 480


@dataclass(frozen=True, kw_only=True)
class ShownBox:
    """One box on a picture.

    Attributes:
        corners: Left, top, right and bottom in pixels of the picture.
        label: Its class, counted from 0.
        kind: ``true``; of a network's ``right``, ``wrong``, ``missed`` (the true box that none found), or
            ``gained`` (right, and no box of the control's found that object).
        score: How sure the network is; ``None`` for true boxes.
    """

    corners: tuple[float, float, float, float]
    label: int
    kind: str
    score: float | None = None


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One test image, what is in it, and what each arm sees.

    Attributes:
        image: A ``data:`` URI, from :func:`photograph`.
        size: Width and height of the picture.
        index: Position in the test part.
        why: Why it is shown.
        boxes: By ``truth`` and arm.
    """

    image: str
    size: tuple[int, int]
    index: int
    why: str
    boxes: Mapping[str, tuple[ShownBox, ...]]


@dataclass(frozen=True, kw_only=True)
class Glimpse:
    """One object that only one of control and student found, cut out: what it is, and how sure it was."""

    image: str
    label: int
    score: float
    gained: bool


@dataclass(frozen=True, kw_only=True)
class ClassCount:
    """What was found of one class, means over the seeds.

    Attributes:
        name: The class.
        objects: Objects of the test part.
        found: By arm how many of them were found.
        wrong: By arm how many boxes were of none.
        gained: Objects that the student found and the control did not; ``None`` without a control.
        lost: The other way round.
    """

    name: str
    objects: int
    found: Mapping[str, float]
    wrong: Mapping[str, float]
    gained: float | None = None
    lost: float | None = None


@dataclass(frozen=True, kw_only=True)
class ClassCurve:
    """Precision of one class at recalls 0, 0.01 .. 1, by arm: lowest, mean and highest over seeds."""

    name: str
    objects: int
    precision: Mapping[str, tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]]


@dataclass(frozen=True, kw_only=True)
class Hint:
    """Where a term looked at a pair of maps, on one test image.

    Attributes:
        image: A ``data:`` URI: the image, dark where nothing was compared.
        size: Width and height of the picture.
        term: Name of the term.
        layer: Path of the teacher's layer.
        grid: Height and width of its map.
        covered: Share of its places that true boxes touch.
        weight: Share of the weight that lies there.
    """

    image: str
    size: tuple[int, int]
    term: str
    layer: str
    grid: tuple[int, int]
    covered: float
    weight: float


@dataclass(frozen=True, kw_only=True)
class Detected:
    """Everything that the page tells of detectors.

    Attributes:
        scenes: A few test images.
        glimpses: Objects that one of control and student found alone.
        counts: One a class that has objects.
        curves: The same.
        sure: By arm the score from which on its boxes count: where F1 is best.
        hints: Where hints were taken.
    """

    scenes: tuple[Scene, ...] = ()
    glimpses: tuple[Glimpse, ...] = ()
    counts: tuple[ClassCount, ...] = ()
    curves: tuple[ClassCurve, ...] = ()
    sure: Mapping[str, float] = field(default_factory=dict)
    hints: tuple[Hint, ...] = ()


def photograph(image: NDArray[np.uint8], largest: int = LARGEST_SIDE) -> tuple[str, tuple[int, int]]:
    """A ``data:`` URI of an image as JPEG, its longer side shrunk to at most ``largest``, and its size.

    Args:
        image: ``(3, H, W)`` bytes.
        largest: Longest side in pixels.

    >>> uri, size = photograph(np.zeros((3, 8, 16), dtype=np.uint8))
    >>> uri[:23], size
    ('data:image/jpeg;base64,', (16, 8))
    """
    from PIL import Image

    drawn = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
    drawn.thumbnail((largest, largest))
    buffer = io.BytesIO()
    drawn.save(buffer, format="JPEG", quality=86)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii"), drawn.size
