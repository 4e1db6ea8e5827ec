"""Images of images: pairs, a degradation to undo, or whatever a teacher makes of its inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from potstill import distributed
from potstill.augment import Augment, AugmentConfig, Scene
from potstill.augment.draws import Draws
from potstill.batch import Batch, Signals
from potstill.data.degrade import edges, grey, low_resolution
from potstill.data.loader import Loader
from potstill.data.pictures import PictureConfig, PictureSet
from potstill.data.pixels import middle
from potstill.errors import UserError
from potstill.losses.images import image_l1
from potstill.matching.taps import first_tensor
from potstill.measure import OneInput
from potstill.metrics.verdict import mean_interval
from potstill.models.perception import Perception
from potstill.models.weights import save_weights
from potstill.tasks import image_answers
from potstill.tasks.contract import Answers
from potstill.tasks.generated import answer, as_shares, augment_of, squares

__all__ = ["ImageToImage"]

PLACE, REAL = 960, 964
"""Numbers of the draws that place a square in an image, and in a real one beside it; no transform's."""
AT_ONCE = 8
"""Images that a network sees together in evaluation: they are large."""


@dataclass(frozen=True, kw_only=True)
class ImageToImage:
    """Batches, supervised loss and answers of a generator; all images are scaled to 0..1.

    An answer is a row: PSNR, SSIM and perceptual distance to the reference, then the features of the image
    and of its reference. The reference is the true image, where the data has it, else the teacher's output.

    Attributes:
        data: What the inputs and the true images are.
        size: Side of the squares that evaluation looks at.
        augmentation: What training images are augmented by, once :meth:`seeded`; inputs and targets alike.
        augment: The transform of training images, ``None`` for none.
        seed: Of the squares' places, once :meth:`seeded`.
        search: Folders in which a transform of the user's own is looked up.
        eyes: By which features images are compared; ``None`` for pixels alone.
        teacher: Gives the references, where the data has none.
        device: Where batches go.
        channels_last: Lay images out with channels last.
    """

    data: PictureConfig
    size: int
    augmentation: AugmentConfig = field(default_factory=AugmentConfig)
    augment: Augment | None = None
    seed: int = 0
    search: Sequence[Path] = ()
    eyes: Perception | None = None
    teacher: nn.Module | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    channels_last: bool = False
    _references: dict[int, Tensor] = field(default_factory=dict, repr=False)

    metric = "psnr"
    higher_is_better = True
    samples = "images"
    num_classes = 0
    partners = None

    @property
    def has_truth(self) -> bool:
        """Whether the data says what the answer should be."""
        return self.data.has_truth

    # Training ---------------------------------------------------------------------------------------

    def placed(self, device: torch.device, *, channels_last: bool) -> ImageToImage:
        """The same task, its batches on ``device``."""
        eyes = None if self.eyes is None else self.eyes.to(device)
        return replace(self, device=device, channels_last=channels_last, eyes=eyes)

    def seeded(self, seed: int, samples: int) -> ImageToImage:
        """The same task with the augmentation of a seed."""
        augment = augment_of(self.augmentation, seed, samples, self.search)
        return replace(self, augment=augment, seed=seed)

    def training_batch(self, images: Tensor, targets: Tensor | None, index: Tensor, view: int) -> Batch:
        """A training batch: a random square of each image, augmented with its target, then degraded.

        Args:
            images: ``(N, C, H, W)`` uint8.
            targets: True images of the same size, where the data has them beside the inputs; or real ones of
                any size that belong to no input, which are not augmented.
            index: ``(N,)`` positions in the data set; with ``view`` they decide square and augmentation.
            view: Number of the view, usually the epoch.
        """
        scene = Scene(images=self._square(self._placed(images), index, view))
        if targets is not None and self.has_truth:
            scene = replace(scene, paired=self._square(self._placed(targets), index, view))
        if self.augment is not None:
            scene = self.augment.together(scene, index, view)
        target = scene.paired
        if targets is not None and not self.has_truth:
            target = self._square(self._placed(targets), index, view, REAL)
        return self._batch(scene.images, target, index, view)

    def plain_batch(self, images: Tensor, targets: Tensor | None, index: Tensor) -> Batch:
        """A batch for evaluation: the middle square; shapes as in :meth:`training_batch`."""
        truth = None if targets is None else middle(self._placed(targets), self.size)
        return self._batch(middle(self._placed(images), self.size), truth, index, 0)

    def _placed(self, images: Tensor) -> Tensor:
        return images.to(self.device, non_blocking=True)

    def _square(self, images: Tensor, index: Tensor, view: int, first: int = PLACE) -> Tensor:
        return squares(images, self.data.crop or self.size, Draws(index, self.seed, view, first))

    def _batch(self, images: Tensor, targets: Tensor | None, index: Tensor, view: int) -> Batch:
        inputs, target = as_shares(images), None if targets is None else as_shares(targets)
        if self.data.degrade is not None:
            inputs, target = self._degraded(inputs), inputs
        laid = torch.channels_last if self.channels_last else torch.contiguous_format
        inputs = inputs.contiguous(memory_format=laid)
        return Batch({"student": inputs}, target, None, index.to(self.device, non_blocking=True), view)

    def _degraded(self, images: Tensor) -> Tensor:
        if self.data.degrade == "low_resolution":
            return low_resolution(images, self.data.factor)
        return grey(images) if self.data.degrade == "grey" else edges(images)

    @property
    def supervised(self) -> Callable[[Signals, Batch], Tensor] | None:
        """Mean absolute difference from the true image, ``(N,)``; ``None`` where there is none."""
        return _to_truth if self.has_truth else None

    # Answers ----------------------------------------------------------------------------------------

    @torch.no_grad()
    def predict(self, model: nn.Module, loader: Loader, role: str) -> Tensor:
        """Answers ``(N, 3 + 2F)`` of every image, in the order of the data set, the same on every rank."""
        training = model.training
        model.eval()
        rows: Tensor | None = None
        for images, targets, index in loader.epoch(0):
            for start in range(0, len(index), AT_ONCE):
                cut = slice(start, start + AT_ONCE)
                batch = self.plain_batch(images[cut], None if targets is None else targets[cut], index[cut])
                reference = self._reference(batch, loader)
                own = role == "teacher" and not self.has_truth  # then it is the reference itself
                image = reference if own else answer(model, batch, role)
                row = image_answers.row(image, reference, self.eyes)
                if rows is None:
                    rows = row.new_zeros(len(loader.dataset), row.shape[1])
                rows[index[cut]] = row
        model.train(training)
        assert rows is not None, "a part of the data has images"
        return distributed.sum_tensor(rows)

    def _reference(self, batch: Batch, loader: Loader) -> Tensor:
        """The true images, or the teacher's, which are kept: validation asks for them again and again."""
        if batch.target is not None and self.has_truth:
            return batch.target
        assert self.teacher is not None, "without true images there is a teacher"
        key, rows = id(loader.dataset), batch.index.cpu()
        kept = self._references.get(key)
        if kept is None:
            shape = answer(self.teacher, batch, "teacher").shape[1:]
            kept = self._references[key] = torch.full((len(loader.dataset), *shape), torch.nan)
        if kept[rows].isnan().any():
            kept[rows] = answer(self.teacher, batch, "teacher").cpu()
        return kept[rows].to(self.device)

    def score(self, answers: Tensor, loader: Loader) -> dict[str, float]:
        """Means over the images."""
        del loader
        return image_answers.means(answers)

    def value(self, answers: Answers, part: PictureSet) -> float:
        """Mean PSNR of answers ``(N, k)``, in dB."""
        return float(self.per_sample(answers, part).mean())

    def per_sample(self, answers: Answers, part: PictureSet) -> NDArray[np.float64]:
        """PSNR of each image, ``(..., N)``."""
        del part
        return answers[..., image_answers.PSNR].astype(np.float64)

    def interval(self, answers: Answers, part: PictureSet) -> tuple[float, float]:
        """Of the mean PSNR, over seeds and images."""
        return mean_interval(self.per_sample(answers, part))

    def figures(
        self, answers: Answers, teacher: Answers | None, part: PictureSet
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """SSIM, perceptual and kernel distance with their intervals, and by whose features."""
        del teacher, part
        return {}, image_answers.figures(answers, self._seen_by)

    def gains(self, student: Answers, control: Answers) -> dict[str, Any]:
        """By how much the student is better in all but the metric, from answers ``(seeds, N, k)``."""
        return image_answers.gains(student, control, self._seen_by)

    @property
    def _seen_by(self) -> str | None:
        return None if self.eyes is None else self.eyes.name

    def joined(self, answers: Sequence[Answers]) -> Answers:
        """Means of all measures: images of several networks are not mixed."""
        mean: Answers = np.mean(answers, axis=0)
        return mean

    def agreement(self, one: Answers, other: Answers) -> float:
        """1 less the mean difference of their structural similarities."""
        return float(1.0 - np.abs(one[..., image_answers.SSIM] - other[..., image_answers.SSIM]).mean())

    # Checks and words -------------------------------------------------------------------------------

    def check_output(self, output: Any, batch: Batch, role: str) -> None:
        """Refuse what is no image of the wanted size."""
        truth = batch.target if batch.target is not None else batch.tensor(role)
        image = first_tensor(output)
        wanted = tuple(truth.shape)
        if image is None or tuple(image.shape) != wanted:
            got = tuple(image.shape) if image is not None else type(output).__name__
            raise UserError(f"{role}.model", f"expected images {wanted}, got {got}")

    def check_teacher(self, answers: Answers, part: PictureSet) -> float:
        """PSNR of the teacher to the true images, 100 where it is the reference itself."""
        if not np.isfinite(answers).all():
            raise UserError("teacher", "expected finite images, got NaN or infinity on validation")
        return self.value(answers, part)

    def describe_data(self, train: PictureSet) -> str:
        """Sizes and the truth, in words."""
        truth = {True: "their true images", False: "the teacher's output as the truth"}[self.has_truth]
        made = f"{self.data.degrade} of " if self.data.degrade else ""
        truth += f", real images of {self.data.real}" if self.data.real else ""
        return f"{made}images {train.shape}, squares of {self.data.crop or self.size}, {truth}"

    def describe_input(self, role: str) -> str:
        """All take the same."""
        del role
        return "images scaled to 0..1"

    def one_input(self, role: str, train: PictureSet) -> OneInput:
        """Shape of one image that is evaluated."""
        return tuple(self.plain_batch(*train.__getitems__([0])).tensor(role).shape[1:])

    # What is kept and told --------------------------------------------------------------------------

    def keep(self, model: nn.Module, path: Path, metadata: Mapping[str, str]) -> None:
        """The weights."""
        save_weights(model, path, metadata)

    def evidence(
        self, answers: Mapping[str, Answers], part: PictureSet, temperature: float
    ) -> dict[str, Any]:
        """Nothing: images are drawn by the networks themselves."""
        del answers, part, temperature
        return {}


def _to_truth(signals: Signals, batch: Batch) -> Tensor:
    assert batch.target is not None, "the task has true images"
    return image_l1(signals.output, batch.target)
