"""Image classification: one view of each image for all networks, each normalised its own way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from potstill import distributed
from potstill.augment import Augment
from potstill.batch import Batch, Signals
from potstill.data.loader import Loader
from potstill.models.preprocessing import Preprocessing

__all__ = ["Classification"]


@dataclass(frozen=True, kw_only=True)
class Classification:
    """Batches, supervised loss and predictions of an image classifier.

    Attributes:
        class_names: One name a class, in the order of the labels.
        preprocessing: How each role (``teacher``, ``student``) wants its images.
        augment: The transform of training batches, ``None`` for none.
        label_smoothing: Share of the target spread over all classes, 0 to 1.
        device: Where batches go.
        channels_last: Lay images out with channels last, as convolutions on processors like it.
    """

    class_names: tuple[str, ...]
    preprocessing: Mapping[str, Preprocessing]
    augment: Augment | None = None
    label_smoothing: float = 0.0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    channels_last: bool = False

    metric = "accuracy"
    higher_is_better = True

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

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
        images = self.augment(images, rows, view)
        if self.augment.mixes:
            images, labels = self.augment.mix(images, labels, index, view, self.num_classes)
        return self._batch(images, labels, index, view)

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

    def supervised(self, signals: Signals, batch: Batch) -> Tensor:
        """Cross-entropy with the labels, ``(N,)`` in float32."""
        assert batch.target is not None
        logits = signals.output.float() if signals.output.dtype != torch.float64 else signals.output
        return cross_entropy(logits, batch.target, reduction="none", label_smoothing=self.label_smoothing)

    @torch.no_grad()
    def predict(self, model: nn.Module, loader: Loader, role: str) -> Tensor:
        """Logits of every sample, in the order of the data set, the same on every rank.

        Args:
            model: A classifier; put in eval mode for the call and back afterwards.
            loader: Gives this rank's share of the samples, each exactly once over all ranks.
            role: Whose preprocessing to use.

        Returns:
            ``(len(data), C)`` float32 on the CPU.
        """
        training = model.training
        model.eval()
        rows: Tensor | None = None
        for images, labels, index in loader.epoch(0):
            logits = model(self.plain_batch(images, labels, index).input(role))
            if isinstance(logits, Signals):
                logits = logits.output
            logits = (logits[0] if isinstance(logits, tuple) else logits).float().cpu()
            if rows is None:
                rows = logits.new_zeros(len(loader.dataset), logits.shape[1])
            rows[index.cpu()] = logits
        model.train(training)
        if rows is None:
            rows = torch.zeros(len(loader.dataset), self.num_classes)
        return distributed.sum_tensor(rows)

    def evaluate(self, model: nn.Module, loader: Loader, role: str = "student") -> dict[str, float]:
        """Accuracy (a fraction) and mean cross-entropy over all samples of ``loader``."""
        return self.score(self.predict(model, loader, role), loader)

    def score(self, logits: Tensor, loader: Loader) -> dict[str, float]:
        """The same of logits ``(len(data), C)``."""
        labels = loader.dataset.labels
        return {
            "accuracy": float((logits.argmax(dim=1) == labels).double().mean()),
            "loss": float(cross_entropy(logits, labels)),
        }
