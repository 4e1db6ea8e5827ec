"""How like its teacher's a student's answers are, and how far apart both are on what it writes itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from potstill.batch import Batch, ask
from potstill.data.tokens import TokenSet
from potstill.losses import reverse_kl
from potstill.matching.taps import first_tensor
from potstill.metrics.rouge import rouge_l
from potstill.metrics.verdict import mean_interval
from potstill.models.generation import own_batch, prompt_sizes, write

__all__ = ["Likeness", "likeness"]

PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 16, 24, 32
Likeness = dict[str, Any]


def likeness(
    arms: Mapping[str, nn.Module], teacher: nn.Module, part: TokenSet, tokenizer: Any, seed: int
) -> dict[str, Likeness]:
    """How near each arm is to the teacher, in words and on its own texts.

    Prompts are the questions of test conversations, or the beginnings of test documents.

    Args:
        arms: Networks that write, by name.
        teacher: The teacher, which writes too.
        part: The test part.
        tokenizer: Decodes what is written.
        seed: Of what arms draw.

    Returns:
        For each arm ``rouge_l``, the mean over prompts of ROUGE-L between both likeliest continuations;
        ``own_kl``, the divergence ``KL(arm || teacher)`` in nats a token on texts that the arm drew after the
        prompts; each with its 95 % interval over prompts, and the number of ``prompts``.
    """
    batch = _prompts(part, next(teacher.parameters()).device)
    if batch is None:
        return {}
    ids = batch.inputs["student"]["input_ids"]  # type: ignore[index]
    sizes = prompt_sizes(batch, PROMPT_TOKENS)
    prompts = [row[:size] for row, size in zip(ids.tolist(), sizes, strict=True)]
    references = _texts(teacher, prompts, tokenizer)
    found: dict[str, Likeness] = {}
    for name, network in arms.items():
        words = [rouge_l(*both) for both in zip(_texts(network, prompts, tokenizer), references, strict=True)]
        far = _own_kl(network, teacher, batch, seed)
        found[name] = {"prompts": len(prompts)}
        for key, values in (("rouge_l", words), ("own_kl", far)):
            found[name] |= {key: float(np.mean(values)), f"{key}_interval": mean_interval([values])}
    return found


def _prompts(part: TokenSet, device: torch.device) -> Batch | None:
    """Rows that begin with a document and leave room to write, spread over the part."""
    packed = part.packed
    able = [
        row
        for row in range(len(packed.tokens))
        if packed.counted[row].any() and int(packed.counted[row].argmax()) + 1 < part.length - NEW_TOKENS // 2
    ]
    rows = [able[at] for at in np.unique(np.linspace(0, len(able) - 1, PROMPTS).astype(int))] if able else []
    if len(rows) < 2:
        return None
    samples, target, index = part.__getitems__(rows)
    inputs = {name: tensor.to(device) for name, tensor in samples.items()}
    return Batch({"student": inputs}, None, (target >= 0).to(device), index)


def _texts(network: nn.Module, prompts: Sequence[Sequence[int]], tokenizer: Any) -> list[str]:
    """What a network writes, always its likeliest token."""
    made = write(
        network,
        prompts,
        most=NEW_TOKENS,
        seeds=[[0]] * len(prompts),
        temperature=0.0,
        end=tokenizer.eos_token_id,
    )
    return [tokenizer.decode(each.ids, skip_special_tokens=True) for each in made]


@torch.no_grad()
def _own_kl(network: nn.Module, teacher: nn.Module, batch: Batch, seed: int) -> list[float]:
    """Mean divergence of the tokens that a network drew, by prompt."""
    own = own_batch(network, batch, [seed], most=NEW_TOKENS, prompt_tokens=PROMPT_TOKENS)
    assert own.where is not None
    answers = []
    for each in (network, teacher):
        training = each.training
        logits = first_tensor(ask(each.eval(), own.inputs["student"]))
        each.train(training)
        assert logits is not None, "a language model gives logits"
        answers.append(logits.float())
    values = reverse_kl(answers[0], answers[1], temperature=1.0, where=own.where)
    return (values.sum(dim=1) / own.where.sum(dim=1).clamp(min=1)).tolist()
