"""The cache of a language model's teacher in a recipe: what it may serve, whose it is, and what it knows."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from potstill.assembly.caching import shelf_of
from potstill.assembly.materials import device_of
from potstill.cache import Shelf
from potstill.config import LanguageRecipe
from potstill.data import Splits
from potstill.data.tokens import TokenSet
from potstill.errors import UserError
from potstill.matching.fused import covers
from potstill.matching.objective import Objective
from potstill.matching.terms import Term, parse_terms
from potstill.train.precision import choose

__all__ = ["check_kept", "shelf_of_tokens", "words_of"]


def check_kept(recipe: LanguageRecipe) -> None:
    """Refuse what stored words cannot serve.

    Raises:
        UserError: At the dotted key that does not hold.
    """
    config = recipe.teacher
    if config is None or config.cache is None:
        return
    if config.responses is not None or config.endpoint is not None:
        raise UserError("teacher.cache", "has no meaning beside answers that are generated; leave it out")
    if config.cache.top is not None:
        raise UserError("teacher.cache.top", "is for classes; a language model has words and bytes")
    terms = {name: Term(name, each) for name, each in parse_terms(recipe.distill)[1].items()}
    on_logits = {name: term for name, term in terms.items() if term.signal == "logits"}
    for name, term in on_logits.items():
        if not covers(term):
            raise UserError(
                "teacher.cache", f"keeps some words of each token; distill.{name} needs all logits"
            )
        if config.cache.words == "drawn" and term.config.loss != "kl":
            raise UserError(
                "teacher.cache.words",
                f"drawn serves kl alone, and distill.{name} is {term.config.loss}; set it to likeliest",
            )
    temperatures = Objective(recipe.distill).temperatures
    if len(temperatures) > 1:
        raise UserError("teacher.cache", f"serves one temperature, got terms at {temperatures}")


def shelf_of_tokens(
    recipe: LanguageRecipe,
    splits: Splits[TokenSet],
    tokenizer: Any,
    search: Sequence[Path],
    teacher: nn.Module | None,
) -> Shelf | None:
    """Where the answers are kept: another tokenizer, text, packing, temperature or way to keep is another's.

    Args:
        recipe: The recipe.
        splits: Its rows.
        tokenizer: What cut the texts.
        search: Where files are looked up.
        teacher: The network, where no file says what its weights are.
    """
    config = recipe.teacher
    if config is None or config.cache is None:
        return None
    precision = choose(recipe.train.precision, device_of(recipe.train.device), nn.Identity())
    shelf = shelf_of(recipe, splits, search, precision.name, teacher=teacher, inputs="tokens")
    assert shelf is not None, "the recipe has a cache"
    words = repr(sorted(tokenizer.get_vocab().items())) + str(tokenizer.chat_template)
    temperature = (Objective(recipe.distill).temperatures or (1.0,))[0]
    corrected = "none"
    if recipe.correct is not None:
        corrected = json.dumps([dataclasses.asdict(each) for each in (recipe.correct, recipe.train)])
    together = "documents side by side" if recipe.data.packing else "one document a row"
    shelf.facts |= {
        "tokenizer": hashlib.sha256(words.encode()).hexdigest()[:16],
        "packing": f"rows of {splits.train.length}, {together}",
        "temperature": f"{temperature:g}",
        "words": f"{config.cache.words}, {config.cache.bytes} bytes a token",
        "correction": hashlib.sha256(corrected.encode()).hexdigest()[:16] if recipe.correct else corrected,
    }
    return shelf


def words_of(shelf: Shelf, seed: int) -> int:
    """Size of the vocabulary over which a full cache holds words."""
    vault = next(iter(shelf.full(seed)))
    assert vault.layout is not None, "a full cache has a layout"
    assert vault.layout.tokens is not None, "a language model's cache holds words"
    return vault.layout.tokens.words
