"""Images and the networks that sort them, from a recipe."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from potstill.assembly.materials import Material, kept_answers, made
from potstill.config import Recipe
from potstill.data import ImageSet, Splits, load_data
from potstill.errors import UserError
from potstill.models.load import ModelConfig
from potstill.models.preprocessing import Preprocessing, preprocessing_of
from potstill.schemes.settings import others_of
from potstill.tasks import Classification
from potstill.teachers import Ensemble

__all__ = ["image_task", "images"]


def images(recipe: Recipe, search: Sequence[Path]) -> Material:
    """Load the data and networks of a recipe with ``task: classification``.

    Raises:
        UserError: Whatever is missing or does not fit, at its dotted key.
    """
    splits = load_data(recipe.data, search=search)
    channels = splits.train.channels
    make = functools.partial(made, search=search, num_classes=len(splits.train.class_names))
    shelf, known = kept_answers(recipe, splits, search)
    config = recipe.teacher
    teacher = None if config is None or known is not None else make(config, where="teacher")
    torch.manual_seed(recipe.seed)
    student = make(recipe.student, where="student")
    views: dict[str, Preprocessing] = {}
    if known is not None and known.preprocessing is not None:
        views["teacher"] = known.preprocessing
    elif teacher is not None and config is not None:
        views["teacher"] = preprocessing_of(teacher, config, channels, None, where="teacher")
        teacher = _together(teacher, recipe.co_teachers, make, views["teacher"], channels)
    views["student"] = preprocessing_of(student, recipe.student, channels, views.get("teacher"))
    return Material(
        splits=splits,
        task=image_task(recipe, splits, views, search),
        teacher=functools.partial(make, config, where="teacher") if known is not None and config else teacher,
        student=student,
        fresh=lambda: make(recipe.student, where="student"),
        others=tuple(
            functools.partial(make, config, where=f"scheme.networks.{place}")
            for place, config in enumerate(others_of(recipe.scheme))
        ),
        shelf=shelf,
        known=known,
    )


def _together(
    teacher: nn.Module,
    configs: Sequence[ModelConfig],
    make: Callable[..., nn.Module],
    view: Preprocessing,
    channels: int,
) -> nn.Module:
    """The teacher, with the others that teach with it."""
    others = []
    for place, config in enumerate(configs):
        where = f"co_teachers.{place}"
        others.append(make(config, where=where))
        wanted = preprocessing_of(others[-1], config, channels, view, where=where)
        if wanted != view:
            raise UserError(
                where,
                f"must take the images that the teacher takes ({view.describe()}), got {wanted.describe()}",
            )
    return Ensemble([teacher, *others]) if others else teacher


def image_task(
    recipe: Recipe,
    splits: Splits[ImageSet],
    preprocessing: Mapping[str, Preprocessing],
    search: Sequence[Path] = (),
) -> Classification:
    """The task of a recipe for images, its networks' preprocessing by role."""
    return Classification(
        class_names=splits.train.class_names,
        preprocessing=preprocessing,
        augmentation=recipe.augment,
        search=search,
        label_smoothing=recipe.train.label_smoothing,
    )
