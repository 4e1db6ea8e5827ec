"""A view of a whole batch at once; each sample's view depends on nothing but (seed, view, index)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from potstill.augment.draws import Draws, Transform
from potstill.augment.mixing import mixed_labels
from potstill.augment.scene import Scene, moved_boxes
from potstill.augment.settings import FIRST_DRAWS, AugmentConfig
from potstill.batch import Mixture
from potstill.errors import UserError

__all__ = ["Augment"]

PARTNER = 704
"""Number of the draw that chooses a sample's partner."""


class Augment:
    """The augmentation of one run; call it with a batch.

    Args:
        config: What to do.
        seed: Seed of the run.
        samples: Size of the training set, where images are mixed: partners come from all of it.
        search: Folders in which a file of yours is looked up.

    Raises:
        ValueError: If images are to be mixed and ``samples`` is missing.
        UserError: If a function of yours cannot be found.

    Example:
        >>> flip = Augment(AugmentConfig(flip=1.0), seed=0)
        >>> flip(torch.tensor([[[[1, 2]]]]), torch.tensor([0]), view=0).tolist()
        [[[[2, 1]]]]
    """

    def __init__(
        self, config: AugmentConfig, seed: int, samples: int | None = None, search: Sequence[Path] = ()
    ) -> None:
        self.config = config
        self.seed = seed
        self.samples = samples
        self._transforms = [(name, each.found(search)) for name, each in config.transforms()]
        self._mixings = config.mixings()
        if self._mixings and (samples is None or samples < 2):
            raise ValueError(f"expected the number of training samples to mix, at least 2, got {samples}")

    @property
    def mixes(self) -> bool:
        """Whether images, and so their labels, are mixed."""
        return bool(self._mixings)

    def __call__(self, images: Tensor, index: Tensor, view: int) -> Tensor:
        """A view of each image, before any mixing.

        Args:
            images: ``(N, C, H, W)`` of any type.
            index: Positions in the data set, ``(N,)`` int64; fastest on the CPU, wherever the images are.
            view: Number of the view.

        Returns:
            Images of the same shape and type.

        Raises:
            UserError: If a transform cannot change such images, at its key.
        """
        return self.together(Scene(images=images), index, view).images

    def together(self, scene: Scene, index: Tensor, view: int) -> Scene:
        """A view of each image and of what belongs to it, before any mixing.

        What moves pixels moves all of a scene by the same draws; what changes how they look (colours,
        coverings) changes the images alone. A box becomes the bounds of its moved corners, clipped to the
        image, and is dropped where less than ``augment.least_visible`` of its area is left.

        Args:
            scene: Images, and boxes, masks or paired images.
            index: Positions in the data set, ``(N,)`` int64; fastest on the CPU, wherever the images are.
            view: Number of the view.

        Returns:
            The same with everything of the same shape and type.

        Raises:
            UserError: If a transform cannot change such images, at its key.

        Example:
            >>> boxes, there = torch.tensor([[[0.0, 0.0, 1.0, 1.0]]]), torch.tensor([[True]])
            >>> scene = Scene(images=torch.tensor([[[[1, 2]]]]), boxes=boxes, there=there)
            >>> flip = Augment(AugmentConfig(flip=1.0), seed=0)
            >>> flip.together(scene, torch.tensor([0]), view=0).boxes.tolist()
            [[[1.0, 0.0, 2.0, 1.0]]]
        """
        for name, transform in self._transforms:
            try:
                transform.check(scene.images)
                draws = self._draws(name, index, view)
                scene = _changed(transform, scene, draws)
            except UserError:
                raise
            except ValueError as error:
                raise UserError(f"augment.{name}", str(error)) from error
        return scene.dropped(self.config.least_visible)

    def partners(self, index: Tensor, view: int) -> Tensor:
        """Samples that are needed beside ``index``: the partners of those that are mixed.

        Args:
            index: Positions in the data set, ``(N,)`` int64.
            view: Number of the view.

        Returns:
            ``(M,)`` positions, one for each mixed sample, in their order; never a sample itself.
        """
        if not self._mixings:
            return index[:0]
        assert self.samples is not None
        index = index[self._which(index, view) >= 0]
        steps = 1 + Draws(index, self.seed, view, PARTNER).whole(0, self.samples - 1)
        return (index + steps) % self.samples

    def mix(
        self, images: Tensor, labels: Tensor, index: Tensor, view: int, classes: int
    ) -> tuple[Tensor, Tensor, Mixture]:
        """Mixtures of samples with their partners, their targets, and how they were mixed.

        Args:
            images: The samples' views and then their partners', ``(N + M, C, H, W)``.
            labels: Their classes, ``(N + M,)`` int64.
            index: Positions of the samples, ``(N,)`` int64.
            view: Number of the view.
            classes: Number of classes.

        Returns:
            Images ``(N, C, H, W)`` of the same type, targets ``(N, classes)`` float32 whose rows sum to 1,
            and the rows and shares that were mixed.
        """
        count, which = len(index), self._which(index, view)
        mixed = which >= 0
        row = count - 1 + mixed.long().cumsum(0)  # where each mixed sample's partner stands
        partner = torch.where(mixed, row, torch.arange(count, device=index.device))
        share = torch.ones(count, dtype=torch.float64)
        made = images[:count]
        for place, (name, mixing) in enumerate(self._mixings):
            rows = (which == place).nonzero()[:, 0]
            draws = self._draws(name, index, view)
            if len(rows) == count:  # the usual case, without copies
                made, share = mixing.mix(made, images[count:], draws)
            elif len(rows):
                there, others = rows.to(images.device), partner[rows].to(images.device)
                mixture, kept = mixing.mix(images[there], images[others], draws.rows(rows))
                made = made.index_copy(0, there, mixture)
                share[rows.cpu()] = kept
        target = mixed_labels(labels[:count], labels[partner.to(labels.device)], share, classes)
        return made, target, Mixture(partner, share)

    def _which(self, index: Tensor, view: int) -> Tensor:
        """Place of the mixing that takes each sample, -1 for none, ``(N,)``."""
        which = torch.full_like(index, -1)
        for place, (name, mixing) in enumerate(self._mixings):
            taken = (self._draws(name, index, view)(0) < mixing.probability) & (which < 0)
            which = which.masked_fill(taken, place)
        return which

    def _draws(self, name: str, index: Tensor, view: int) -> Draws:
        return Draws(index, self.seed, view, FIRST_DRAWS[name])


