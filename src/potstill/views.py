"""A picture of what the networks will see: some training samples, and several views of each."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from potstill import distributed
from potstill.augment import AugmentConfig
from potstill.data.boxes import BoxSet
from potstill.data.dataset import LabelledSet
from potstill.experiment import Experiment
from potstill.files import write_bytes
from potstill.models.preprocessing import Preprocessing
from potstill.report.scenes import COLOURS
from potstill.tasks import Classification, Detection

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["write_views"]

SAMPLES = 6
VIEWS = 7
LEAST_SIDE = 72
CAPTION = 13
MOST_LETTERS = 24
"""Longer names end in dots; shorter ones make the columns as wide as they need."""
GAP = 4
BOXED, BOXED_VIEWS = 4, 3
"""Fewer of images with boxes, which are large."""

Column = tuple[Tensor, list[str]]
"""Pictures of bytes ``(N, C, H, W)`` and their captions."""


def write_views(experiment: Experiment, path: Path) -> bool:
    """Draw a row for each of the first samples of some classes: itself, and its views of the first epochs.

    Args:
        experiment: The loaded recipe; its first seed's views are drawn, as the student sees them.
        path: The PNG file.

    Returns:
        Whether there is anything to see: of classifiers nothing where the recipe augments nothing; boxes of
        detectors are drawn in any case, as labels are worth a look.

    Raises:
        UserError: If the file cannot be written.
    """
    task = experiment.task
    plain = experiment.recipe.augment == AugmentConfig()
    if not isinstance(task, Detection) and (plain or not isinstance(task, Classification)):
        return False
    if distributed.is_main():
        buffer = io.BytesIO()
        positions = _first_of_classes(experiment.splits.train)
        columns = (
            _boxed(experiment, positions) if isinstance(task, Detection) else _columns(experiment, positions)
        )
        _grid(columns).save(buffer, format="PNG", optimize=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, buffer.getvalue())
    return True


def _first_of_classes(part: LabelledSet | BoxSet) -> list[int]:
    if isinstance(part, BoxSet):
        labels = np.array([box.label for image in part.annotated for box in image.boxes])
        places = np.repeat(np.arange(len(part)), [len(image.boxes) for image in part.annotated])
        first = places[np.unique(labels, return_index=True)[1]]
        return [int(position) for position in dict.fromkeys([*first, *np.unique(places)])][:BOXED]
    _, first = np.unique(part.labels.numpy(), return_index=True)
    return [int(position) for position in first[:SAMPLES]]


def _grid(columns: Sequence[Column]) -> Image:
    """Rows of samples, columns of views, with the target under each picture."""
    from PIL import Image as Pillow
    from PIL import ImageDraw

    height, width = columns[0][0].shape[2:]
    scale = max(1, -(-LEAST_SIDE // min(height, width)))
    pen = ImageDraw.Draw(Pillow.new("RGB", (1, 1)))
    lines = [line for _, captions in columns for caption in captions for line in caption.split("\n")]
    wide = max(width * scale, *(math.ceil(pen.textlength(line)) for line in lines))
    tall = CAPTION * max(caption.count("\n") + 1 for _, captions in columns for caption in captions)
    across, down = wide + GAP, height * scale + tall + GAP
    sheet = Pillow.new("RGB", (len(columns) * across + GAP, len(columns[0][0]) * down + GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for column, (images, captions) in enumerate(columns):
        for row, (image, caption) in enumerate(zip(images, captions, strict=True)):
            pixels = image.permute(1, 2, 0).numpy()
            drawn = Pillow.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0]).convert("RGB")
            corner = (GAP + column * across, GAP + row * down)
            sheet.paste(drawn.resize((width * scale, height * scale), Pillow.Resampling.NEAREST), corner)
            pen.multiline_text((corner[0], corner[1] + height * scale), caption, fill="black", spacing=2)
    return sheet


def _columns(experiment: Experiment, positions: list[int]) -> list[Column]:
    """The samples themselves and each of their views: bytes ``(N, C, H, W)`` and captions."""
    task, seed = _task(experiment), experiment.recipe.seed
    loader, prepare = experiment.training(seed)
    plain = task.plain_batch(*experiment.splits.train.__getitems__(positions))
    batches = [plain, *(prepare(*loader.read(positions, view), view) for view in range(VIEWS))]
    columns = []
    for batch in batches:
        assert batch.target is not None
        columns.append(
            (_bytes(experiment, batch.tensor("student")), _captions(batch.target, task.class_names))
        )
    return columns


def _boxed(experiment: Experiment, positions: list[int]) -> list[Column]:
    """The same of images with boxes, which are drawn in; captions say how many there are."""
    task, seed = experiment.task, experiment.recipe.seed
    assert isinstance(task, Detection), "only images with boxes"
    view = task.preprocessing["student"]
    loader, prepare = experiment.training(seed)
    plain = task.plain_batch(*experiment.splits.train.__getitems__(positions))
    columns = []
    for batch in [plain, *(prepare(*loader.read(positions, place), place) for place in range(BOXED_VIEWS))]:
        inputs = batch.input("student")
        assert isinstance(inputs, Mapping), "a detector takes tensors by name"
        assert batch.target is not None, "images come with boxes"
        images = _pictures(inputs["images"], view)
        drawn = [_with_boxes(*each) for each in zip(images, batch.target.cpu(), strict=True)]
        captions = [_counted(target[:, 4], task.class_names) for target in batch.target]
        columns.append((torch.stack(drawn), captions))
    return columns


def _with_boxes(image: Tensor, target: Tensor) -> Tensor:
    """An image ``(3, H, W)`` of bytes with its boxes ``(n, 5)``: shares of the image, and a class."""
    from PIL import Image as Pillow
    from PIL import ImageDraw

    drawn = Pillow.fromarray(image.permute(1, 2, 0).numpy())
    pen = ImageDraw.Draw(drawn)
    for *shares, label in target.tolist():
        if label > 0:
            corners = [share * (drawn.width, drawn.height)[side % 2] for side, share in enumerate(shares)]
            pen.rectangle(corners, outline=COLOURS[(int(label) - 1) % len(COLOURS)], width=2)
    return torch.from_numpy(np.array(drawn)).permute(2, 0, 1)


def _counted(labels: Tensor, names: Sequence[str]) -> str:
    """How many boxes of each class there are, a line each three.

    >>> _counted(torch.tensor([1.0, 1.0, 2.0, 0.0]), ("cell", "platelet"))
    '2 cell, 1 platelet'
    """
    counts = [f"{int((labels == place).sum())} {name}" for place, name in enumerate(names, start=1)]
    there = [each for each in counts if not each.startswith("0 ")] or ["no box"]
    return "\n".join(", ".join(there[start : start + 3]) for start in range(0, len(there), 3))


def _task(experiment: Experiment) -> Classification:
    assert isinstance(experiment.task, Classification), "only images are augmented"
    return experiment.task


def _bytes(experiment: Experiment, inputs: Tensor) -> Tensor:
    """What the student takes, back in the range of pictures."""
    view = _task(experiment).preprocessing["student"]
    return _pictures(inputs, view, stretch=experiment.splits.train.floats)


def _pictures(inputs: Tensor, view: Preprocessing, *, stretch: bool = False) -> Tensor:
    """Normalised images as bytes; those of an unknown range from the least to the greatest value."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (view.mean, view.std))
    images = inputs.detach().float().cpu().contiguous() * std + mean
    if stretch:
        images = (images - images.amin()) / (images.amax() - images.amin()).clamp_min(1e-12)
    return (images * 255).round().clamp(0, 255).to(torch.uint8)


def _captions(target: Tensor, names: Sequence[str]) -> list[str]:
    r"""The class of each image, or the two it is mixed of with their shares, a line each.

    >>> _captions(torch.tensor([[0.75, 0.0, 0.25], [0.0, 1.0, 0.0]]), ("ant", "bee", "cat"))
    ['.75 ant\n.25 cat', 'bee']
    """
    names = [name if len(name) <= MOST_LETTERS else f"{name[: MOST_LETTERS - 3]}..." for name in names]
    if target.dim() == 1:
        return [names[label] for label in target.tolist()]
    captions = []
    for shares in target.cpu():
        most = [int(place) for place in shares.argsort(descending=True)[:2] if float(shares[place]) > 0.005]
        both = [f"{float(shares[place]):.2f}".lstrip("0") + f" {names[place]}" for place in most]
        captions.append("\n".join(both) if len(both) > 1 else names[most[0]])
    return captions
