"""Texts and the networks that sort them, from a recipe."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from potstill.assembly.materials import Material, made
from potstill.config import Recipe
from potstill.data.load import load_text_data
from potstill.data.texts import TextSet
from potstill.errors import UserError
from potstill.matching.terms import Term, parse_terms
from potstill.models.layer_choice import with_layers
from potstill.models.load import ModelConfig
from potstill.models.pretrained import PREFIX, folder_of, show_attention, tokenizer
from potstill.schemes.settings import others_of
from potstill.tasks import TextClassification
from potstill.tasks.text_classification import covering_token

__all__ = ["texts"]

BY_TOKEN = ("tokens", "attention")
COMPARED_TEXTS = 100


def texts(recipe: Recipe, search: Sequence[Path]) -> Material:
    """Load the data and networks of a recipe with ``task: text_classification``.

    Raises:
        UserError: Whatever is missing or does not fit, at its dotted key.
    """
    _check(recipe)
    splits = load_text_data(recipe.data, search=search)
    tokenizers = _tokenizers(recipe, search, splits.train.texts[:COMPARED_TEXTS])
    classes = len(splits.train.class_names)

    def make(config: ModelConfig, where: str) -> nn.Module:
        own = tokenizers["teacher" if where == "teacher" else "student"]
        network = made(config, search, where, num_classes=classes, vocab_size=len(own))
        _fit_tokenizer(network, own, where)
        return network

    teacher = None if recipe.teacher is None else make(recipe.teacher, "teacher")
    fresh = _fresh(recipe, teacher, make)
    torch.manual_seed(recipe.seed)
    task = TextClassification(
        class_names=splits.train.class_names,
        tokenizers=tokenizers,
        max_length=recipe.data.max_length,
        augmentation=recipe.augment,
        label_smoothing=recipe.train.label_smoothing,
    )
    material = Material(
        splits=splits,
        task=task,
        teacher=teacher,
        student=fresh(),
        fresh=fresh,
        others=tuple(
            functools.partial(make, config, f"scheme.networks.{place}")
            for place, config in enumerate(others_of(recipe.scheme))
        ),
        notes=tuple(_cut_off(task, splits.train)),
    )
    _check_lengths(recipe, material)
    return _seeing(recipe, material)


def _terms(recipe: Recipe) -> dict[str, Term]:
    return {name: Term(name, config) for name, config in parse_terms(recipe.distill)[1].items()}


def _check(recipe: Recipe) -> None:
    """What has a meaning for images alone."""
    recipe.augment.check_samples("texts")
    for role, config in (("teacher", recipe.teacher), ("student", recipe.student)):
        for key in ("mean", "std", "size"):
            if config is not None and getattr(config, key) is not None:
                raise UserError(
                    f"{role}.{key}", "has no meaning with task: text_classification; leave it out"
                )


def _tokenizers(recipe: Recipe, search: Sequence[Path], samples: list[str]) -> dict[str, Any]:
    """One for each role; two that encode alike are one, so that their inputs are shared."""
    found: dict[str, Any] = {}
    for role, config in (("teacher", recipe.teacher), ("student", recipe.student)):
        if config is None:
            continue
        spec = config.tokenizer or (config.model if config.model.startswith(PREFIX) else None)
        if spec is None and "teacher" not in found:
            raise UserError(f"{role}.tokenizer", "missing; name the folder of a tokenizer")
        own = found["teacher"] if spec is None else _tokenizer(role, config, spec, search)
        alike = "teacher" in found and _encode_alike(found["teacher"], own, samples)
        found[role] = found["teacher"] if alike else own
    _check_own_tokens(recipe, found, search)
    covered = [name for name, _, _ in recipe.augment.coverings()]
    if covered and any(covering_token(own) is None for own in found.values()):
        raise UserError(f"augment.{covered[0]}", "the tokenizer has neither a mask nor an unknown token")
    if len(set(map(id, found.values()))) > 1:
        if covered:
            raise UserError(
                f"augment.{covered[0]}",
                "teacher and student have different tokenizers, so they would not see the same words covered",
            )
        for name, term in _terms(recipe).items():
            if term.signal in BY_TOKEN or (term.signal == "features" and term.config.layers == "auto"):
                raise UserError(
                    f"distill.{name}",
                    f"{term.config.loss} compares token by token, but teacher and student have different "
                    "tokenizers; match logits or pooled vectors (kl, rkd_distance), or make "
                    "student.tokenizer the teacher's",
                )
    return found


def _encode_alike(one: Any, other: Any, samples: list[str]) -> bool:
    if one is other:
        return True
    ids = [each(samples, verbose=False)["input_ids"] for each in (one, other)]
    return bool(one.get_vocab() == other.get_vocab() and ids[0] == ids[1])


def _fit_tokenizer(network: nn.Module, tokenizer: Any, where: str) -> None:
    """What pads a batch is known to a decoder; no token may be beyond a network's vocabulary."""
    config: Any = getattr(network, "config", None)
    size = getattr(config, "vocab_size", None)
    if isinstance(size, int) and len(tokenizer) > size:
        raise UserError(
            f"{where}.tokenizer",
            f"has {len(tokenizer):,} tokens, and the network knows {size:,}; take the one it learnt with",
        )
    if hasattr(config, "pad_token_id") and config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id


