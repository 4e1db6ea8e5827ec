"""A recipe for a language model, loaded: texts, one tokenizer for all, networks that share its tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from potstill.assembly.language_networks import (
    check_context,
    made_anew,
    maker_of,
    network_of,
    prepare,
    vocabulary_of,
)
from potstill.assembly.materials import Material, known_of
from potstill.assembly.token_cache import check_kept, shelf_of_tokens, words_of
from potstill.config import LanguageRecipe, Recipe
from potstill.data import Splits
from potstill.data.documents import Document
from potstill.data.prompts import as_if_answered
from potstill.data.tokens import Texts, TokenSet, read_texts, token_splits
from potstill.errors import UserError
from potstill.experiment import Experiment
from potstill.harness import check_networks, check_tasks
from potstill.matching.fused import covers
from potstill.matching.terms import Term, parse_terms
from potstill.models.causal import (
    check_causal,
    check_same_tokens,
    load_tokenizer,
    packable,
)
from potstill.models.characters import character_tokenizer
from potstill.tasks import LanguageModeling

__all__ = ["language"]

CHARACTERS = "characters"
COMPARED_TEXTS = 20


def language(recipe: Recipe, search: Sequence[Path]) -> Material:
    """Load the texts and networks of a recipe with ``task: language_modeling``.

    Raises:
        UserError: Whatever is missing or does not fit, at its dotted key.
    """
    assert isinstance(recipe, LanguageRecipe), "recipes of this task are read as such"
    check_kept(recipe)
    check_tasks(recipe.evaluation, search)
    texts = read_texts(recipe.data, search, recipe.seed)
    if recipe.teacher is not None and recipe.teacher.responses is not None:
        texts = _until_answered(recipe, texts)
    named = _named_tokenizer(recipe, texts, search)
    found = _without_teacher(recipe, texts, named, search)
    if found is not None:
        return found
    torch.manual_seed(recipe.seed)  # of a teacher that only a correction trains
    teacher, theirs = (
        (None, None)
        if recipe.teacher is None or recipe.teacher.endpoint is not None
        else network_of(recipe.teacher, named, search, "teacher")
    )
    tokenizer = named or theirs
    torch.manual_seed(recipe.seed)
    fresh, ours = maker_of(recipe, teacher, tokenizer, search)
    tokenizer = tokenizer or ours
    if tokenizer is None:
        raise UserError("data.tokenizer", "missing; neither teacher nor student brings a tokenizer")
    samples = [_sample(document) for document in texts.parts["train"][:COMPARED_TEXTS]]
    for role, own in (("teacher", theirs), ("student", ours)):
        if own is not None and own is not tokenizer:
            check_same_tokens(tokenizer, own, samples, role)
    student = fresh()
    networks = [student] if teacher is None else [teacher, student]
    check_context(recipe.data, networks)
    shared = min(vocabulary_of(network, tokenizer) for network in networks)
    able = [packable(network, shared) for network in networks]
    splits = token_splits(texts, tokenizer, recipe.data, together=all(able))
    _check_known(splits, shared)
    if recipe.data.packing and not all(able):
        splits.notes.append("a network cannot have several documents in a row; each row has one")
    shelf = shelf_of_tokens(recipe, splits, tokenizer, search, teacher)
    seen = _looks_at_attention(recipe)
    projected = [prepare(network, shared, seen=seen) for network in networks]
    if seen:
        splits.notes.append(
            "attention is matched, so networks of transformers compute it eagerly "
            "(attn_implementation='eager')"
        )
    if shelf is not None and not all(projected):
        raise UserError("teacher.cache", "needs networks whose logits are those of a linear head alone")
    task = _task(recipe, splits, tokenizer, shared, projected=all(projected))
    return Material(
        splits=splits,
        task=task,
        teacher=teacher,
        student=student,
        fresh=lambda: made_anew(fresh, shared, seen=seen),
        shelf=shelf,
        finish=_with_teacher,
    )


def _without_teacher(
    recipe: LanguageRecipe, texts: Texts, named: Any, search: Sequence[Path]
) -> Material | None:
    """All but the teacher, where its cache is full and nothing else of it is needed."""
    config = recipe.teacher
    if config is None or config.cache is None or recipe.student.model == "teacher":
        return None
    library, _, name = config.model.partition(":")
    if config.weights is None and library != "transformers":
        return None  # the weights must be seen
    tokenizer = named or (load_tokenizer(name, search) if library == "transformers" else None)
    torch.manual_seed(recipe.seed)
    fresh, ours = maker_of(recipe, None, tokenizer, search)
    tokenizer = tokenizer or ours
    if tokenizer is None:
        return None
    if ours is not None and ours is not tokenizer:
        check_same_tokens(tokenizer, ours, [], "student")
    student = fresh()
    check_context(recipe.data, [student])
    size = vocabulary_of(student, tokenizer)
    splits = token_splits(texts, tokenizer, recipe.data, together=packable(student, size))
    _check_known(splits, size)
    shelf = shelf_of_tokens(recipe, splits, tokenizer, search, None)
    known = None if shelf is None else known_of(recipe, shelf, splits)
    if shelf is None or known is None:
        return None
    shared = words_of(shelf, recipe.seed)
    if shared > size:
        raise UserError("teacher.cache.path", f"holds words of {shared:,}, and the student has {size:,}")
    seen = _looks_at_attention(recipe)
    projected = prepare(student, shared, seen=seen)

    return Material(
        splits=splits,
        task=_task(recipe, splits, tokenizer, shared, projected=projected),
        teacher=lambda: made_anew(
            lambda: network_of(config, tokenizer, search, "teacher")[0], shared, seen=seen
        ),
        student=student,
        fresh=lambda: made_anew(fresh, shared, seen=seen),
        shelf=shelf,
        known=known,
        finish=_with_teacher,
    )


def _looks_at_attention(recipe: Recipe) -> bool:
    terms = parse_terms(recipe.distill)[1].items()
    return any(Term(name, config).signal == "attention" for name, config in terms)


def _task(
    recipe: LanguageRecipe, splits: Splits[TokenSet], tokenizer: Any, shared: int, *, projected: bool
) -> LanguageModeling:
    learnt = splits.train.targets[splits.train.packed.counted]
    return LanguageModeling(
        tokenizer=tokenizer,
        vocabulary=shared,
        frequencies=np.bincount(learnt, minlength=shared),
        projected=projected and _without_logits(recipe),
    )


def _without_logits(recipe: Recipe) -> bool:
    """Whether hidden states will do for all that a recipe's scheme and terms do with outputs."""
    terms = [Term(name, config) for name, config in parse_terms(recipe.distill)[1].items()]
    return recipe.scheme.kind == "offline" and all(covers(term) for term in terms if term.signal == "logits")


