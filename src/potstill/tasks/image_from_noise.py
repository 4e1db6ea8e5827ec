"""Images from noise: generators of latent vectors, and how far their images are from real ones as a set."""

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
from potstill.augment.draws import Draws, uniform
from potstill.batch import Batch
from potstill.data.loader import Loader
from potstill.data.pictures import PictureConfig, PictureSet
from potstill.data.pixels import middle
from potstill.errors import UserError
from potstill.matching.taps import first_tensor
from potstill.measure import OneInput
from potstill.metrics.frechet import frechet_figures
from potstill.metrics.resemblance import kernel_jackknife
from potstill.metrics.verdict import mean_interval
from potstill.models.perception import Perception
from potstill.models.weights import save_weights
from potstill.tasks.contract import Answers
from potstill.tasks.generated import answer, as_shares, augment_of, squares

__all__ = ["ImageFromNoise", "noise"]

PLACE, NOISE = 960, 970
"""Numbers of the draws that place a square in an image, and of those that are the noise."""
EVALUATION = -1
"""The view whose noise validation and test see; no epoch's."""


def noise(index: Tensor, *, seed: int, view: int, size: int) -> Tensor:
    """Normal numbers that depend on nothing but (seed, view, index).

    Args:
        index: Sample numbers ``(N,)`` int64.
        seed: Seed of the run.
        view: Number of the view.
        size: Numbers a sample.

    Returns:
        ``(N, size)`` float32.

    >>> one = noise(torch.arange(4), seed=0, view=3, size=2)
    >>> bool((one[2:] == noise(torch.tensor([2, 3]), seed=0, view=3, size=2)).all())
    True
    """
    places = index[:, None] * size + torch.arange(size, device=index.device)
    even = uniform(places, seed=seed, view=view, draw=NOISE)
    normal: Tensor = torch.special.ndtri(even + 2.0**-54)
    return normal.float()


