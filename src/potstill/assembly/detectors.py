"""Images with boxes and the networks that find them, from a recipe."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from potstill.assembly.materials import Material, made
from potstill.batch import Signals
from potstill.config import DetectionRecipe
from potstill.data.boxes import LEAST_SIDE, load_boxes
from potstill.errors import UserError
from potstill.matching.terms import Term, parse_terms
from potstill.models.detector import Detector
from potstill.models.load import ModelConfig
from potstill.models.preprocessing import Preprocessing, preprocessing_of
from potstill.models.weights import read_metadata
from potstill.schemes.settings import others_of
from potstill.specs import find
from potstill.tasks import Detection

__all__ = ["detectors"]

SCHEMES = ("offline", "labels", "born_again", "mutual", "mean_teacher")
"""Those whose terms may compare detectors."""


def detectors(recipe: DetectionRecipe, search: Sequence[Path]) -> Material:
    """Load the data and networks of a recipe with ``task: detection``.

    Raises:
        UserError: Whatever is missing or does not fit, at its dotted key.
    """
    _check(recipe)
    splits = load_boxes(recipe.data, search)
    names = splits.train.class_names

    def make(config: ModelConfig, where: str, classes: Sequence[str] = names) -> nn.Module:
        count = len(classes) + config.model.startswith("torchvision:")  # which counts the background too
        network = made(config, search, where, num_classes=count, folders=search)
        if isinstance(network, Detector):
            return network
        try:
            detector = Detector(network)
        except UserError as error:
            raise UserError(f"{where}.{error.where}", error.message) from error
        return _heads_checked(detector, len(classes), recipe.data.size, where)

    config = recipe.teacher
    own = names if config is None else _own_classes(config, names, search)
    teacher = None if config is None else make(config, "teacher", own)
    views: dict[str, Preprocessing] = {}
    if isinstance(teacher, Detector) and config is not None:
        teacher.order = None if own == names else [own.index(name) + 1 for name in names]
        views["teacher"] = preprocessing_of(teacher, config, 3, None, where="teacher")
    torch.manual_seed(recipe.seed)
    student = make(recipe.student, "student")
    views["student"] = preprocessing_of(student, recipe.student, 3, views.get("teacher"))
    task = Detection(class_names=names, preprocessing=views, augmentation=recipe.augment, search=search)
    return Material(
        splits=splits,
        task=task,
        teacher=teacher,
        student=student,
        fresh=functools.partial(make, recipe.student, "student"),
        others=tuple(
            functools.partial(make, config, f"scheme.networks.{place}")
            for place, config in enumerate(others_of(recipe.scheme))
        ),
    )


@torch.no_grad()
def _heads_checked(network: Detector, classes: int, size: tuple[int, int], where: str) -> Detector:
    """A detector of the user's, once its heads were seen to know the data's classes.

    Raises:
        UserError: If they know others.
    """
    region = torch.tensor([[[0.0, 0.0, LEAST_SIDE, LEAST_SIDE]]])
    training = network.training
    said = network.eval()(torch.zeros(1, 3, *size), proposals=region)
    network.train(training)
    assert isinstance(said, Signals), "a detector that is asked about regions tells of its heads"
    known = said.output.shape[-1]
    if known != classes + 1:
        raise UserError(
            f"{where}.model",
            f"its heads tell {known} classes; expected {classes + 1}, the data's {classes} and, at 0, the "
            "background (num_classes, where a function of yours takes it, is without)",
        )
    return network


def _check(recipe: DetectionRecipe) -> None:
    if recipe.data.test_with_validation and recipe.train.select == "best":
        raise UserError(
            "data.test_with_validation", "has no meaning with train.select: best, which chooses by validation"
        )
    if recipe.teacher is not None and recipe.teacher.cache is not None:
        raise UserError(
            "teacher.cache",
            "keeps one answer an image, and a detector answers by regions, maps and boxes; leave it out",
        )
    if recipe.scheme.kind not in SCHEMES:
        raise UserError(
            "scheme",
            f"{recipe.scheme.kind} compares logits (N, C), and a detector has none; say one of "
            f"{', '.join(SCHEMES)}",
        )
    _, configs = parse_terms(recipe.distill)
    for name, config in configs.items():
        if Term(name, config).signal == "logits":
            raise UserError(
                f"distill.{name}",
                "compares logits (N, C), and a detector has regions: see weighted_classes (R-CNN, SSD) "
                "and weighted_scores (RetinaNet, FCOS)",
            )


def _own_classes(config: ModelConfig, names: tuple[str, ...], search: Sequence[Path]) -> tuple[str, ...]:
    """The teacher's classes, where its weights say which they are, else the data's.

    Raises:
        UserError: If it lacks one of the data's.
    """
    if config.weights is None:
        return names
    said = read_metadata(find(config.weights, search, "teacher.weights")).get("classes")
    own = names if said is None else tuple(said.split("\n"))
    absent = [name for name in names if name not in own]
    if absent:
        raise UserError(
            "teacher.weights",
            f"knows the classes {', '.join(own)}; the data's are {', '.join(names)}: it lacks "
            f"{', '.join(absent)}, and classes are matched by name",
        )
    return own
