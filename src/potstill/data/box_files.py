"""Images with boxes as they lie on a disk: COCO json, Pascal VOC xml, YOLO txt."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from potstill.errors import UserError

__all__ = ["Annotated", "Box", "Parts", "read_coco", "read_voc", "read_yolo"]

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
    """One image file and what is in it; sides are ``None`` where only the file knows."""

    path: Path
    boxes: tuple[Box, ...] = ()
    size: tuple[int, int] | None = None


@dataclass
class Parts:
    """What was read: images by part (``train``, ``validation``, ``test``), classes, what was left out."""

    images: dict[str, list[Annotated]]
    class_names: tuple[str, ...]
    notes: list[str] = field(default_factory=list)


class _Left:
    """Counts what was left out, so that a reader is told once."""

    def __init__(self) -> None:
        self.reasons: Counter[str] = Counter()

    def notes(self) -> list[str]:
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
    names = tuple(str(categories[number].get("name", number)) for number in sorted(categories))
    label = {number: place for place, number in enumerate(sorted(categories))}
    entries = _by_id(raw["images"], f"{annotations}: images")
    if not entries:
        raise UserError(where, f"{annotations} lists no image")
    left, boxes = _Left(), dict[int, list[Box]]()
    for number, note in _by_id(raw["annotations"], f"{annotations}: annotations").items():
        at = f"{annotations}: annotation {number}"
        if note.get("image_id") not in entries:
            raise UserError(at, f"is of image {note.get('image_id')!r}, which is not listed")
        if note.get("category_id") not in label:
            raise UserError(at, f"has category {note.get('category_id')!r}; known are {sorted(label)}")
        x, y, width, height = [*map(float, note.get("bbox", ())), *[math.nan] * 4][:4]
        entry = entries[note["image_id"]]
        corners = left.cornered((x, y, x + width, y + height), _sides(entry), at)
        if corners is not None:
            box = Box(corners, label[note["category_id"]], bool(note.get("iscrowd", 0)))
            boxes.setdefault(note["image_id"], []).append(box)
    parts: dict[str, list[Annotated]] = {}
    for number, entry in sorted(entries.items()):
        part = PARTS.get(str(entry.get("split", "train")), str(entry.get("split")))
        image = Annotated(images / str(entry["file_name"]), tuple(boxes.get(number, ())), _sides(entry))
        parts.setdefault(part, []).append(image)
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
    for row in rows:
        if "id" not in row:
            raise UserError(where, f"expected an id in each, got {dict(row)}")
        if row["id"] in found:
            raise UserError(where, f"the id {row['id']} occurs twice")
        found[row["id"]] = row
    return found


def _sides(entry: Mapping[str, Any]) -> tuple[int, int] | None:
    both = entry.get("height"), entry.get("width")
    return (int(both[0]), int(both[1])) if both[0] and both[1] else None


def read_voc(folder: Path, where: str = "data.path") -> Parts:
    """Pascal VOC: ``Annotations/*.xml``, ``JPEGImages``, and parts listed in ``ImageSets/Main/PART.txt``.

    Classes are the names that occur, in alphabetical order; boxes marked ``difficult`` count as crowds.

    Raises:
        UserError: If there is no xml, one cannot be read, or a box is none.
    """
    files = sorted((folder / "Annotations").glob("*.xml"))
    if not files:
        raise UserError(where, f"no xml in {folder / 'Annotations'}")
    left, read = _Left(), {file.stem: _xml(file) for file in files}
    names = tuple(sorted({name for _, rows, _ in read.values() for name, _, _ in rows}))
    images = {}
    for stem, (file_name, rows, size) in read.items():
        boxes = []
        for name, corners, difficult in rows:
            inside = left.cornered(corners, size, f"{folder / 'Annotations' / stem}.xml")
            if inside is not None:
                boxes.append(Box(inside, names.index(name), difficult))
        images[stem] = Annotated(folder / "JPEGImages" / file_name, tuple(boxes), size)
    return Parts(dict(_listed(folder / "ImageSets" / "Main", images, where)), names, left.notes())


Objects = list[tuple[str, tuple[float, ...], bool]]


def _xml(path: Path) -> tuple[str, Objects, tuple[int, int] | None]:
    from xml.etree import ElementTree

    try:
        root = ElementTree.parse(path).getroot()
        rows: Objects = []
        for thing in root.iter("object"):
            box = thing.find("bndbox")
            assert box is not None, "an object has a box"
            left, top, right, bottom = (
                float(box.findtext(name, "nan")) for name in ("xmin", "ymin", "xmax", "ymax")
            )
            # pixels are counted from 1, and the last one belongs to the box
            corners = (left - 1, top - 1, right, bottom)
            rows.append((str(thing.findtext("name")), corners, thing.findtext("difficult") == "1"))
        height, width = (int(float(root.findtext(f"size/{side}", "0"))) for side in ("height", "width"))
    except (ElementTree.ParseError, OSError, ValueError, AssertionError) as error:
        raise UserError(str(path), f"expected Pascal VOC xml: {error}") from error
    name = root.findtext("filename") or f"{path.stem}.jpg"
    return name, rows, (height, width) if height and width else None


def _listed(
    folder: Path, images: Mapping[str, Annotated], where: str
) -> Iterator[tuple[str, list[Annotated]]]:
    lists = [file for file in sorted(folder.glob("*.txt")) if file.stem in PARTS]
    if not lists:
        yield "train", list(images.values())
    for file in lists:
        stems = file.read_text(encoding="utf-8").split()
        for stem in stems:
            if stem not in images:
                raise UserError(where, f"{file} lists {stem!r}, which has no xml")
        yield PARTS[file.stem], [images[stem] for stem in stems]


def read_yolo(folder: Path, names: Sequence[str], where: str = "data.path") -> Parts:
    """YOLO: ``images/PART/*`` and ``labels/PART/*.txt`` with lines ``class x y width height``, as shares.

    Args:
        folder: Holds ``images`` and ``labels``, and perhaps ``classes.txt``.
        names: The classes in order; those of ``classes.txt`` where there are none.
        where: Dotted key for messages.

    Raises:
        UserError: If there is no image, no list of classes, or a line is none.
    """
    listed = folder / "classes.txt"
    if not names and listed.is_file():
        names = listed.read_text(encoding="utf-8").split("\n")
        names = [name.strip() for name in names if name.strip()]
    if not names:
        raise UserError("data.classes", f"missing; {folder} has no classes.txt")
    files = sorted(file for file in (folder / "images").rglob("*") if file.suffix.lower() in IMAGES)
    if not files:
        raise UserError(where, f"no image in {folder / 'images'}")
    left, parts = _Left(), dict[str, list[Annotated]]()
    for file in files:
        inner = file.relative_to(folder / "images")
        part = PARTS.get(inner.parts[0], "train") if len(inner.parts) > 1 else "train"
        labels = (folder / "labels" / inner).with_suffix(".txt")
        parts.setdefault(part, []).append(_yolo(file, labels, len(names), left))
    return Parts(parts, tuple(names), left.notes())


def _yolo(image: Path, labels: Path, classes: int, left: _Left) -> Annotated:
    height, width = size_of(image)
    boxes, text = [], labels.read_text(encoding="utf-8") if labels.is_file() else ""
    for number, line in enumerate(filter(str.strip, text.split("\n")), start=1):
        where = f"{labels}: line {number}"
        try:
            label, *shares = (float(part) for part in line.split())
        except ValueError as error:
            raise UserError(where, f"expected numbers, got {line!r}") from error
        if len(shares) != 4 or label != int(label) or not 0 <= label < classes:
            raise UserError(where, f"expected a class 0 to {classes - 1} and four shares, got {line!r}")
        x, y, w, h = shares
        corners = ((x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height)
        inside = left.cornered(corners, (height, width), where)
        if inside is not None:
            boxes.append(Box(inside, int(label)))
    return Annotated(image, tuple(boxes), (height, width))


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