def _changed(transform: Transform, scene: Scene, draws: Draws) -> Scene:
    """The scene with those images changed that the transform's probability takes."""
    chosen = (draws(0) < transform.probability).nonzero()[:, 0]
    if len(chosen) == 0:
        return scene
    if len(chosen) == len(scene.images):
        return _moved(transform, scene, draws)
    there = chosen.to(scene.images.device)
    made = _moved(transform, scene.rows(there), draws.rows(chosen))
    return scene.with_rows(there, made)


def _moved(transform: Transform, scene: Scene, draws: Draws) -> Scene:
    """The scene with every image changed, and with it what belongs to it."""
    height, width = scene.images.shape[2:]
    images = transform.apply(scene.images, draws)
    if scene.alone:
        return replace(scene, images=images)
    masks = None if scene.masks is None else transform.follow(scene.masks, draws, "nearest")
    paired = None if scene.paired is None else transform.follow(scene.paired, draws, "bilinear")
    boxes, visible = scene.boxes, scene.visible
    if boxes is not None:
        for matrix in transform.moves(height, width, draws):
            boxes, left = moved_boxes(boxes, matrix, height, width)
            assert visible is not None, "where there are boxes it is known"
            visible = visible * left
    return replace(scene, images=images, boxes=boxes, visible=visible, masks=masks, paired=paired)
