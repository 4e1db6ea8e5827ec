"""Prompts are put to a teacher that is loaded here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from potstill import distributed
from potstill.data.prompts import Prompt
from potstill.errors import UserError, no_memory
from potstill.models.generation import write
from potstill.responses.settings import ResponsesConfig
from potstill.responses.store import Answer, ResponseStore

__all__ = ["ask_network"]

Say = Callable[[str], None]


def ask_network(
    network: nn.Module,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    config: ResponsesConfig,
    store: ResponseStore,
    say: Say,
) -> None:
    """Let a teacher answer what it has not answered yet; several processes share the work.

    Prompts of like lengths are answered together. Groups are the same after an interruption, and every answer
    has random numbers of its own, so the store comes out the same however often it was interrupted.

    Args:
        network: A causal language model of transformers.
        tokenizer: Its tokenizer.
        prompts: What is asked; each key once.
        config: How.
        store: Keeps each group as soon as it is answered.
        say: Told how far it is.

    Raises:
        UserError: If memory runs out, or the answers cannot be written.
    """
    ordered = sorted(prompts, key=lambda prompt: (len(prompt.ids), prompt.key))
    size = max(1, config.batch_size // config.samples)
    groups = [ordered[begin : begin + size] for begin in range(0, len(ordered), size)]
    known = store.read()
    mine = groups[distributed.rank() :: distributed.world_size()]
    left = [group for group in mine if any(prompt.key not in known for prompt in group)]
    for number, group in enumerate(left, start=1):
        answers = _answers(network, tokenizer, group, config)
        store.append({key: some for key, some in answers.items() if key not in known})
        if number % max(1, len(left) // 10) == 0:
            say(f"responses: {number} of {len(left)} groups of prompts are answered")
    distributed.barrier()


def _answers(
    network: nn.Module, tokenizer: Any, group: Sequence[Prompt], config: ResponsesConfig
) -> dict[str, list[Answer]]:
    """All answers to a group of prompts."""
    asked = [(prompt, number) for prompt in group for number in range(config.samples)]
    try:
        found = write(
            network,
            [prompt.ids for prompt, _ in asked],
            most=config.max_new_tokens,
            seeds=[[config.seed, int(prompt.key, 16), number] for prompt, number in asked],
            temperature=config.temperature,
            top_p=config.top_p,
            end=tokenizer.eos_token_id,
        )
    except RuntimeError as error:
        if not no_memory(error):
            raise
        reason = str(error).splitlines()[0][:200]
        raise UserError("teacher.responses.batch_size", f"out of memory: lower it; {reason}") from error
    answers: dict[str, list[Answer]] = {prompt.key: [] for prompt in group}
    for (prompt, _), each in zip(asked, found, strict=True):
        text = tokenizer.decode(each.ids, skip_special_tokens=True)
        answers[prompt.key].append(Answer(text, each.ids, each.likelihood))
    return answers
