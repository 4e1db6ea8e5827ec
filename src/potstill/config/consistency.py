"""What sections of a recipe ask of each other; each alone was checked when it was read."""

from __future__ import annotations

from collections.abc import Mapping

from potstill.augment import AugmentConfig
from potstill.config.recipe import ImageRecipe, LanguageRecipe, Recipe
from potstill.errors import UserError
from potstill.matching.terms import Term, TermConfig, parse_terms
from potstill.responses import LanguageTeacherConfig
from potstill.schemes.settings import (
    AdversarialConfig,
    BornAgainConfig,
    DeepSupervisionConfig,
    MeanTeacherConfig,
    MutualConfig,
    SchemeConfig,
    SmoothedLabelsConfig,
)

__all__ = ["check_effect", "check_sections", "is_served"]


def check_sections(recipe: Recipe) -> None:
    """Refuse sections that contradict each other.

    Raises:
        UserError: At the dotted key that has no meaning beside another, or is missing.
    """
    _, terms = parse_terms(recipe.distill)
    _check_served(recipe, terms)
    _check_teacher(recipe)
    _check_scheme(recipe)
    _check_correction(recipe)
    _check_mixing(recipe, terms)
    _check_cache(recipe, terms)
    _check_own_views(recipe.scheme, recipe.augment)
    _check_others(recipe)
    _check_prune(recipe)


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


def _check_scheme(recipe: Recipe) -> None:
    """What a scheme asks of the task."""
    scheme, task = recipe.scheme, recipe.task
    sorts = task in ("classification", "text_classification")
    if isinstance(scheme, DeepSupervisionConfig) and task != "classification":
        raise UserError(
            "scheme", "deep_supervision needs task: classification, a network that sees one tensor"
        )
    if isinstance(scheme, SmoothedLabelsConfig) and not sorts:
        raise UserError("scheme", f"smoothed_labels needs one label a sample, got task: {task}")
    if not isinstance(scheme, BornAgainConfig) or scheme.knowledge == "plain":
        return
    knowledge = scheme.knowledge
    if recipe.teacher is None and len(scheme.networks_by_name()) == 1:
        raise UserError(
            "scheme.knowledge", f"{knowledge} has no meaning for one generation without a teacher"
        )
    if not sorts and (knowledge == "permuted" or task != "language_modeling"):
        raise UserError("scheme.knowledge", f"{knowledge} has no meaning with task: {task}")


def _check_others(recipe: Recipe) -> None:
    """The student's own network learns as ``train`` says, and its control with it."""
    scheme = recipe.scheme
    names = tuple(scheme.networks_by_name())[1:] if isinstance(scheme, MutualConfig) else ()
    names = ("discriminator",) if isinstance(scheme, AdversarialConfig) else names
    for name in recipe.train.others:
        if name not in names:
            known = f"expected {', '.join(names)}" if names else "only the student learns"
            raise UserError(f"train.others.{name}", f"names no network beside the student; {known}")


def check_effect(recipe: Recipe) -> None:
    """Refuse a scheme to which what is matched gives nothing to do; a control's recipe is meant to be one.

    Raises:
        UserError: At ``distill``, or the scheme's key that needs a term.
    """
    scheme = recipe.scheme
    _, terms = parse_terms(recipe.distill)
    answers = any(Term(name, term).signal == "logits" for name, term in terms.items())
    if isinstance(scheme, DeepSupervisionConfig) and scheme.taught_by == "ensemble" and not answers:
        raise UserError("scheme.taught_by", "ensemble has no meaning where no term compares logits")
    if isinstance(scheme, BornAgainConfig) and scheme.knowledge == "permuted" and not answers:
        raise UserError("scheme.knowledge", "permuted has no meaning where no term compares logits")
    among = isinstance(scheme, MutualConfig | MeanTeacherConfig | SmoothedLabelsConfig)
    if not terms and (among or (isinstance(scheme, BornAgainConfig) and scheme.knowledge != "weighted")):
        raise UserError(
            "distill",
            f"nothing is matched: with scheme: {scheme.kind} labels alone would teach; add a term, as kl, "
            f"or say scheme: labels",
        )


def is_served(recipe: Recipe) -> bool:
    """Whether the teacher answers behind an endpoint."""
    return isinstance(recipe.teacher, LanguageTeacherConfig) and recipe.teacher.endpoint is not None


def _check_served(recipe: Recipe, terms: Mapping[str, TermConfig]) -> None:
    """Texts are all that a served teacher gives."""
    if not is_served(recipe):
        return
    for name in terms:
        raise UserError(
            f"distill.{name}", "a served teacher gives answers alone, which labels are; leave out all terms"
        )
    if recipe.scheme.kind != "offline":
        raise UserError("scheme", f"{recipe.scheme.kind} has no meaning with a served teacher; leave it out")
    if recipe.student.model == "teacher":
        raise UserError("student.model", "got teacher, and only the server has its weights; name a network")


def _check_correction(recipe: Recipe) -> None:
    if not isinstance(recipe, LanguageRecipe) or recipe.correct is None:
        return
    if recipe.teacher is None:
        raise UserError("correct", "has no meaning without a teacher; leave it out")
    if is_served(recipe):
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
    if isinstance(recipe, LanguageRecipe) and recipe.student.lora is not None:
        raise UserError(
            "student.lora", "has no meaning beside prune: updates do not fit what is left; leave it out"
        )
    untrained = recipe.student.weights is None and not recipe.student.pretrained
    if recipe.task == "classification" and untrained and not recipe.student.arguments:
        raise UserError("student.weights", "missing; what is pruned must have learnt before")


def _check_mixing(recipe: Recipe, terms: Mapping[str, TermConfig]) -> None:
    augment = recipe.augment
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
    if augment.mix_targets and recipe.scheme.kind != "offline":
        raise UserError("augment.mix_targets", "needs scheme: offline, in which a trained teacher answers")


def _check_cache(recipe: Recipe, terms: Mapping[str, TermConfig]) -> None:
    if recipe.teacher is None or recipe.teacher.cache is None:
        return
    for name, config in terms.items() if recipe.teacher.cache.top is not None else ():
        if config.loss == "logit_mse" or Term(name, config).options.get("standardize"):
            raise UserError(
                "teacher.cache.top",
                f"keeps probabilities, and distill.{name} compares the logits themselves; leave it out",
            )
    if recipe.scheme.kind == "on_policy":
        raise UserError("teacher.cache", "has no meaning with scheme: on_policy, whose texts are always new")