def _check_own_tokens(recipe: Recipe, found: Mapping[str, Any], search: Sequence[Path]) -> None:
    """A network that has learnt, and is not to learn anew, reads the tokens that it learnt from."""
    for role, config in (("teacher", recipe.teacher), ("student", recipe.student)):
        if config is None or config.tokenizer is None:
            continue
        model = config.model
        if role == "student" and model == "teacher" and recipe.teacher is not None:
            model = recipe.teacher.model
        elif role == "student" and recipe.prune is None:
            continue
        if not model.startswith(PREFIX):
            continue
        try:
            folder = folder_of(model, search, role, "tokenizer_config.json")
        except UserError:  # it brings none
            continue
        if tokenizer(folder, role).get_vocab() != found[role].get_vocab():
            raise UserError(
                f"{role}.tokenizer",
                f"is another than {model} learnt with, so it reads nonsense; leave it out",
            )


def _tokenizer(role: str, config: ModelConfig, spec: str, search: Sequence[Path]) -> Any:
    where = f"{role}.model" if config.tokenizer is None else f"{role}.tokenizer"
    return tokenizer(folder_of(spec, search, where, "tokenizer_config.json"), where)


def _fresh(
    recipe: Recipe, teacher: nn.Module | None, make: Callable[[ModelConfig, str], nn.Module]
) -> Callable[[], nn.Module]:
    """How a student comes about: by its recipe, or as layers of the teacher."""
    student = recipe.student
    if student.model != "teacher":
        if student.init is not None:
            raise UserError("student.init", "has a meaning with student.model: teacher alone")
        return lambda: make(student, "student")
    if teacher is None:
        raise UserError("student.model", "got teacher, and the recipe has none")
    start = teacher if student.init is None else with_layers(teacher, student.init, "student.init")
    return lambda: copy.deepcopy(start)


def _cut_off(task: TextClassification, train: TextSet) -> Iterator[str]:
    """How many training texts are longer than the tokens that are read."""
    own = task.tokenizers["student"]
    long = sum(len(ids) > task.max_length for ids in own(train.texts, verbose=False)["input_ids"])
    if long:
        limit = f"{task.max_length} tokens (data.max_length)"
        yield f"{long} of {len(train)} training texts are cut after {limit}"


def _check_lengths(recipe: Recipe, material: Material) -> None:
    networks = {"student": material.student}
    if isinstance(material.teacher, nn.Module):
        networks["teacher"] = material.teacher
    for role, model in networks.items():
        most = getattr(getattr(model, "config", None), "max_position_embeddings", None)
        for name, module in model.named_modules():  # RoBERTa counts from behind the padding's number
            if isinstance(most, int) and name.endswith("position_embeddings"):
                most -= 0 if getattr(module, "padding_idx", None) is None else module.padding_idx + 1
        if isinstance(most, int) and recipe.data.max_length > most:
            raise UserError("data.max_length", f"must be at most {most}, the {role}'s positions")


def _seeing(recipe: Recipe, material: Material) -> Material:
    """Let both networks show their attention where a term compares it, and say so."""
    if all(term.signal != "attention" for term in _terms(recipe).values()):
        return material
    changed = [
        show_attention(model)
        for model in (material.student, material.teacher)
        if isinstance(model, nn.Module)
    ]
    if not any(changed):
        return material

    def fresh() -> nn.Module:
        student = material.fresh()
        show_attention(student)
        return student

    note = (
        "attention is matched, so networks of transformers compute it eagerly (attn_implementation='eager')"
    )
    return Material(
        splits=material.splits,
        task=material.task,
        teacher=material.teacher,
        student=material.student,
        fresh=fresh,
        others=material.others,
        notes=(*material.notes, note),
    )
