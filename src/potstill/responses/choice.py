"""Which of a teacher's answers are learnt."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from potstill.errors import UserError
from potstill.responses.store import Answer
from potstill.specs import attribute

__all__ = ["Chosen", "Verifier", "choose", "verifier_of"]

WHERE = "teacher.responses.keep"
Verifier = Callable[[str, str], bool]
"""Whether an answer may be learnt: called with the prompt's text and the answer's."""


@dataclass(frozen=True)
class Chosen:
    """What became of the answers to one prompt.

    Attributes:
        answer: The one to learn, if any is.
        refused: How many the verifier refused.
    """

    answer: Answer | None
    refused: int


def choose(prompt: str, answers: Sequence[Answer], keep: Verifier | None = None) -> Chosen:
    """The likeliest answer by token of those that may be learnt; of equal ones the first.

    Args:
        prompt: What was asked.
        answers: All answers; those without any text are passed over.
        keep: Says which may be learnt.

    Raises:
        UserError: If ``keep`` fails or does not answer yes or no.

    >>> some = [Answer("so so", likelihood=-2.0), Answer("surely", likelihood=-0.1)]
    >>> choose("?", some).answer.text, choose("?", some, lambda prompt, text: "so" in text[:2]).answer.text
    ('surely', 'so so')
    """
    allowed = [each for each in answers if each.text.strip() and _kept(keep, prompt, each.text)]
    best = max(
        allowed, key=lambda each: -math.inf if each.likelihood is None else each.likelihood, default=None
    )
    return Chosen(best, sum(bool(each.text.strip()) for each in answers) - len(allowed))


def _kept(keep: Verifier | None, prompt: str, text: str) -> bool:
    if keep is None:
        return True
    try:
        found = keep(prompt, text)
    except Exception as error:  # whatever the user's code raises is the user's to read
        raise UserError(WHERE, f"failed on {text[:60]!r}: {type(error).__name__}: {error}") from error
    if found not in (True, False):
        raise UserError(WHERE, f"expected True or False, got {found!r} for {text[:60]!r}")
    return bool(found)


def verifier_of(spec: str | None, search: Sequence[Path]) -> Verifier | None:
    """The user's function that a recipe names.

    Raises:
        UserError: If it cannot be found or called.
    """
    if spec is None:
        return None
    found: Verifier = attribute(spec, search, WHERE)
    if not callable(found):
        raise UserError(WHERE, f"expected a function, got {type(found).__name__}")
    return found
