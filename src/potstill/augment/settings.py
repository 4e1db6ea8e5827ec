"""What a recipe says under ``augment``: one line a transform, and in which order they come."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from potstill.augment.colour import Colour
from potstill.augment.draws import Share, Transform
from potstill.augment.erasing import Cutout, Erasing
from potstill.augment.geometry import Flip, PaddedCrop, ResizedCrop, Rotation
from potstill.augment.mixing import CutMix, Mixing, Mixup
from potstill.augment.own import Own
from potstill.augment.policies import RandAugment, TrivialAugment
from potstill.augment.text import Covering, SpanMasking, TokenDropout
from potstill.errors import UserError, nearest
from potstill.losses import Range

__all__ = ["AugmentConfig"]

# Where each transform's random draws begin. The numbers decide every view: they never change, and a new
# transform takes a new one. ``flip`` and ``crop`` share 0 and take different draws from there.
FIRST_DRAWS = {
    "crop": 0,
    "flip": 0,
    "resized_crop": 64,
    "vertical_flip": 128,
    "rotation": 192,
    "rand_augment": 256,
    "trivial_augment": 320,
    "colour": 384,
    "cutout": 448,
    "erasing": 512,
    "mixup": 576,
    "cutmix": 640,
    "own": 768,
    "token_dropout": 832,
    "span_masking": 896,
}


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """What happens to each training image, in this order unless ``order`` says another.

    A number stands for a transform's first field: ``rotation: 15`` is ``rotation: {degrees: 15}``.
    """

    crop: Annotated[int, Range(least=0)] = 0
    """Pad with this many black pixels on every side, then cut the old size at a random place."""
    resized_crop: ResizedCrop | None = None
    """Cut a random box and bring it to the image's size."""
    flip: Share = 0.0
    """Probability of a mirror image, left for right."""
    vertical_flip: Share = 0.0
    """Probability of a mirror image, top for bottom."""
    rotation: Rotation | None = None
    """Rotate about the middle."""
    rand_augment: RandAugment | None = None
    """RandAugment."""
    trivial_augment: TrivialAugment | None = None
    """TrivialAugment."""
    colour: Colour | None = None
    """Change brightness, contrast, saturation and hue."""
    cutout: Cutout | None = None
    """Cover a square."""
    erasing: Erasing | None = None
    """Cover a box of random shape."""
    own: Own | None = None
    """A function of yours: ``file.py:attribute`` or ``module:attribute``."""
    mixup: Mixup | None = None
    """Mix with another sample of the training set; the labels mix too."""
    cutmix: CutMix | None = None
    """Put a box of another sample into those that ``mixup`` left alone; the labels mix too."""
    token_dropout: TokenDropout | None = None
    """Of texts: cover single tokens."""
    span_masking: SpanMasking | None = None
    """Of texts: cover runs of tokens."""
    least_visible: Share = 0.1
    """Of boxes: one of which less than this share of its area is left in the image is dropped."""
    mix_targets: bool = False
    """Mix the teacher's answers to the two plain images, instead of asking it about the mixed one."""
    order: tuple[str, ...] = ()
    """Names of all transforms above in the order that is wanted; mixing always comes last."""

    def __post_init__(self) -> None:
        names = [name for name, _ in self._usual()]
        for place, name in enumerate(self.order):
            if name not in names:
                set_or_known = names if name in FIRST_DRAWS else FIRST_DRAWS
                why = (
                    "mixing always comes last" if name in ("mixup", "cutmix") else "no transform that is set"
                )
                raise UserError(f"augment.order.{place}", f"{name!r}: {why}{nearest(name, set_or_known)}")
        if self.order and sorted(self.order) != sorted(names):
            raise UserError(
                "augment.order", f"expected each of {', '.join(names)} once, got {', '.join(self.order)}"
            )
        if self.mixup is not None and self.cutmix is not None and self.mixup.probability == 1:
            raise UserError(
                "augment.cutmix",
                "never happens while mixup.probability is 1; at 0.5 each takes half of the images",
            )
        if self.mix_targets and not self.mixings():
            raise UserError("augment.mix_targets", "has a meaning beside mixup or cutmix alone")

    def _usual(self) -> Iterator[tuple[str, Transform]]:
        if self.crop:
            yield "crop", PaddedCrop(padding=self.crop)
        if self.resized_crop is not None:
            yield "resized_crop", self.resized_crop
        if self.flip:
            yield "flip", Flip(probability=self.flip)
        if self.vertical_flip:
            yield "vertical_flip", Flip(axis=2, probability=self.vertical_flip)
        for name in ("rotation", "rand_augment", "trivial_augment", "colour", "cutout", "erasing", "own"):
            if (transform := getattr(self, name)) is not None:
                yield name, transform

    def transforms(self) -> list[tuple[str, Transform]]:
        """What changes single images, by name, in order."""
        made = dict(self._usual())
        return [(name, made[name]) for name in self.order or made]

    def coverings(self) -> list[tuple[str, int, Covering]]:
        """What changes texts, by name, each with the number of its first draw."""
        both = (("token_dropout", self.token_dropout), ("span_masking", self.span_masking))
        return [(name, FIRST_DRAWS[name], covering) for name, covering in both if covering is not None]

    def check_samples(self, samples: str) -> None:
        """Refuse what changes images where samples are ``texts``, and the other way round.

        Raises:
            UserError: At the first such key.
        """
        texts = [name for name, _, _ in self.coverings()]
        images = [name for name, _ in (*self._usual(), *self.mixings())]
        others, kind = (texts, "texts") if samples == "images" else (images, "images")
        for name in others:
            raise UserError(f"augment.{name}", f"changes {kind}; the samples of this task are {samples}")

    def mixings(self) -> list[tuple[str, Mixing]]:
        """What mixes images, by name: the first that takes a sample keeps it."""
        both = (("mixup", self.mixup), ("cutmix", self.cutmix))
        return [(name, mixing) for name, mixing in both if mixing is not None and mixing.probability > 0]
