"""Which samples choose the thresholds of early exits, and which report on them; none does both."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from potstill.config import Recipe
from potstill.data import ImageSet, Splits
from potstill.data.split import cut
from potstill.schemes.settings import DeepSupervisionConfig

__all__ = ["Parts", "parts_of", "seen_before"]

SEED = 0  # of the cut: the same two halves for every run, so that runs can be compared


@dataclass(frozen=True)
class Parts:
    """Two parts of the data without a sample in common.

    Attributes:
        calibration: Fits temperatures and tests thresholds.
        reporting: What the figures are taken from.
        calibrated_on: ``test`` or ``validation``: where the first was cut from.
    """

    calibration: ImageSet
    reporting: ImageSet
    calibrated_on: str


def parts_of(config: DeepSupervisionConfig, splits: Splits[ImageSet]) -> Parts:
    """Test images, with every class in its share, where the recipe says ``calibrate_on``; else validation.

    Raises:
        UserError: If the test part is too small for the cut.
    """
    if config.calibrate_on is None:
        return Parts(splits.validation, splits.test, "validation")
    rest, taken = cut(splits.test, config.calibrate_on, SEED, "scheme.calibrate_on")
    return Parts(taken, rest, "test")


def seen_before(config: DeepSupervisionConfig, recipe: Recipe) -> Iterator[str]:
    """Why the calibration samples may not be new to the weights, which the promise takes for granted."""
    if config.calibrate_on is not None:
        return
    remedy = "scheme.calibrate_on: 0.5 takes half of the test images instead"
    if recipe.student.weights is not None or recipe.student.pretrained:
        yield (
            "the early exits are calibrated on validation images, which the given student.weights may have "
            f"seen; then what is promised does not hold: {remedy}"
        )
    elif recipe.train.select == "best" or recipe.seeds > 1:
        chosen = "epoch" if recipe.train.select == "best" else "seed"
        yield (
            f"the early exits are calibrated on the validation images that also choose the {chosen}; what is "
            f"promised may be a little too good: {remedy}"
        )
