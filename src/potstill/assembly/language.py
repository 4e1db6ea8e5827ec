"""A recipe for a language model, loaded: texts, one tokenizer for all, networks that share its tokens."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from potstill.assembly.materials import Material, known_of
from potstill.assembly.token_cache import check_kept, shelf_of_tokens, words_of
from potstill.config import LanguageRecipe, Recipe
from potstill.data import Splits
from potstill.data.documents import Document
from potstill.data.prompts import as_if_answered
from potstill.data.tokens import TextConfig, Texts, TokenSet, read_texts, token_splits
from potstill.errors import UserError
from potstill.experiment import Experiment
from potstill.harness import check_networks, check_tasks
from potstill.matching.fused import covers
from potstill.matching.terms import Term, parse_terms
from potstill.models.causal import (
    check_causal,
    check_same_tokens,
    load_causal,
    load_tokenizer,
    narrow_vocabulary,
    packable,
)
from potstill.models.characters import character_tokenizer
from potstill.models.layer_choice import with_layers
from potstill.models.load import ModelConfig, build
from potstill.models.lora import with_lora
from potstill.models.pretrained import show_attention
from potstill.models.projection import answer_projected
from potstill.models.weights import load_weights
from potstill.specs import find
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
        else _network(recipe.teacher, named, search, "teacher")
    )
    tokenizer = named or theirs
    torch.manual_seed(recipe.seed)
    fresh, ours = _maker(recipe, teacher, tokenizer, search)
    tokenizer = tokenizer or ours
    if tokenizer is None:
        raise UserError("data.tokenizer", "missing; neither teacher nor student brings a tokenizer")
    samples = [_sample(document) for document in texts.parts["train"][:COMPARED_TEXTS]]
    for role, own in (("teacher", theirs), ("student", ours)):
        if own is not None and own is not tokenizer:
            check_same_tokens(tokenizer, own, samples, role)
    student = fresh()
    networks = [student] if teacher is None else [teacher, student]
    _check_context(recipe.data, networks)
    shared = min(_vocabulary(network, tokenizer) for network in networks)
    able = [packable(network, shared) for network in networks]
    splits = token_splits(texts, tokenizer, recipe.data, together=all(able))
    _check_known(splits, shared)
    if recipe.data.packing and not all(able):
        splits.notes.append("a network cannot have several documents in a row; each row has one")
    shelf = shelf_of_tokens(recipe, splits, tokenizer, search, teacher)
    seen = _looks_at_attention(recipe)
    projected = [_prepared(network, shared, seen=seen) for network in networks]
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
        fresh=lambda: _made(fresh, shared, seen=seen),
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
    fresh, ours = _maker(recipe, None, tokenizer, search)
    tokenizer = tokenizer or ours
    if tokenizer is None:
        return None
    if ours is not None and ours is not tokenizer:
        check_same_tokens(tokenizer, ours, [], "student")
    student = fresh()
    _check_context(recipe.data, [student])
    size = _vocabulary(student, tokenizer)
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
    projected = _prepared(student, shared, seen=seen)

    return Material(
        splits=splits,
        task=_task(recipe, splits, tokenizer, shared, projected=projected),
        teacher=lambda: _made(lambda: _network(config, tokenizer, search, "teacher")[0], shared, seen=seen),
        student=student,
        fresh=lambda: _made(fresh, shared, seen=seen),
        shelf=shelf,
        known=known,
        finish=_with_teacher,
    )


def _made(fresh: Callable[[], nn.Module], shared: int, *, seen: bool) -> nn.Module:
    network = fresh()
    _prepared(network, shared, seen=seen)
    return network


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


def _network(
    config: ModelConfig, tokenizer: Any, search: Sequence[Path], where: str
) -> tuple[nn.Module, Any]:
    """A network and the tokenizer that came with it, if any."""
    library, colon, name = config.model.partition(":")
    if library == "transformers" and colon:
        made = load_causal(name, search, where, config.arguments)
    else:
        size = 0 if tokenizer is None else len(tokenizer)
        made = build(config, num_classes=size, search=search, where=where)
    if config.weights is not None:
        load_weights(made, find(config.weights, search, f"{where}.weights"), f"{where}.weights")
    return made, made.__dict__.pop("tokenizer", None)


def _maker(
    recipe: LanguageRecipe, teacher: nn.Module | None, tokenizer: Any, search: Sequence[Path]
) -> tuple[Callable[[], nn.Module], Any]:
    """What makes students, and the tokenizer that came with one; trained weights are read once and copied."""
    lora = recipe.student.lora

    def learning(network: nn.Module) -> nn.Module:
        return network if lora is None else with_lora(network, lora)

    if recipe.student.model == "teacher":
        if teacher is None:
            raise UserError("student.model", "got teacher, and the recipe has none")
        init = recipe.student.init
        start = copy.deepcopy(teacher) if init is None else with_layers(teacher, init, "student.init")
        return lambda: learning(copy.deepcopy(start)), None
    first, own = _network(recipe.student, tokenizer, search, "student")
    trained = recipe.student.model.startswith("transformers:") and not recipe.student.arguments
    if trained or recipe.student.weights is not None:
        return lambda: learning(copy.deepcopy(first)), own
    return lambda: learning(_network(recipe.student, tokenizer, search, "student")[0]), own


def _check_context(data: TextConfig, networks: Sequence[nn.Module]) -> None:
    """No row may be longer than what a network has places for."""
    for network in networks:
        most = getattr(getattr(network, "config", None), "max_position_embeddings", None)
        if isinstance(most, int) and data.max_length > most:
            raise UserError(
                "data.max_length", f"must be at most {most}, the context of a network, got {data.max_length}"
            )


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


def _vocabulary(network: nn.Module, tokenizer: Any) -> int:
    """How many logits a network gives."""
    config: Any = getattr(network, "config", None)
    return int(getattr(config, "vocab_size", len(tokenizer)))


def _prepared(network: nn.Module, shared: int, *, seen: bool) -> bool:
    """Set a network up for training; whether it can answer with hidden states.

    Args:
        network: A causal language model.
        shared: Words that all networks know.
        seen: Whether its attention is compared.
    """
    if seen:
        show_attention(network)
    config: Any = getattr(network, "config", None)
    if hasattr(config, "use_cache"):
        config.use_cache = False
    if getattr(config, "vocab_size", shared) > shared:
        narrow_vocabulary(network, shared)
    return answer_projected(network, shared)


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
