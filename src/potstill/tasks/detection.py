"""Object detection: boxes move with their image, and networks are measured by COCO's average precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from potstill import distributed
from potstill.augment import Augment, AugmentConfig, Scene
from potstill.batch import Batch, Signals, ask
from potstill.data.boxes import UNKNOWN, BoxSet
from potstill.data.loader import Loader
from potstill.errors import UserError
from potstill.matching.taps import first_tensor
from potstill.measure import OneInput
from potstill.metrics.average_precision import Matches
from potstill.metrics.verdict import mean_interval
from potstill.models.preprocessing import Preprocessing
from potstill.models.weights import save_weights
from potstill.report.content import ClassDifference
from potstill.tasks.box_evidence import detected
from potstill.tasks.box_figures import class_differences
from potstill.tasks.contract import Answers
from potstill.tasks.found_boxes import ROWS, agreement, in_files, joined, matched, summed_up, truth_of

__all__ = ["Detection"]

COLUMNS = 6
WORTHLESS = 0.05
"""A teacher whose boxes overlap the truth by half no better than this has nothing to teach."""


@dataclass(frozen=True, kw_only=True)
class Detection:
    """Batches, supervised loss and answers of a detector (see :class:`~potstill.models.detector.Detector`).

    Answers are ``(..., N, 100, 6)``: left, top, right and bottom in pixels of the images as the data set
    gives them, score, and class counted from 1; rows of class 0 fill.

    Attributes:
        class_names: One name a class.
        preprocessing: How each role wants its images.
        augmentation: What training batches are augmented by, once :meth:`seeded`.
        augment: The transform of training batches, ``None`` for none.
        search: Folders in which a transform of the user's own is looked up.
        device: Where batches go.
        channels_last: Lay images out with channels last.
    """

    class_names: tuple[str, ...]
    preprocessing: Mapping[str, Preprocessing]
    augmentation: AugmentConfig = field(default_factory=AugmentConfig)
    augment: Augment | None = None
    search: Sequence[Path] = ()
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    channels_last: bool = False

    metric = "map"
    higher_is_better = True
    samples = "images"
    partners = None

    @property
    def num_classes(self) -> int:
        """Number of classes of objects."""
        return len(self.class_names)

    # Training ---------------------------------------------------------------------------------------

    def placed(self, device: torch.device, *, channels_last: bool) -> Detection:
        """The same task, its batches on ``device``."""
        return replace(self, device=device, channels_last=channels_last)

    def seeded(self, seed: int, samples: int) -> Detection:
        """The same task with the augmentation of a seed."""
        self.augmentation.check_samples(self.samples)
        for name, _ in self.augmentation.mixings():
            raise UserError(f"augment.{name}", "mixes labels of classes; boxes cannot be mixed")
        return replace(self, augment=Augment(self.augmentation, seed, samples=samples, search=self.search))

    def training_batch(self, images: Tensor, boxes: Tensor, index: Tensor, view: int) -> Batch:
        """A training batch: image and boxes are augmented once, together, then prepared for each role.

        Args:
            images: ``(N, 3, H, W)`` uint8.
            boxes: ``(N, n, 6)``: corners in pixels, class counted from 1, crowd; crowds teach nothing, and of
                an image whose first class is -1 nothing is known.
            index: ``(N,)`` positions in the data set.
            view: Number of the view.

        Returns:
            The batch. The student sees images, boxes and labels, a teacher images and the regions to score,
            which a scheme fills in. The target is ``(N, n, 5)``: corners as shares of the image, class.
        """
        images, boxes = images.to(self.device, non_blocking=True), boxes.to(self.device, non_blocking=True)
        there = (boxes[..., 4] > 0) & (boxes[..., 5] == 0)
        corners = boxes[..., :4]
        if self.augment is not None:
            scene = Scene(images=images, boxes=corners, there=there)
            scene = self.augment.together(scene, index, view)
            assert scene.boxes is not None, "a scene keeps what it has"
            assert scene.there is not None, "a scene keeps what it has"
            images, corners, there = scene.images, scene.boxes, scene.there
        labels = boxes[..., 4].long() * there
        labels = labels.masked_fill((boxes[..., 4] < 0).any(dim=1, keepdim=True), UNKNOWN)
        inputs = self._inputs(images)
        regions = corners.new_zeros(len(images), 0, 4)
        for role, given in inputs.items():
            if role == "teacher":
                given["proposals"] = regions
            else:
                scale = given["images"].shape[3] / images.shape[3], given["images"].shape[2] / images.shape[2]
                given |= {"boxes": corners * corners.new_tensor([*scale, *scale]), "labels": labels}
        return Batch(inputs, _as_shares(corners, labels, images), None, self._placed(index), view)

    def plain_batch(self, images: Tensor, boxes: Tensor, index: Tensor) -> Batch:
        """A batch for evaluation: networks see images and answer with boxes."""
        images, boxes = images.to(self.device, non_blocking=True), boxes.to(self.device, non_blocking=True)
        target = _as_shares(boxes[..., :4], boxes[..., 4].long(), images)
        return Batch(self._inputs(images), target, None, self._placed(index), 0)

    def supervised(self, signals: Signals, batch: Batch) -> Tensor:
        """The detector's own loss of each image, ``(N,)``."""
        del batch
        return signals.output.float()

    def _placed(self, index: Tensor) -> Tensor:
        return index.to(self.device, non_blocking=True)

    def _inputs(self, images: Tensor) -> dict[str, dict[str, Tensor]]:
        made: dict[Preprocessing, Tensor] = {}
        for each in self.preprocessing.values():
            if each not in made:
                made[each] = self._lay_out(each.normalise(images))
        return {role: {"images": made[each]} for role, each in self.preprocessing.items()}

    def _lay_out(self, images: Tensor) -> Tensor:
        return images.contiguous(memory_format=torch.channels_last) if self.channels_last else images

    # Answers ----------------------------------------------------------------------------------------

    @torch.no_grad()
    def predict(self, model: nn.Module, loader: Loader, role: str) -> Tensor:
        """Boxes ``(len(data), 100, 6)`` float32, in pixels of the data set's images, on every rank."""
        training = model.training
        model.eval()
        rows = torch.zeros(len(loader.dataset), ROWS, COLUMNS)
        for images, boxes, index in loader.epoch(0):
            inputs = self.plain_batch(images, boxes, index).input(role)
            assert isinstance(inputs, Mapping), "a detector takes tensors by name"
            answer = ask(model, inputs)
            found = answer.output if isinstance(answer, Signals) else answer
            seen = inputs["images"].shape
            scale = images.shape[3] / seen[3], images.shape[2] / seen[2]
            rows[index.cpu()] = found.float().cpu() * torch.tensor([*scale, *scale, 1.0, 1.0])
        model.train(training)
        return distributed.sum_tensor(rows)

    def score(self, answers: Tensor, loader: Loader) -> dict[str, float]:
        """``map`` and ``map50`` of answers."""
        assert isinstance(loader.dataset, BoxSet), "boxes come from a set of boxes"
        matched = self._matched(answers.numpy(), loader.dataset)
        return {"map": matched.mean(), "map50": matched.by_overlap()[0]}

    def _matched(self, answers: NDArray[Any], part: BoxSet) -> Matches:
        return matched(answers, part, self.num_classes)

    def value(self, answers: Answers, part: BoxSet) -> float:
        """COCO's mAP over overlaps from 0.5 to 0.95."""
        return self._matched(answers, part).mean()

    def per_sample(self, answers: Answers, part: BoxSet) -> NDArray[np.float64]:
        """Jackknife pseudo-values of mAP: what each image adds, ``(..., N)``, moved so that it is their mean.

        Their own would correct a bias, but jumps of a curve from recall to recall count N times in it.
        """
        found = [self._matched(each, part) for each in answers.reshape(-1, *answers.shape[-3:])]
        values = np.stack([each.jackknife() for each in found])
        means = np.array([each.mean() for each in found])[:, None]
        moved: NDArray[np.float64] = values - values.mean(axis=1, keepdims=True) + means
        return moved.reshape(answers.shape[:-2])

    def interval(self, answers: Answers, part: BoxSet) -> tuple[float, float]:
        """Of mAP over seeds and images."""
        return mean_interval(self.per_sample(answers, part))

    def figures(
        self, answers: Answers, teacher: Answers | None, part: BoxSet
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The mean by overlap, size and class, its interval, and the agreement with a teacher."""
        beside = {}
        if teacher is not None:
            beside = {"agreement": float(np.mean([agreement(each, teacher) for each in answers]))}
        return beside, summed_up([self._matched(each, part) for each in answers], self.class_names)

    def joined(self, answers: Sequence[Answers]) -> Answers:
        """The boxes of all networks, of those on one object the surest, ``(N, 100, 6)``."""
        return joined(answers)

    def agreement(self, one: Answers, other: Answers) -> float:
        """Share of the boxes that a network is sure of which the other is sure of too, both ways round."""
        return agreement(one, other)

    # Checks and words -------------------------------------------------------------------------------

    def check_output(self, output: Any, batch: Batch, role: str) -> None:
        """Refuse what is no boxes ``(N, 100, 6)``."""
        wanted, found = (len(batch), ROWS, COLUMNS), first_tensor(output)
        if found is None or tuple(found.shape) != wanted:
            got = tuple(found.shape) if found is not None else type(output).__name__
            raise UserError(f"{role}.model", f"expected a detector that gives boxes {wanted}, got {got}")

    def check_teacher(self, answers: Answers, part: BoxSet) -> float:
        """The teacher's mAP on validation.

        Raises:
            UserError: If it hardly finds anything.
        """
        matched = self._matched(answers, part)
        half = matched.by_overlap()[0]
        if half < WORTHLESS:
            raise UserError(
                "teacher",
                f"finds next to nothing: mAP at an overlap of 0.5 is {half:.1%} on validation; are its "
                "weights those of this data, its classes in the same order, its images as it wants them?",
            )
        return matched.mean()

    def describe_data(self, train: BoxSet) -> str:
        """Classes, boxes and the size of images."""
        boxes = sum(len(image.boxes) for image in train.annotated)
        height, width = train.size
        return f"{self.num_classes} classes, {boxes:,} boxes to learn, images (3, {height}, {width})"

    def describe_input(self, role: str) -> str:
        """Normalisation and size."""
        return self.preprocessing[role].describe()

    def one_input(self, role: str, train: BoxSet) -> OneInput:
        """The first image."""
        inputs = self.plain_batch(*train.__getitems__([0])).input(role)
        assert isinstance(inputs, Mapping), "a detector takes tensors by name"
        return inputs

    def keep(self, model: nn.Module, path: Path, metadata: Mapping[str, str]) -> None:
        """The weights, with the classes and how images are prepared."""
        own = {"classes": "\n".join(self.class_names), "preprocessing": self.describe_input("student")}
        save_weights(model, path, {**metadata, **own})

    def evidence(self, answers: Mapping[str, Answers], part: BoxSet, temperature: float) -> dict[str, Any]:
        """What the report shows of boxes: see :mod:`potstill.tasks.box_evidence`."""
        del temperature
        matches = {arm: [self._matched(one, part) for one in some] for arm, some in answers.items()}
        found = {
            arm: np.stack([np.stack(in_files(one, part)) for one in some]) for arm, some in answers.items()
        }
        differences: tuple[ClassDifference, ...] = ()
        if "control" in matches:
            differences = class_differences(matches["student"], matches["control"], self.class_names)
        return {
            "class_names": self.class_names,
            "differences": differences,
            "detected": detected(truth_of(part), found, matches, part),
        }


def _as_shares(corners: Tensor, labels: Tensor, images: Tensor) -> Tensor:
    """Boxes ``(N, n, 5)`` as shares of the image, with their class."""
    height, width = images.shape[2:]
    shares = corners / corners.new_tensor([width, height, width, height])
    return torch.cat([shares, labels[..., None].to(shares)], dim=-1)
