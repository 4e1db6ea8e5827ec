"""Image classification: one view of each image for all networks, each normalised its own way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from potstill.augment import Augment, AugmentConfig
from potstill.batch import Batch
from potstill.data.dataset import ImageSet, LabelledSet
from potstill.measure import OneInput
from potstill.models.preprocessing import Preprocessing
from potstill.models.weights import save_weights
from potstill.report.samples import picture
from potstill.tasks.classes import Classifier

__all__ = ["Classification"]


@dataclass(frozen=True, kw_only=True)
class Classification(Classifier):
    """Batches, supervised loss and predictions of an image classifier.

    Attributes:
        preprocessing: How each role (``teacher``, ``student``) wants its images.
        augmentation: What training batches are augmented by, once :meth:`seeded`.
        augment: The transform of training batches, ``None`` for none.
        search: Folders in which a transform of the user's own is looked up.
        device: Where batches go.
        channels_last: Lay images out with channels last, as convolutions on processors like it.
    """

    preprocessing: Mapping[str, Preprocessing]
    augmentation: AugmentConfig = field(default_factory=AugmentConfig)
    augment: Augment | None = None
    search: Sequence[Path] = ()
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    channels_last: bool = False

    samples = "images"

    def placed(self, device: torch.device, *, channels_last: bool) -> Classification:
        """The same task, its batches on ``device``."""
        return replace(self, device=device, channels_last=channels_last)

    def seeded(self, seed: int, samples: int) -> Classification:
        """The same task with the augmentation of a seed, for a training set of so many samples."""
        self.augmentation.check_samples(self.samples)
        augment = Augment(self.augmentation, seed, samples=samples, search=self.search)
        return replace(self, augment=augment)

    @property
    def partners(self) -> Callable[[Tensor, int], Tensor] | None:
        """With whose images a batch is mixed, where the augmentation mixes."""
        return self.augment.partners if self.augment is not None and self.augment.mixes else None

    def training_batch(self, images: Tensor, labels: Tensor, index: Tensor, view: int) -> Batch:
        """A training batch: augmented once, then normalised for each role.

        Args:
            images: ``(N, C, H, W)``, uint8 or float in the data's own range; where the augmentation mixes,
                the partners' images come behind them, ``(N + M, C, H, W)``.
            labels: ``(N,)`` int64, or ``(N + M,)``.
            index: ``(N,)`` positions in the data set; with ``view`` they decide the augmentation.
            view: Number of the view, usually the epoch.

        Returns:
            The batch; its target is ``(N,)`` int64, or ``(N, num_classes)`` where the augmentation mixes.
        """
        images = images.to(self.device, non_blocking=True)
        labels = labels.to(self.device, non_blocking=True)
        if self.augment is None:
            return self._batch(images, labels, index, view)
        rows = torch.cat([index, self.augment.partners(index, view)])
        if len(images) != len(rows):
            raise ValueError(f"expected {len(rows)} images, those of partners included, got {len(images)}")
        plain = self.augment(images, rows, view)
        if not self.augment.mixes:
            return self._batch(plain, labels, index, view)
        images, target, mixture = self.augment.mix(plain, labels, index, view, self.num_classes)
        batch = self._batch(images, target, index, view)
        if not self.augment.config.mix_targets:
            return batch
        own = self._lay_out(self.preprocessing["teacher"].normalise(plain))
        return replace(batch, inputs={**batch.inputs, "teacher": own}, mixture=mixture)

    def plain_batch(self, images: Tensor, labels: Tensor, index: Tensor) -> Batch:
        """A batch for evaluation: normalised, not augmented; shapes as in :meth:`training_batch`."""
        return self._batch(images.to(self.device, non_blocking=True), labels, index, 0)

    def _batch(self, images: Tensor, target: Tensor, index: Tensor, view: int) -> Batch:
        inputs: dict[str, Tensor] = {}
        made: dict[Preprocessing, Tensor] = {}
        for role, preprocessing in self.preprocessing.items():
            if preprocessing not in made:
                made[preprocessing] = self._lay_out(preprocessing.normalise(images))
            inputs[role] = made[preprocessing]
        target = target.to(self.device, non_blocking=True)
        return Batch(inputs, target, None, index.to(self.device, non_blocking=True), view)

    def _lay_out(self, images: Tensor) -> Tensor:
        return images.contiguous(memory_format=torch.channels_last) if self.channels_last else images

    # Words and files --------------------------------------------------------------------------------

    def describe_data(self, train: ImageSet) -> str:
        """Classes and the shape of one image, as the data gives it."""
        return f"{self.num_classes} classes, images {train.shape}"

    def describe_input(self, role: str) -> str:
        """Normalisation and size."""
        return self.preprocessing[role].describe()

    def one_input(self, role: str, train: ImageSet) -> OneInput:
        """Shape of one image as ``role`` sees it, after its own resize."""
        return tuple(self.plain_batch(*train.__getitems__([0])).tensor(role).shape[1:])

    def keep(self, model: nn.Module, path: Path, metadata: Mapping[str, str]) -> None:
        """The weights, with the classes and how images are prepared."""
        own = {
            "classes": "\n".join(self.class_names),
            "preprocessing": self.preprocessing["student"].describe(),
        }
        save_weights(model, path, {**metadata, **own})

    def shown(self, part: LabelledSet, position: int) -> Mapping[str, str]:
        """The image."""
        assert isinstance(part, ImageSet)
        return {"image": picture(part.images([position])[0].numpy())}
