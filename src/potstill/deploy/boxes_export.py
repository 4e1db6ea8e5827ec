"""A detector as an ONNX file, all of it: images go in, boxes come out, checked box by box."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from potstill._version import __version__
from potstill.deploy.export import Exportable, _quiet, require
from potstill.errors import UserError
from potstill.files import write_atomic
from potstill.models.preprocessing import Preprocessing

__all__ = ["ExportedBoxes", "export_boxes"]

SAMPLES = 16
PIXELS, SCORES = 0.05, 1e-3
"""How far corners and scores may be from the trained network's."""
ALIKE = 0.995
"""Share of the boxes that must be the same: of two that are alike, rounding may decide which one stays."""


@dataclass(frozen=True)
class ExportedBoxes:
    """An exported and checked file.

    Attributes:
        path: The file.
        samples: Real images that it was checked on.
        boxes: Boxes that the trained network answers to them.
        alike: How many of those the file answers with too.
        largest_difference: Of their corners, in pixels.
    """

    path: Path
    samples: int
    boxes: int
    alike: int
    largest_difference: float

    def describe(self) -> str:
        """One line for people."""
        return (
            f"{self.path}: {self.path.stat().st_size:,} bytes; onnxruntime answers to {self.samples} test "
            f"images with {self.alike} of the trained student's {self.boxes} boxes, at most "
            f"{self.largest_difference:.1e} pixels from them"
        )


class _Whole(nn.Module):
    """The detector with its normalisation and resize: an image in 0..1 in, boxes in its pixels out."""

    mean: Tensor
    std: Tensor
    back: Tensor
    rows: Tensor
    columns: Tensor

    def __init__(self, student: nn.Module, preprocessing: Preprocessing, height: int, width: int) -> None:
        super().__init__()
        self.student = student
        self.resizes = preprocessing.size is not None
        side = preprocessing.size or 1
        across, down = (width / side, height / side) if self.resizes else (1.0, 1.0)
        # The exporter has no antialiased resize; it is a matrix product along each side.
        self.register_buffer("rows", _resizing(height, side))
        self.register_buffer("columns", _resizing(width, side).T.contiguous())
        self.register_buffer("mean", torch.tensor(preprocessing.mean)[:, None, None])
        self.register_buffer("std", torch.tensor(preprocessing.std)[:, None, None])
        self.register_buffer("back", torch.tensor([across, down, across, down, 1.0, 1.0]))

    def forward(self, images: Tensor) -> Tensor:
        if self.resizes:
            images = self.rows @ images @ self.columns
        boxes: Tensor = self.student((images - self.mean) / self.std)
        return boxes * self.back


def _resizing(length: int, side: int) -> Tensor:
    """What brings a column of ``length`` values to ``side`` of them, ``(side, length)``."""
    each = torch.eye(length)[None, None]
    return nn.functional.interpolate(each, size=(side, length), mode="bilinear", antialias=True)[0, 0]


def export_boxes(loaded: Exportable, path: Path) -> ExportedBoxes:
    """Write a detector as one ONNX file, with its choice of boxes; its metadata states all that it needs.

    The graph takes one float32 image in 0..1 at the data's size, ``images`` ``(1, 3, H, W)``, and gives
    ``boxes`` ``(1, 100, 6)``: left, top, right, bottom in pixels, score, and class counted from 1, rows of
    zeros where there are fewer. Before the file gets its name, onnxruntime answers to 16 real images: at
    least 995 of 1000 boxes must be the trained network's, of the same class, corners within 0.05 pixels and
    scores within 0.001.

    Args:
        loaded: The student and what belongs to it.
        path: Where to.

    Raises:
        UserError: If a library is missing, the network cannot be exported, or the check fails; then no file
            is left.
    """
    require()
    given = loaded.samples(SAMPLES)
    images = given.float() / 255
    student = copy.deepcopy(loaded.student).eval()
    student = student.to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    whole = _Whole(student, loaded.preprocessing, *images.shape[2:]).eval()
    with torch.no_grad():  # what the run itself answers to these images
        expected = (student(loaded.preprocessing.normalise(given)) * whole.back).numpy()
    with write_atomic(path) as aside:
        _write(whole, images[:1], aside, _metadata(loaded, images))
        alike, farthest = _check(expected, images.numpy(), aside)
    return ExportedBoxes(path, len(images), int((expected[..., 5] > 0).sum()), alike, farthest)


def _metadata(loaded: Exportable, images: Tensor) -> dict[str, str]:
    height, width = images.shape[2:]
    return {
        "potstill": __version__,
        "input": f"images: float32 (1, 3, {height}, {width}), RGB in 0..1; larger images are shrunk with "
        "their shape kept, and stand at the upper left with black below or right of them",
        "output": "boxes: float32 (1, 100, 6): left, top, right, bottom in pixels of the input, score, class "
        "counted from 1; the best first, rows of zeros fill",
        "preprocessing": f"inside the graph: {loaded.preprocessing.describe()}",
        "classes": json.dumps(loaded.class_names, ensure_ascii=False),
    }


def _write(network: nn.Module, image: Tensor, path: Path, metadata: dict[str, str]) -> None:
    import onnx

    with _quiet(), torch.no_grad():
        try:
            # By tracing: the exporter by graph capture cannot follow how many boxes are left.
            torch.onnx.export(
                network, (image,), str(path), dynamo=False, input_names=["images"], output_names=["boxes"]
            )
        except Exception as error:  # the exporter raises many kinds; all mean that this network cannot go
            line = next((each for each in str(error).splitlines() if each.strip()), type(error).__name__)
            raise UserError("export", f"torch cannot export the student: {line}") from error
    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, metadata)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def _check(expected: NDArray[Any], images: NDArray[Any], path: Path) -> tuple[int, float]:
    """How many boxes are those expected, and how far the farthest of them is."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session: Any = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    alike, total, farthest = 0, 0, 0.0
    for image, wanted in zip(images, expected, strict=True):
        found = session.run(["boxes"], {"images": image[None]})[0][0]
        same, far = _alike(wanted[wanted[:, 5] > 0], found[found[:, 5] > 0])
        alike, farthest = alike + same, max(farthest, far)
        total += max(int((wanted[:, 5] > 0).sum()), int((found[:, 5] > 0).sum()))
    if alike < ALIKE * total:
        raise UserError(
            "export",
            f"onnxruntime disagrees with the trained student: {total - alike} of {total} boxes differ",
        )
    return alike, farthest


def _alike(wanted: NDArray[Any], found: NDArray[Any]) -> tuple[int, float]:
    """How many boxes ``(n, 6)`` are among ``found`` ``(m, 6)``, each once, and the farthest of these."""
    free, alike, farthest = list(range(len(found))), 0, 0.0
    for box in wanted:
        for place in free:
            far = float(np.abs(found[place, :4] - box[:4]).max())
            near = far <= PIXELS and abs(float(found[place, 4] - box[4])) <= SCORES
            if near and found[place, 5] == box[5]:
                free.remove(place)
                alike, farthest = alike + 1, max(farthest, far)
                break
    return alike, farthest
