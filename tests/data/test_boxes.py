"""Images with boxes: three formats that say the same, and what is wrong with files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from potstill.data.boxes import BoxConfig, load_boxes
from potstill.errors import UserError
from tests.shapes import NAMES, SIDE, write_shapes


def changed(path: Path, change: Any) -> None:
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    return write_shapes(tmp_path, {"train": 6, "val": 2, "test": 2})


def read(shapes: Path, **more: Any) -> Any:
    return load_boxes(BoxConfig(path=shapes.name, size=(SIDE, SIDE), **more), [shapes.parent])


def test_ids_with_holes_become_classes_in_order(shapes: Path) -> None:
    splits = read(shapes)
    assert splits.train.class_names == NAMES
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (6, 2, 2)
    images, boxes, index = splits.train.__getitems__([0, 3])
    assert images.shape == (2, 3, SIDE, SIDE)
    assert index.tolist() == [0, 3]
    raw = json.loads(shapes.read_text())
    for row, position in enumerate((0, 3)):
        mine = [note for note in raw["annotations"] if note["image_id"] == position + 1]
        there = boxes[row][boxes[row, :, 4] > 0]
        for box, note in zip(there, mine, strict=True):
            x, y, width, height = note["bbox"]
            assert box.tolist() == [x, y, x + width, y + height, 1 + (note["category_id"] == 7), 0]
            inside = images[row, int(box[4]) - 1, y + height // 2, x + width // 2]
            assert int(inside) == 230 or len(mine) > 1  # another may lie on it


def test_voc_and_yolo_say_the_same_as_coco(shapes: Path, tmp_path: Path) -> None:
    raw, root = json.loads(shapes.read_text()), shapes.parent
    for folder in ("Annotations", "ImageSets/Main"):
        (root / "voc" / folder).mkdir(parents=True)
    (root / "voc" / "JPEGImages").symlink_to(root)
    parts: dict[str, list[str]] = {}
    for image in raw["images"]:
        stem, split = Path(image["file_name"]).stem, image["split"]
        parts.setdefault(split, []).append(stem)
        objects, lines = "", []
        for note in raw["annotations"]:
            if note["image_id"] != image["id"]:
                continue
            x, y, w, h = note["bbox"]
            label = int(note["category_id"] == 7)
            box = f"<xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax>"
            objects += f"<object><name>{NAMES[label]}</name><bndbox>{box}</bndbox></object>"
            lines.append(f"{label} {(x + w / 2) / SIDE} {(y + h / 2) / SIDE} {w / SIDE} {h / SIDE}")
        size = f"<size><width>{SIDE}</width><height>{SIDE}</height></size>"
        text = f"<annotation><filename>{stem}.png</filename>{size}{objects}</annotation>"
        (root / "voc" / "Annotations" / f"{stem}.xml").write_text(text)
        for folder in ("images", "labels"):
            (root / "yolo" / folder / split).mkdir(parents=True, exist_ok=True)
        (root / "yolo" / "images" / split / f"{stem}.png").symlink_to(root / image["file_name"])
        (root / "yolo" / "labels" / split / f"{stem}.txt").write_text("\n".join(lines))
    for split, stems in parts.items():
        (root / "voc" / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(sorted(stems)))
    coco = read(shapes)
    voc = load_boxes(BoxConfig(kind="voc", path="voc", size=(SIDE, SIDE)), [root])
    yolo = load_boxes(BoxConfig(kind="yolo", path="yolo", size=(SIDE, SIDE), classes=NAMES), [root])
    order = {name: place + 1 for place, name in enumerate(voc.train.class_names)}
    for part in ("train", "validation", "test"):
        theirs = {
            image.path.name: sorted(([*box.corners], NAMES[box.label]) for box in image.boxes)
            for image in getattr(coco, part).annotated
        }
        for other in (voc, yolo):
            names = getattr(other, part).class_names
            ours = getattr(other, part).annotated
            assert {image.path.name for image in ours} == set(theirs)
            for image in ours:
                for (mine, name), (wanted, known) in zip(
                    sorted(([*box.corners], names[box.label]) for box in image.boxes),
                    theirs[image.path.name],
                    strict=True,
                ):
                    assert mine == pytest.approx(wanted)
                    assert name == known
    assert order == {"disc": 1, "square": 2}


def test_images_of_any_shape_keep_theirs_in_one_size(tmp_path: Path) -> None:
    path = write_shapes(tmp_path, {"train": 4, "val": 1, "test": 1})
    pixels = np.zeros((30, 90, 3), dtype=np.uint8)
    pixels[10:20, 30:60] = 255
    Image.fromarray(pixels).save(tmp_path / "1.png")

    def change(raw: Any) -> None:
        raw["images"][0] |= {"width": 90, "height": 30}
        raw["annotations"] = [note for note in raw["annotations"] if note["image_id"] != 1]
        raw["annotations"].append(
            {"id": 99, "image_id": 1, "category_id": 3, "bbox": [30, 10, 30, 10], "iscrowd": 1}
        )

    changed(path, change)
    train = read(path).train
    images, boxes, _ = train.__getitems__([0])
    scale = SIDE / 90
    assert train.scale(0) == pytest.approx(scale)
    torch.testing.assert_close(boxes[0, 0], torch.tensor([30, 10, 60, 20, 1 / scale, 1 / scale]) * scale)
    left, top, right, bottom = boxes[0, 0, :4].round().int().tolist()
    assert int(images[0, 0, top + 2 : bottom - 2, left + 2 : right - 2].min()) > 250
    assert not images[0, :, round(30 * scale) + 1 :].any()


def test_images_smaller_than_the_size_are_enlarged(tmp_path: Path) -> None:
    path = write_shapes(tmp_path, {"train": 4, "val": 1, "test": 1})
    train = load_boxes(BoxConfig(path=path.name, size=(2 * SIDE, 2 * SIDE)), [tmp_path]).train
    plain = load_boxes(BoxConfig(path=path.name, size=(SIDE, SIDE)), [tmp_path]).train
    torch.testing.assert_close(train.__getitems__([0])[1][..., :4], 2 * plain.__getitems__([0])[1][..., :4])


def test_a_folder_without_images_is_no_unlabelled_one(tmp_path: Path) -> None:
    path = write_shapes(tmp_path, {"train": 4, "val": 1, "test": 1})
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match=r"data\.unlabelled: no image in"):
        read(path, unlabelled="none")


def test_missing_parts_are_cut_and_told(tmp_path: Path) -> None:
    splits = read(write_shapes(tmp_path, {"train": 10}), validation=2)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (6, 2, 2)
    assert any("cut off" in note for note in splits.notes)
    names = [
        {image.path.name for image in part.annotated}
        for part in (splits.train, splits.validation, splits.test)
    ]
    assert len(set.union(*names)) == 10


def test_validation_and_test_may_be_measured_together(shapes: Path) -> None:
    assert len(read(shapes, test_with_validation=True).test) == 4


def add(**note: Any) -> Any:
    whole = {"id": 900, "image_id": 1, "category_id": 3, "bbox": [1, 1, 9, 9], "iscrowd": 0} | note
    return lambda raw: raw["annotations"].append(whole)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (add(bbox=[-5, 60, 20, 20]), "clipped to their image"),
        (add(bbox=[SIDE + 3, 0, 9, 9]), "outside their image were left out"),
        (add(bbox=[3, 3, 0, 9]), "without an area were left out"),
        (add(bbox=[3, 3, 9, -2]), "without an area were left out"),
    ],
)
def test_boxes_that_do_not_lie_in_their_image_are_told(shapes: Path, change: Any, told: str) -> None:
    before = sum(len(image.boxes) for image in read(shapes).train.annotated)
    changed(shapes, change)
    splits = read(shapes)
    assert any(told in note for note in splits.notes)
    kept = sum(len(image.boxes) for image in splits.train.annotated)
    assert kept == before + ("clipped" in told)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (add(bbox=[3, float("nan"), 9, 9]), r"annotation 900: expected four finite numbers"),
        (add(bbox=[3, 9, 9]), r"annotation 900: expected four finite numbers"),
        (add(bbox=["a", 1, 9, 9]), r"annotation 900: expected four finite numbers"),
        (add(bbox=None), r"annotation 900: expected four finite numbers"),
        (add(image_id=[1]), r"annotation 900: is of image \[1\]"),
        (
            lambda raw: raw["images"][0].update(split="odd"),
            r"image 1: has split 'odd', expected one of train",
        ),
        (
            lambda raw: raw["images"][0].update(split=["odd"]),
            r"image 1: has split \['odd'\], expected one of",
        ),
        (lambda raw: raw["images"][0].update(file_name=None), r"image 1: expected a file_name"),
        (
            lambda raw: raw["images"][0].update(width=float("inf")),
            r"image 1: expected height and width in pixels",
        ),
        (
            lambda raw: raw["images"].append({**raw["images"][0], "id": 77, "split": "test"}),
            r"data\.path: 1 images are listed more than once, in one part or in two, the first: .*1\.png",
        ),
        (add(iscrowd="0"), r"annotation 900: expected iscrowd 0 or 1, got '0'"),
        (
            lambda raw: [note.update(iscrowd=1) for note in raw["annotations"]],
            r"data\.path: expected boxes to learn from",
        ),
        (lambda raw: raw["images"][0].update(width=0), r"image 1: expected height and width in pixels"),
        (lambda raw: raw["categories"][0].update(name="disc"), r"categories: the name 'disc' occurs twice"),
        (lambda raw: raw.update(images=[3]), r"images: expected an id in each, got 3"),
        (add(category_id=4), r"annotation 900: has category 4; known are \[3, 7\]"),
        (add(image_id=77), r"annotation 900: is of image 77"),
        (add(id=1), r"the id 1 occurs twice"),
        (lambda raw: raw["images"].append(raw["images"][0]), r"images: the id 1 occurs twice"),
        (lambda raw: raw.update(images=[], annotations=[]), r"data\.path: .* lists no image"),
        (lambda raw: raw.update(annotations=[]), r"data\.path: expected boxes to learn from"),
        (lambda raw: raw.pop("categories"), r"data\.path: .*expected COCO json with"),
        (
            lambda raw: raw["images"][2].update(file_name="gone.png"),
            r"1 of 10 images are missing, the first: .*gone",
        ),
    ],
)
def test_what_is_wrong_with_a_json_is_named(shapes: Path, change: Any, message: str) -> None:
    changed(shapes, change)
    with pytest.raises(UserError, match=message):
        read(shapes)


def test_images_without_annotations_are_background(shapes: Path) -> None:
    changed(shapes, lambda raw: raw.update(annotations=[n for n in raw["annotations"] if n["image_id"] != 2]))
    _, boxes, _ = read(shapes).train.__getitems__([1])
    assert not boxes.any()


def test_an_image_that_cannot_be_read_is_named(shapes: Path) -> None:
    (shapes.parent / "3.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"3\.png: cannot be read as an image"):
        read(shapes).train.__getitems__([2])


def test_an_image_of_another_size_than_its_labels_say_is_named(shapes: Path) -> None:
    changed(shapes, lambda raw: raw["images"][2].update(width=640, height=480))
    with pytest.raises(UserError, match=r"3\.png: is 64 high and 64 wide, its labels say 480 high and 640"):
        read(shapes).train.__getitems__([2])


@pytest.fixture
def yolo(tmp_path: Path) -> Path:
    for folder in ("images", "labels"):
        (tmp_path / "y" / folder).mkdir(parents=True)
    for number in range(4):
        Image.new("RGB", (8, 8)).save(tmp_path / "y" / "images" / f"{number}.png")
        (tmp_path / "y" / "labels" / f"{number}.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    return tmp_path


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"3 0.5 0.5 0.1 0.1", r"0\.txt: line 1: expected a class 0 to 0"),
        (b"nan 0.5 0.5 0.1 0.1", r"0\.txt: line 1: expected a class 0 to 0"),
        (b"inf 0.5 0.5 0.1 0.1", r"0\.txt: line 1: expected a class 0 to 0"),
        (b"0 0.1 0.1 0.2 0.2 0.3 0.3", r"0\.txt: line 1: expected a class 0 to 0 and four shares"),
        (b"\n0 nan 0.5 0.1 0.1", r"0\.txt: line 1: expected four finite numbers as a box"),
        (b"0 a", r"0\.txt: line 1: expected numbers"),
        (b"\xff\xfe", r"0\.txt: expected text"),
    ],
)
def test_lines_of_yolo_are_checked(yolo: Path, line: bytes, message: str) -> None:
    (yolo / "y" / "labels" / "0.txt").write_bytes(line)
    with pytest.raises(UserError, match=message):
        load_boxes(BoxConfig(kind="yolo", path="y", classes=("one",)), [yolo])


def test_boxes_of_yolo_outside_or_without_an_area_are_told(yolo: Path) -> None:
    lines = "0 1.5 0.5 0.1 0.1\n0 0.5 0.5 -0.1 0.1\n0 1 0.5 0.5 0.5"
    (yolo / "y" / "labels" / "0.txt").write_text(lines)
    (yolo / "y" / "labels" / "1.txt").unlink()  # nobody found anything there
    notes = load_boxes(BoxConfig(kind="yolo", path="y", classes=("one",), validation=1), [yolo]).notes
    for told in ("1 box(es) outside", "1 box(es) without an area", "1 box(es) were clipped"):
        assert any(told in note for note in notes)


def test_yolo_needs_names_that_differ(yolo: Path) -> None:
    with pytest.raises(UserError, match=r"data\.classes: missing"):
        load_boxes(BoxConfig(kind="yolo", path="y"), [yolo])
    with pytest.raises(UserError, match=r"data\.classes: the name 'one' occurs twice"):
        load_boxes(BoxConfig(kind="yolo", path="y", classes=("one", "one")), [yolo])


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """Four images with one box each, in one part."""
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (tmp_path / "v" / folder).mkdir(parents=True)
    box = "<xmin>1</xmin><ymin>1</ymin><xmax>4</xmax><ymax>4</ymax>"
    thing = f"<object><name>one</name><bndbox>{box}</bndbox></object>"
    for number in range(4):
        Image.new("RGB", (8, 8)).save(tmp_path / "v" / "JPEGImages" / f"{number}.png")
        size = "<size><width>8</width><height>8</height></size>"
        text = f"<annotation><filename>{number}.png</filename>{size}{thing}</annotation>"
        (tmp_path / "v" / "Annotations" / f"{number}.xml").write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<xmin>1<", "<xmin>nan<", r"0\.xml: expected four finite numbers as a box"),
        ("<xmax>4</xmax>", "", r"0\.xml: expected four finite numbers as a box"),
        ("<xmin>1<", "<xmin>one<", r"0\.xml: expected Pascal VOC xml: could not convert"),
        ("<name>one</name>", "", r"0\.xml: expected Pascal VOC xml: an object without a name or a bndbox"),
        ("bndbox", "box", r"0\.xml: expected Pascal VOC xml: an object without a name or a bndbox"),
        ("<width>8<", "<width>inf<", r"0\.xml: expected Pascal VOC xml: cannot convert"),
        ("<width>8<", "<width>-8<", r"0\.xml: expected Pascal VOC xml: a size of 8 x -8"),
        ("</annotation>", "", r"0\.xml: expected Pascal VOC xml: no element|unclosed"),
        ("0.png", "gone.png", r"data\.path: 1 of 4 images are missing, the first: .*gone"),
    ],
)
def test_what_is_wrong_with_an_xml_is_named(voc: Path, old: str, new: str, message: str) -> None:
    path = voc / "v" / "Annotations" / "0.xml"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UserError, match=message):
        load_boxes(BoxConfig(kind="voc", path="v", validation=1), [voc])


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ("0\n1\n9", r"data\.path: .*train\.txt lists '9', which has no xml"),
        ("0\n1\n1", r"data\.path: 1 images are listed more than once, .*1\.png"),
        ("0\n1\n3", r"data\.path: 1 images are listed more than once, in one part or in two, .*3\.png"),
    ],
)
def test_lists_of_voc_are_checked(voc: Path, train: str, message: str) -> None:
    (voc / "v" / "ImageSets" / "Main" / "train.txt").write_text(train)
    (voc / "v" / "ImageSets" / "Main" / "val.txt").write_text("3")
    with pytest.raises(UserError, match=message):
        load_boxes(BoxConfig(kind="voc", path="v", validation=1), [voc])


def test_difficult_boxes_of_voc_are_crowds(voc: Path) -> None:
    path = voc / "v" / "Annotations" / "0.xml"
    path.write_text(path.read_text().replace("</name>", "</name><difficult>1</difficult>"))
    for part, stems in (("train", "0\n1"), ("val", "2"), ("test", "3")):
        (voc / "v" / "ImageSets" / "Main" / f"{part}.txt").write_text(stems)
    train = load_boxes(BoxConfig(kind="voc", path="v"), [voc]).train
    assert [[box.crowd for box in image.boxes] for image in train.annotated] == [[True], [False]]