@dataclass(frozen=True, kw_only=True)
class ImageFromNoise:
    """Batches and answers of a generator whose input is noise; all images are scaled to 0..1.

    A batch's target are real images, of which none is what the noise beside it should become: only a
    discriminator looks at them. An answer is a row of features of a generated image, then of a real one.

    Attributes:
        data: The real images and the length of the noise.
        size: Side of the images.
        eyes: By which features sets of images are compared.
        augmentation: What real images of training are augmented by, once :meth:`seeded`.
        augment: The transform of real images, ``None`` for none.
        seed: Of the noise, once :meth:`seeded`.
        search: Folders in which a transform of the user's own is looked up.
        device: Where batches go.
    """

    data: PictureConfig
    size: int
    eyes: Perception
    augmentation: AugmentConfig = field(default_factory=AugmentConfig)
    augment: Augment | None = None
    seed: int = 0
    search: Sequence[Path] = ()
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    metric = "kid"
    higher_is_better = False
    samples = "images"
    num_classes = 0
    partners = None
    supervised = None

    # Training ---------------------------------------------------------------------------------------

    def placed(self, device: torch.device, *, channels_last: bool) -> ImageFromNoise:
        """The same task, its batches on ``device``."""
        del channels_last  # noise has no channels
        return replace(self, device=device, eyes=self.eyes.to(device))

    def seeded(self, seed: int, samples: int) -> ImageFromNoise:
        """The same task with the noise and the augmentation of a seed."""
        augment = augment_of(self.augmentation, seed, samples, self.search)
        return replace(self, augment=augment, seed=seed)

    def training_batch(self, images: Tensor, targets: Tensor | None, index: Tensor, view: int) -> Batch:
        """A training batch: noise, and real images that it has nothing to do with.

        Args:
            images: Real ones, ``(N, C, H, W)`` uint8.
            targets: Not looked at.
            index: ``(N,)`` positions in the data set; with ``view`` they decide noise and augmentation.
            view: Number of the view, usually the epoch.
        """
        del targets
        real = squares(images.to(self.device), self.size, Draws(index, self.seed, view, PLACE))
        if self.augment is not None:
            real = self.augment.together(Scene(images=real), index, view).images
        return self._batch(real, index, noise(index, seed=self.seed, view=view, size=self._length), view)

    def plain_batch(self, images: Tensor, targets: Tensor | None, index: Tensor) -> Batch:
        """A batch for evaluation: noise that is always the same, and the middle squares of real images."""
        del targets
        given = noise(index, seed=0, view=EVALUATION, size=self._length)
        return self._batch(middle(images.to(self.device), self.size), index, given, 0)

    def _batch(self, real: Tensor, index: Tensor, given: Tensor, view: int) -> Batch:
        return Batch({"student": given.to(self.device)}, as_shares(real), None, index.to(self.device), view)

    @property
    def _length(self) -> int:
        assert self.data.latent is not None, "the data has noise"
        return self.data.latent

    # Answers ----------------------------------------------------------------------------------------

    @torch.no_grad()
    def predict(self, model: nn.Module, loader: Loader, role: str) -> Tensor:
        """Answers ``(N, 2F)``, in the order of the data set, the same on every rank."""
        training = model.training
        model.eval()
        rows: Tensor | None = None
        for images, _, index in loader.epoch(0):
            batch = self.plain_batch(images, None, index)
            assert batch.target is not None, "there are real images"
            seen = [self.eyes.vectors(each) for each in (answer(model, batch, role), batch.target)]
            row = torch.cat(seen, dim=1).float().cpu()
            rows = row.new_zeros(len(loader.dataset), row.shape[1]) if rows is None else rows
            rows[index.cpu()] = row
        model.train(training)
        assert rows is not None, "a part of the data has images"
        return distributed.sum_tensor(rows)

    def score(self, answers: Tensor, loader: Loader) -> dict[str, float]:
        """The kernel distance from the real images."""
        del loader
        return {"kid": float(_added(answers.numpy()).mean())}

    def value(self, answers: Answers, part: PictureSet) -> float:
        """Kernel distance of the images from the real ones as a set; near 0 for those that are like them."""
        del part
        return float(_added(answers).mean())

    def per_sample(self, answers: Answers, part: PictureSet) -> NDArray[np.float64]:
        """Jackknife pseudo-values of the kernel distance, negative: what each image adds, ``(..., N)``."""
        del part
        return -_added(answers)

    def interval(self, answers: Answers, part: PictureSet) -> tuple[float, float]:
        """Of the kernel distance, over seeds and images."""
        del part
        return mean_interval(_added(answers))

    def figures(
        self, answers: Answers, teacher: Answers | None, part: PictureSet
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The Fréchet distance where there are images enough, and by whose features the distances are."""
        del teacher, part
        own, real = np.split(answers, 2, axis=-1)
        return {}, {"features": self.eyes.name, **frechet_figures(own, real)}

    def joined(self, answers: Sequence[Answers]) -> Answers:
        """A mixture: the networks' images in turns."""
        rows = np.arange(len(answers[0]))
        mixed: Answers = np.stack(answers)[rows % len(answers), rows]
        return mixed

    def agreement(self, one: Answers, other: Answers) -> float:
        """Mean cosine of the features that two networks' images of the same noise have."""
        ours, theirs = (np.split(each.astype(np.float64), 2, axis=-1)[0] for each in (one, other))
        lengths = np.linalg.norm(ours, axis=-1) * np.linalg.norm(theirs, axis=-1)
        return float(((ours * theirs).sum(axis=-1) / np.maximum(lengths, 1e-12)).mean())

    # Checks and words -------------------------------------------------------------------------------

    def check_output(self, output: Any, batch: Batch, role: str) -> None:
        """Refuse what is no image of the real ones' size."""
        assert batch.target is not None, "there are real images"
        image, wanted = first_tensor(output), tuple(batch.target.shape)
        if image is None or tuple(image.shape) != wanted:
            got = tuple(image.shape) if image is not None else type(output).__name__
            raise UserError(f"{role}.model", f"expected images {wanted}, as the real ones are, got {got}")

    def check_teacher(self, answers: Answers, part: PictureSet) -> float:
        """The teacher's kernel distance from the real images."""
        if not np.isfinite(answers).all():
            raise UserError("teacher", "expected finite images, got NaN or infinity on validation")
        return self.value(answers, part)

    def describe_data(self, train: PictureSet) -> str:
        """The real images and the noise, in words."""
        channels = train.shape[0]
        return (
            f"{self._length} normal numbers each, real images ({channels}, {self.size}, {self.size}) beside "
            f"them; KID by the features of {self.eyes.name}"
        )

    def describe_input(self, role: str) -> str:
        """All take the same."""
        del role
        return f"{self._length} normal numbers"

    def one_input(self, role: str, train: PictureSet) -> OneInput:
        """The shape of one image's noise."""
        del role, train
        return (self._length,)

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


def _added(answers: Answers) -> NDArray[np.float64]:
    """What each image adds to the kernel distance, ``(..., N)`` of answers ``(..., N, 2F)``."""
    own, real = np.split(answers.reshape(-1, *answers.shape[-2:]), 2, axis=-1)
    found = [kernel_jackknife(images, others) for images, others in zip(own, real, strict=True)]
    return np.stack(found).reshape(answers.shape[:-1])
