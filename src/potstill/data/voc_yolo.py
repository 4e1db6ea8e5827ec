"""Images with boxes in Pascal VOC's xml and YOLO's txt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from potstill.data.box_files import IMAGES, PARTS, Annotated, Box, LeftOut, Parts, distinct, lines_of, size_of
from potstill.errors import UserError

__all__ = ["read_voc", "read_yolo"]


def read_voc(folder: Path, where: str = "data.path") -> Parts:
    """Pascal VOC: ``Annotations/*.xml``, ``JPEGImages``, and parts listed in ``ImageSets/Main/PART.txt``.

    Classes are the names that occur, in alphabetical order; boxes marked ``difficult`` count as crowds.

    Raises:
        UserError: If there is no xml, one cannot be read, or a box is none.
    """
    files = sorted((folder / "Annotations").glob("*.xml"))
    if not files:
        raise UserError(where, f"no xml in {folder / 'Annotations'}")
    left, read = LeftOut(), {file.stem: _xml(file) for file in files}
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
            box, name = thing.find("bndbox"), thing.findtext("name")
            if box is None or not name:
                raise ValueError("an object without a name or a bndbox")
            left, top, right, bottom = (
                float(box.findtext(side, "nan")) for side in ("xmin", "ymin", "xmax", "ymax")
            )
            # pixels are counted from 1, and the last one belongs to the box
            corners = (left - 1, top - 1, right, bottom)
            rows.append((name, corners, thing.findtext("difficult") == "1"))
        height, width = (int(float(root.findtext(f"size/{side}", "0"))) for side in ("height", "width"))
        if min(height, width) < 0:
            raise ValueError(f"a size of {height} x {width}")
    except (ElementTree.ParseError, OSError, ValueError, OverflowError) as error:
        raise UserError(str(path), f"expected Pascal VOC xml: {error}") from error
    file_name = root.findtext("filename") or f"{path.stem}.jpg"
    return file_name, rows, (height, width) if height and width else None


def _listed(
    folder: Path, images: Mapping[str, Annotated], where: str
) -> Iterator[tuple[str, list[Annotated]]]:
    lists = [file for file in sorted(folder.glob("*.txt")) if file.stem in PARTS]
    if not lists:
        yield "train", list(images.values())
    for file in lists:
        stems = lines_of(file)
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
        names = lines_of(listed)
    if not names:
        raise UserError("data.classes", f"missing; {folder} has no classes.txt")
    names = distinct(names, "data.classes")
    files = sorted(file for file in (folder / "images").rglob("*") if file.suffix.lower() in IMAGES)
    if not files:
        raise UserError(where, f"no image in {folder / 'images'}")
    left, parts = LeftOut(), dict[str, list[Annotated]]()
    for file in files:
        inner = file.relative_to(folder / "images")
        part = PARTS.get(inner.parts[0], "train") if len(inner.parts) > 1 else "train"
        labels = (folder / "labels" / inner).with_suffix(".txt")
        parts.setdefault(part, []).append(_yolo(file, labels, len(names), left))
    return Parts(parts, names, left.notes())


def _yolo(image: Path, labels: Path, classes: int, left: LeftOut) -> Annotated:
    height, width = size_of(image)
    boxes = []
    for number, line in enumerate(lines_of(labels) if labels.is_file() else [], start=1):
        where = f"{labels}: line {number}"
        try:
            label, *shares = (float(part) for part in line.split())
        except ValueError as error:
            raise UserError(where, f"expected numbers, got {line!r}") from error
        if len(shares) != 4 or not 0 <= label < classes or label != int(label):
            raise UserError(where, f"expected a class 0 to {classes - 1} and four shares, got {line!r}")
        x, y, w, h = shares
        corners = ((x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height)
        inside = left.cornered(corners, (height, width), where)
        if inside is not None:
            boxes.append(Box(inside, int(label)))
    return Annotated(image, tuple(boxes), (height, width))
