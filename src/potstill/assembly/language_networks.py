"""The networks of a language recipe: read or made, set up to share words, and checked against the texts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from potstill.config import LanguageRecipe
from potstill.data.tokens import TextConfig
from potstill.errors import UserError
from potstill.models.causal import load_causal, narrow_vocabulary
from potstill.models.layer_choice import with_layers
from potstill.models.load import ModelConfig, build
from potstill.models.lora import with_lora
from potstill.models.pretrained import show_attention
from potstill.models.projection import answer_projected
from potstill.models.weights import load_weights
from potstill.specs import find

__all__ = ["check_context", "made_anew", "maker_of", "network_of", "prepare", "vocabulary_of"]


def network_of(
    config: ModelConfig, tokenizer: Any, search: Sequence[Path], where: str
) -> tuple[nn.Module, Any]:
    """A network and the tokenizer that came with it, if any.

    Raises:
        UserError: If there is no such model, or its weights do not fit.
    """
    library, colon, name = config.model.partition(":")
    if library == "transformers" and colon:
        made = load_causal(name, search, where, config.arguments)
    else:
        size = 0 if tokenizer is None else len(tokenizer)
        made = build(config, num_classes=size, search=search, where=where)
    if config.weights is not None:
        load_weights(made, find(config.weights, search, f"{where}.weights"), f"{where}.weights")
    return made, made.__dict__.pop("tokenizer", None)


def maker_of(
    recipe: LanguageRecipe, teacher: nn.Module | None, tokenizer: Any, search: Sequence[Path]
) -> tuple[Callable[[], nn.Module], Any]:
    """What makes students, and the tokenizer that came with one; trained weights are read once and copied.

    Raises:
        UserError: If there is no such model, or a recipe without a teacher names it as the student.
    """
    lora = recipe.student.lora

    def learning(network: nn.Module) -> nn.Module:
        return network if lora is None else with_lora(network, lora)

    if recipe.student.model == "teacher":
        if teacher is None:
            raise UserError("student.model", "got teacher, and the recipe has none")
        init = recipe.student.init
        start = copy.deepcopy(teacher) if init is None else with_layers(teacher, init, "student.init")
        return lambda: learning(copy.deepcopy(start)), None
    first, own = network_of(recipe.student, tokenizer, search, "student")
    trained = recipe.student.model.startswith("transformers:") and not recipe.student.arguments
    if trained or recipe.student.weights is not None:
        return lambda: learning(copy.deepcopy(first)), own
    return lambda: learning(network_of(recipe.student, tokenizer, search, "student")[0]), own


def made_anew(fresh: Callable[[], nn.Module], shared: int, *, seen: bool) -> nn.Module:
    """A network as ``fresh`` makes it, set up for training."""
    network = fresh()
    prepare(network, shared, seen=seen)
    return network


def prepare(network: nn.Module, shared: int, *, seen: bool) -> bool:
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


def vocabulary_of(network: nn.Module, tokenizer: Any) -> int:
    """How many logits a network gives."""
    config: Any = getattr(network, "config", None)
    return int(getattr(config, "vocab_size", len(tokenizer)))


def check_context(data: TextConfig, networks: Sequence[nn.Module]) -> None:
    """No row may be longer than what a network has places for.

    Raises:
        UserError: If the recipe's rows may be.
    """
    for network in networks:
        most = getattr(getattr(network, "config", None), "max_position_embeddings", None)
        if isinstance(most, int) and data.max_length > most:
            raise UserError(
                "data.max_length", f"must be at most {most}, the context of a network, got {data.max_length}"
            )
