"""Images with boxes as they lie on a disk, and COCO json; other formats are in :mod:`voc_yolo`."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from potstill.errors import UserError

__all__ = ["IMAGES", "PARTS", "Annotated", "Box", "LeftOut", "Parts"]
__all__ += ["distinct", "lines_of", "read_coco", "size_of", "unlabelled"]

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
PARTS = {"train": "train", "training": "train", "val": "validation", "valid": "validation", "test": "test"}
PARTS |= {"validation": "validation"}


@dataclass(frozen=True)
class Box:
    """One object: left, top, right, bottom in pixels of the file, its class, and whether it is a crowd."""

    corners: tuple[float, float, float, float]
    label: int
    crowd: bool = False


@dataclass(frozen=True)
class Annotated:
    """One image file and what is in it, if anybody labelled it; ``size`` is ``None`` where the file knows."""

    path: Path
    boxes: tuple[Box, ...] = ()
    size: tuple[int, int] | None = None
    labelled: bool = True


@dataclass
class Parts:
    """What was read: images by part (``train``, ``validation``, ``test``), classes, what was left out."""

    images: dict[str, list[Annotated]]
    class_names: tuple[str, ...]
    notes: list[str] = field(default_factory=list)


class LeftOut:
    """Counts what was left out, so that a reader is told once."""

    def __init__(self) -> None:
        self.reasons: Counter[str] = Counter()

    def notes(self) -> list[str]:
        """One line a reason."""
        return [f"{count} {reason}" for reason, count in sorted(self.reasons.items())]

    def cornered(
        self, corners: Sequence[float], size: tuple[int, int] | None, where: str
    ) -> tuple[float, float, float, float] | None:
        """Corners inside the image; ``None`` where nothing of the box is.

        Raises:
            UserError: If they are no finite numbers.
        """
        if len(corners) != 4 or not all(math.isfinite(each) for each in corners):
            raise UserError(where, f"expected four finite numbers as a box, got {list(corners)}")
        left, top, right, bottom = corners
        if right <= left or bottom <= top:
            self.reasons["box(es) without an area were left out"] += 1
            return None
        if size is not None:
            height, width = size
            inside = max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height))
            if inside[2] <= inside[0] or inside[3] <= inside[1]:
                self.reasons["box(es) outside their image were left out"] += 1
                return None
            if inside != (left, top, right, bottom):
                self.reasons["box(es) were clipped to their image"] += 1
            left, top, right, bottom = inside
        return left, top, right, bottom


def read_coco(annotations: Path, images: Path, where: str = "data.path") -> Parts:
    """A COCO json; ``split`` of an image says its part, ``train`` where it has none.

    Category ids may have holes; classes are numbered in their order. Crowds are kept, and marked.

    Raises:
        UserError: If the file is no such json, holds no image, names an image or a category twice or one that
            it does not list, or has a box that is none.
    """
    raw = _json(annotations, where)
    categories = _by_id(raw["categories"], f"{annotations}: categories")
    names = distinct([_name(each) for each in categories.values()], f"{annotations}: categories")
    label = {number: place for place, number in enumerate(categories)}
    entries = _by_id(raw["images"], f"{annotations}: images")
    if not entries:
        raise UserError(where, f"{annotations} lists no image")
    sizes = {number: _sides(entry, f"{annotations}: image {number}") for number, entry in entries.items()}
    left, boxes = LeftOut(), dict[int, list[Box]]()
    for number, note in _by_id(raw["annotations"], f"{annotations}: annotations").items():
        at = f"{annotations}: annotation {number}"
        if not _listed(note.get("image_id"), entries):
            raise UserError(at, f"is of image {note.get('image_id')!r}, which is not listed")
        if not _listed(note.get("category_id"), label):
            raise UserError(at, f"has category {note.get('category_id')!r}; known are {list(label)}")
        x, y, width, height = _numbers(note.get("bbox"), at)
        corners = left.cornered((x, y, x + width, y + height), sizes[note["image_id"]], at)
        if corners is not None:
            crowd = note.get("iscrowd", 0)
            if crowd not in (0, 1):
                raise UserError(at, f"expected iscrowd 0 or 1, got {crowd!r}")
            box = Box(corners, label[note["category_id"]], bool(crowd))
            boxes.setdefault(note["image_id"], []).append(box)
    parts: dict[str, list[Annotated]] = {}
    for number, entry in entries.items():
        at, split = f"{annotations}: image {number}", entry.get("split", "train")
        if not isinstance(split, str) or split not in PARTS:
            raise UserError(at, f"has split {split!r}, expected one of {', '.join(PARTS)}")
        if not isinstance(entry.get("file_name"), str):
            raise UserError(at, f"expected a file_name, got {entry.get('file_name')!r}")
        image = Annotated(images / entry["file_name"], tuple(boxes.get(number, ())), sizes[number])
        parts.setdefault(PARTS[split], []).append(image)
    return Parts(parts, names, left.notes())


def _json(path: Path, where: str) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(where, f"{path}: expected COCO json: {error}") from error
    missing = [
        key for key in ("images", "annotations", "categories") if not isinstance(raw, dict) or key not in raw
    ]
    if missing:
        raise UserError(where, f"{path}: expected COCO json with images, annotations and categories")
    return dict(raw)


def _by_id(rows: Sequence[Mapping[str, Any]], where: str) -> dict[int, Mapping[str, Any]]:
    found: dict[int, Mapping[str, Any]] = {}
    if not isinstance(rows, list):
        raise UserError(where, f"expected a list, got {type(rows).__name__}")
    for row in rows:
        if not isinstance(row, Mapping) or not isinstance(row.get("id"), int | str):
            raise UserError(where, f"expected an id in each, got {row!r}")
        if row["id"] in found:
            raise UserError(where, f"the id {row['id']} occurs twice")
        found[row["id"]] = row
    return dict(sorted(found.items(), key=lambda each: (isinstance(each[0], str), each[0])))


def _name(category: Mapping[str, Any]) -> str:
    name = category.get("name")
    return str(category["id"] if name is None else name)


def distinct(names: Sequence[str], where: str) -> tuple[str, ...]:
    """The names of classes, which must differ: classes are matched by name.

    Raises:
        UserError: If one occurs twice.
    """
    for name, count in Counter(names).items():
        if count > 1:
            raise UserError(where, f"the name {name!r} occurs twice")
    return tuple(names)


def _listed(number: Any, table: Mapping[int, Any]) -> bool:
    return isinstance(number, int | str) and number in table


def _numbers(box: Any, where: str) -> tuple[float, ...]:
    try:
        x, y, width, height = (float(each) for each in box)
    except (TypeError, ValueError) as error:
        raise UserError(where, f"expected four finite numbers as a box, got {box!r}") from error
    return x, y, width, height


def _sides(entry: Mapping[str, Any], where: str) -> tuple[int, int] | None:
    both = entry.get("height"), entry.get("width")
    if None in both:
        return None
    if not all(isinstance(each, int | float) and 1 <= each < math.inf for each in both):
        raise UserError(where, f"expected height and width in pixels, got {both[0]!r} and {both[1]!r}")
    return int(both[0]), int(both[1])  # type: ignore[arg-type]


def size_of(path: Path) -> tuple[int, int]:
    """Height and width of an image file.

    Raises:
        UserError: At its path, if it cannot be read.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.height, image.width
    except (OSError, ValueError) as error:
        raise UserError(str(path), f"expected an image: {error}") from error


def lines_of(path: Path) -> list[str]:
    """The lines of a text file that say something.

    Raises:
        UserError: At its path, if it cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(str(path), f"expected text: {error}") from error
    return [line.strip() for line in text.split("\n") if line.strip()]


def unlabelled(folder: Path, where: str = "data.unlabelled") -> list[Annotated]:
    """All images in a folder and below, without labels.

    Raises:
        UserError: If there is none.
    """
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in IMAGES)
    if not files:
        raise UserError(where, f"no image in {folder}")
    return [Annotated(file, labelled=False) for file in files]
