"""Images with boxes as a part of a run: each brought to one size, its boxes with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor

from potstill.data.box_files import Annotated as AnnotatedImage
from potstill.data.box_files import Parts, read_coco, size_of, unlabelled
from potstill.data.dataset import Rows, SampleSet
from potstill.data.load import Splits
from potstill.data.voc_yolo import read_voc, read_yolo
from potstill.errors import UserError
from potstill.losses import Range
from potstill.specs import find

__all__ = ["LEAST_SIDE", "BoxConfig", "BoxSet", "load_boxes"]

LEAST_SIDE = 16
UNKNOWN = -1
"""Class of an image's first row where nobody labelled it."""
KEPT_BYTES = 1 << 29
"""Decoded images that a part keeps in memory."""


@dataclass(frozen=True, kw_only=True)
class BoxConfig:
    """Images with boxes."""

    kind: Literal["coco", "voc", "yolo"] = "coco"
    """How they are stored."""
    path: str
    """The COCO json, or the folder of VOC or YOLO."""
    images: str | None = None
    """Of COCO: the folder that file names are relative to; the json's own by default."""
    size: tuple[int, int] = (320, 320)
    """Height and width to which every image is brought, its shape kept, black below or right of it."""
    classes: tuple[str, ...] = ()
    """Of YOLO: the names of its classes, where there is no ``classes.txt``."""
    unlabelled: str | None = None
    """A folder of images without labels, for training alone: what the teacher finds in them is learnt."""
    validation: Annotated[float, Range(above=0)] = 0.1
    """What to cut from the training part where no validation part is given: a share, or a number."""
    test_with_validation: bool = False
    """Measure on validation and test part together, where nothing is chosen by validation."""
    limit: Annotated[int, Range(least=2)] | None = None
    """Use only so many images of each part."""
    split_seed: Annotated[int, Range(least=0)] = 0
    """Seed of every cut."""
    workers: Annotated[int, Range(least=0)] = 0
    """Processes that decode images."""


class BoxSet(SampleSet):
    """One part of a detection data set.

    A batch is images ``(n, 3, H, W)`` uint8 and, of each, boxes ``(n, most, 6)`` float32: left, top, right,
    bottom in pixels of the given image, class counted from 1 (0 fills rows without a box), 1 for a crowd.
    The first row of an image without labels has class -1.

    Args:
        images: Files and what is in them.
        class_names: One name a class.
        size: Height and width of what is given.
    """

    def __init__(
        self, images: Sequence[AnnotatedImage], class_names: Sequence[str], size: tuple[int, int]
    ) -> None:
        self.annotated = list(images)
        self.class_names = tuple(class_names)
        self.size = size
        self._kept: dict[int, tuple[Tensor, float]] = {}

    def __len__(self) -> int:
        return len(self.annotated)

    def __getitems__(self, indices: Sequence[int]) -> Rows:
        """Images, their boxes and their positions."""
        read = [self._read(int(position)) for position in indices]
        asked = [self.annotated[int(position)] for position in indices]
        most = max([max(len(image.boxes), int(not image.labelled)) for image in asked], default=0)
        boxes = torch.zeros(len(read), most, 6)
        for row, (position, (_, scale)) in enumerate(zip(indices, read, strict=True)):
            if not self.annotated[int(position)].labelled:
                boxes[row, 0, 4] = UNKNOWN
            for place, box in enumerate(self.annotated[int(position)].boxes):
                corners = [side * scale for side in box.corners]
                boxes[row, place] = torch.tensor([*corners, box.label + 1, float(box.crowd)])
        pixels = torch.stack([image for image, _ in read])
        return pixels, boxes, torch.as_tensor(indices, dtype=torch.int64)

    def scale(self, position: int) -> float:
        """Pixels of the given image for one of the file's."""
        height, width = self.file_size(position)
        return min(self.size[0] / height, self.size[1] / width)

    def file_size(self, position: int) -> tuple[int, int]:
        """Height and width of the file's image."""
        image = self.annotated[position]
        return image.size or size_of(image.path)

    def subset(self, indices: Sequence[int]) -> BoxSet:
        """The images at ``indices``, renumbered from 0."""
        return BoxSet([self.annotated[int(place)] for place in indices], self.class_names, self.size)

    def _read(self, position: int) -> tuple[Tensor, float]:
        if position in self._kept:
            return self._kept[position]
        found = self._decoded(self.annotated[position])
        if (len(self._kept) + 1) * found[0].numel() <= KEPT_BYTES:
            self._kept[position] = found
        return found

    def _decoded(self, asked: AnnotatedImage) -> tuple[Tensor, float]:
        from PIL import Image

        try:
            with Image.open(asked.path) as file:
                image = file.convert("RGB")
        except (OSError, ValueError) as error:
            raise UserError(str(asked.path), f"cannot be read as an image: {error}") from error
        if asked.size not in (None, (image.height, image.width)):
            told = "{} high and {} wide".format(*asked.size or ())
            raise UserError(
                str(asked.path), f"is {image.height} high and {image.width} wide, its labels say {told}"
            )
        height, width = self.size
        scale = min(height / image.height, width / image.width)
        inner = max(round(image.width * scale), 1), max(round(image.height * scale), 1)
        canvas = np.zeros((height, width, 3), dtype=np.uint8)
        canvas[: inner[1], : inner[0]] = np.asarray(image.resize(inner, Image.Resampling.BILINEAR))
        return torch.from_numpy(canvas).permute(2, 0, 1).contiguous(), scale