def _until_answered(recipe: LanguageRecipe, texts: Texts) -> Texts:
    """The texts with something in the place of answers that the teacher has yet to give."""
    if recipe.correct is not None and any(document.asks for document in texts.parts["train"]):
        raise UserError("correct", "has no meaning where training documents lack answers to learn from")
    parts = {
        part: [as_if_answered(document) for document in documents] for part, documents in texts.parts.items()
    }
    return Texts(parts, texts.notes)


def _named_tokenizer(recipe: LanguageRecipe, texts: Texts, search: Sequence[Path]) -> Any:
    if recipe.data.tokenizer is None:
        return None
    if recipe.data.tokenizer == CHARACTERS:
        return character_tokenizer(texts.all_text)
    return load_tokenizer(recipe.data.tokenizer, search)


def _sample(document: Document) -> str:
    """The beginning of a document, a conversation without its template."""
    turns = [turn["content"] for turn in document.messages]
    return "\n".join([document.prompt, document.text, *turns]).strip()[:1000]


def _check_known(splits: Splits[TokenSet], shared: int) -> None:
    """No text may hold a token that a network lacks, such as one that was added to a tokenizer."""
    for part in (splits.train, splits.validation, splits.test):
        highest = int(part.packed.tokens.max())
        if highest >= shared:
            raise UserError(
                "data.tokenizer",
                f"the texts hold token {highest}, and a network knows {shared:,} (0 to {shared - 1}); "
                "take the tokenizer that it learnt with",
            )


def _with_teacher(experiment: Experiment) -> Experiment:
    """The experiment, its task comparing with its teacher, whose weights are bf16 where that is fast."""
    assert isinstance(experiment.task, LanguageModeling)
    teacher = None if experiment.known is not None else experiment.teacher
    assert isinstance(experiment.recipe, LanguageRecipe)
    asked = {"student": experiment.blank("student")} | ({} if teacher is None else {"teacher": teacher})
    check_networks(experiment.recipe.evaluation, asked)
    for role, network in asked.items():
        check_causal(network, experiment.task.vocabulary, f"{role}.model")
    if teacher is not None and experiment.precision.name == "bf16":
        teacher.to(torch.bfloat16)
    task = dataclasses.replace(experiment.task, teacher=teacher, precision=experiment.precision.name)
    return dataclasses.replace(experiment, task=task)