def load_boxes(config: BoxConfig, search: Sequence[Path]) -> Splits[BoxSet]:
    """Load the parts that a recipe names and cut those that are missing.

    Raises:
        UserError: At the dotted key of what is missing or does not fit.
    """
    if min(config.size) < LEAST_SIDE:
        raise UserError("data.size", f"must be at least {LEAST_SIDE} high and wide, got {list(config.size)}")
    path = find(config.path, search, "data.path")
    if config.kind == "coco":
        images = path.parent if config.images is None else find(config.images, search, "data.images")
        read = read_coco(path, images)
    elif config.images is not None:
        raise UserError("data.images", f"is for kind: coco, got kind: {config.kind}")
    else:
        read = read_voc(path) if config.kind == "voc" else read_yolo(path, config.classes)
    notes = [f"data: {note}" for note in read.notes]
    _complete(read, config, notes)
    _check_files(read)
    if config.unlabelled is not None:
        more = unlabelled(find(config.unlabelled, search, "data.unlabelled"))
        read.images["train"] = [*read.images["train"][: config.limit], *more]
        notes.append(f"{len(more)} images without labels join the training part")
    rest = read.class_names, config.size
    made = {
        name: BoxSet(some if config.unlabelled and name == "train" else some[: config.limit], *rest)
        for name, some in read.images.items()
    }
    train, validation, test = (made[name] for name in ("train", "validation", "test"))
    if config.test_with_validation:
        test = BoxSet([*validation.annotated, *test.annotated], test.class_names, test.size)
        notes.append("measured on validation and test part together")
    if not any(not box.crowd for image in train.annotated for box in image.boxes):
        raise UserError("data.path", f"expected boxes to learn from, got {len(train)} images without any")
    return Splits(train, validation, test, notes)


def _complete(read: Parts, config: BoxConfig, notes: list[str]) -> None:
    """Cut the missing parts from the training part."""
    if not read.images.get("train"):
        raise UserError("data.path", f"no image to train on; parts: {', '.join(read.images) or 'none'}")
    for seed, name in ((1, "test"), (0, "validation")):
        if read.images.get(name):
            continue
        train = read.images["train"]
        count = int(config.validation) if config.validation >= 1 else round(config.validation * len(train))
        if not 0 < count < len(train):
            raise UserError("data.validation", f"leaves no part of {len(train)} images to cut off")
        order = np.random.default_rng(config.split_seed + seed).permutation(len(train))
        read.images[name] = [train[place] for place in sorted(order[:count].tolist())]
        read.images["train"] = [train[place] for place in sorted(order[count:].tolist())]
        notes.append(f"{count} of the training images were cut off for the {name} part")


def _check_files(read: Parts) -> None:
    """Missing files are told together, before anything is trained, and so are those listed twice."""
    paths = [image.path for some in read.images.values() for image in some]
    absent = [path for path in paths if not path.is_file()]
    if absent:
        raise UserError(
            "data.path", f"{len(absent)} of {len(paths)} images are missing, the first: {absent[0]}"
        )
    twice = [path for path, count in Counter(paths).items() if count > 1]
    if twice:
        raise UserError(
            "data.path",
            f"{len(twice)} images are listed more than once, in one part or in two, the first: {twice[0]}",
        )
